"""Units that fail, hang or kill their worker are tried three times and named, and the others go on."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import strikes

from mucs_ray import storage
from mucs_ray.data.table import Dataset
from mucs_ray.engine.session import Cluster
from mucs_ray.errors import InputError, RunFailed
from mucs_ray.pipeline.graph import Pipeline
from mucs_ray.run.stages.rank import score_parts
from tiny_run import open_tiny, work

STRUCK = "strikes:StruckMUCS"
ENGINE = {"train_workers": 1, "actors": [1, 1], "timeout": 25.0}
"""A killed worker must be back before its silence counts as a hang: on a busy machine that takes more than 10 s."""


def scores_of(pipeline: Pipeline, method: str) -> tuple[np.ndarray, np.ndarray]:
    (scored,) = pipeline.method_stages[f"attribute/{method}"].inputs
    tables = list(score_parts(pipeline.stages[scored], pipeline.dataset.units("train"), "skew"))
    idx = np.concatenate([table["idx"].to_numpy() for table in tables])
    return idx, np.concatenate([np.stack(table["score"].to_numpy()) for table in tables])


def events_of(pipeline: Pipeline) -> list[dict]:
    url = storage.join(pipeline.run_url, "events")
    files = sorted(storage.names(url))
    return [json.loads(line) for name in files for line in storage.read_bytes(storage.join(url, name)).splitlines()]


@pytest.fixture(scope="module")
def trained(data: Dataset, copied: Callable[[], Path]) -> Pipeline:
    """Return a run that is trained and generated, on which no strike has fallen yet."""
    return open_tiny(data, copied(), methods=(STRUCK,), engine=ENGINE)


def test_an_item_whose_task_fails_or_dies_is_unlearned_again(trained: Pipeline, cluster: Cluster):
    strikes.lay("adapt@0", "error")
    strikes.lay("adapt@1", "worker")
    work(trained, f"attribute/{STRUCK}/unlearn", cluster)
    assert strikes.left() == 0
    failures = [each for each in events_of(trained) if each["event"] == "failure"]
    assert {(each["unit"], each["kind"]) for each in failures} == {("item-0000", "error"), ("item-0001", "lost")}


def test_units_that_fail_hang_or_kill(trained: Pipeline, finished: Pipeline, cluster: Cluster):
    """One unit fails three times, another kills its worker once, a third hangs once: only the first has no scores."""
    strikes.lay("before-compute@0", "error", 3)
    strikes.lay("before-publish@16", "worker")
    strikes.lay("before-compute@32", "hang")
    with pytest.raises(RunFailed, match=r"1 of 4 units failed, .* train-part-00000-0000, tried 3 times .*struck"):
        work(trained, "attribute", cluster)
    assert strikes.left() == 0
    kinds = {each["kind"] for each in events_of(trained) if each["event"] == "failure" and "score" in each["stage"]}
    assert kinds == {"error", "lost", "hung"}

    state = trained.stages[f"attribute/{STRUCK}/score"].state()
    assert (state.status, state.parts_there, state.parts_planned) == ("failed", 3, 4)
    assert list(state.failed) == ["train-part-00000-0000"] and "struck" in state.failed["train-part-00000-0000"]

    again = work(trained, "attribute", cluster)  # the same command makes the one that is missing
    assert again[0] == f"attribute/{STRUCK}/score"
    assert trained.stages[f"attribute/{STRUCK}/score"].state().status == "done"
    (idx, scores), (expected_idx, expected) = scores_of(trained, STRUCK), scores_of(finished, "mucs")
    assert np.array_equal(idx, expected_idx) and np.array_equal(scores, expected)


def test_a_unit_that_cannot_be_read_is_named(trained: Pipeline, data: Dataset, tmp_path: Path, cluster: Cluster):
    """A shard that has vanished from the data set costs its units, and no others; the method is `pixel`."""
    copy = tmp_path / "data"
    shutil.copytree(data.url, copy)
    pipeline = open_tiny(Dataset.open(str(copy)), Path(trained.run_url), methods=("pixel",), engine=ENGINE)
    shard = copy / "train" / "part-00001.parquet"
    content = shard.read_bytes()
    shard.unlink()
    with pytest.raises(InputError, match=r"part-00001\.parquet is listed in card\.json but absent"):
        work(pipeline, "attribute", cluster)
    shard.write_bytes(content)
    assert pipeline.stages["attribute/pixel/score"].state().parts_there == 2
    work(pipeline, "attribute", cluster)
    assert pipeline.stages["attribute/pixel"].state().status == "done"
