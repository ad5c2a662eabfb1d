"""A node that joins while units are scored gets a scorer and its share of them; the scores are those of one node."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from together import units_by_node

from cluster_tools import some_nodes
from mucs_ray.engine.session import Cluster, session
from mucs_ray.pipeline.graph import Pipeline
from tiny import tiny_dataset
from tiny_run import open_tiny, trained_weights, work

TOGETHER = "together:TogetherMUCS"

pytestmark = pytest.mark.slow


def parts(pipeline: Pipeline, method: str) -> dict[str, bytes]:
    """Return the content of a method's parts by unit."""
    folder = Path(pipeline.stages[f"attribute/{method}/score"].folder)
    return {file.name.split(".")[0]: file.read_bytes() for file in folder.glob("train-*")}


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_node_that_joins_scores_its_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With all defaults, one node scores MUCS; then the same is scored again, and a second node joins in the middle."""
    (tmp_path / "together").mkdir()
    monkeypatch.setenv("MUCS_RAY_TOGETHER", str(tmp_path / "together"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1] / "plugins"), prepend=os.pathsep)
    dataset = tiny_dataset(tmp_path / "data", rows_per_unit=4)
    weights = trained_weights(dataset, tmp_path / "training")
    with some_nodes(1) as nodes, session(nodes.address):
        pipeline = open_tiny(dataset, tmp_path / "run", methods=("mucs", TOGETHER), weights=weights, engine={})
        work(pipeline, f"attribute/{TOGETHER}/unlearn", Cluster.now())
        scoring = threading.Thread(target=work, args=(pipeline, "attribute", Cluster.now()), daemon=True)
        scoring.start()
        wait_until(lambda: len(units_by_node()) == 1)
        joined = time.monotonic()
        nodes.add()
        wait_until(lambda: len(units_by_node()) == 2)
        print(f"the new node scored {time.monotonic() - joined:.1f} s after it was asked for")
        scoring.join()
    assert pipeline.stages[f"attribute/{TOGETHER}"].state().status == "done"
    alone, together = parts(pipeline, "mucs"), parts(pipeline, TOGETHER)
    assert len(alone) == 15 and together == alone
    assert len(units_by_node()) == 2 and min(units_by_node().values()) > 1
