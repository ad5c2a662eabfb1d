"""An error in a worker reaches the user as one line of this package, and nothing finished is lost."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from mucs_ray.cli.app import app
from mucs_ray.data.table import Dataset
from mucs_ray.engine.coordinator import last_line
from mucs_ray.engine.session import Cluster
from mucs_ray.errors import InputError, RunFailed
from mucs_ray.pipeline.graph import Pipeline
from mucs_ray.run import driver
from mucs_ray.store import checkpoint
from mucs_ray.store.items import item_file
from tiny import rows, tiny_toml, write_dataset
from tiny_run import open_tiny, work


def copy_of(finished: Pipeline, data: Dataset, folder: Path, *stages: str, **changes: object) -> Pipeline:
    """Copy the finished run's first stages to another folder."""
    pipeline = open_tiny(data, folder, **changes)
    for short in stages:
        old, new = finished.stages[short], pipeline.stages[short]
        assert old.fingerprint == new.fingerprint
        for file in Path(old.folder).iterdir():
            if file.is_file():
                target = Path(new.folder) / file.name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(file.read_bytes())
    return pipeline


def test_a_corrupt_checkpoint(finished: Pipeline, data: Dataset, tmp_path: Path, cluster: Cluster):
    pipeline = copy_of(finished, data, tmp_path, "pretrain")
    stage = pipeline.stages["pretrain"]
    weights = Path(stage.url(stage.part("last", "safetensors")))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(InputError, match=r"last\.\w+\.safetensors is corrupt: its sha256 differs") as caught:
        work(pipeline, "generate", cluster)
    assert len(str(caught.value).splitlines()) == 1
    assert weights.exists() and stage.state().status == "done"


def test_a_nan_is_named(finished: Pipeline, data: Dataset, tmp_path: Path, cluster: Cluster):
    """An F2 has a NaN: scoring stops and names a training image, and the unlearned models stay."""
    pipeline = copy_of(
        finished, data, tmp_path, "pretrain", "generate", "attribute/mucs/null", "attribute/mucs/unlearn"
    )
    stage = pipeline.stages["attribute/mucs/unlearn"]
    url = stage.url(item_file(stage, 1))
    tensors, facts = checkpoint.load(url)
    next(iter(tensors.values()))[0, 0] = torch.nan
    digest = checkpoint.save(url, tensors, facts)
    manifest = stage.manifest()
    assert manifest is not None
    stage.finish({**manifest.files, item_file(stage, 1): digest}, manifest.facts)
    with pytest.raises(RunFailed, match=r"train-part-00000-0000: the loss of training image idx=\d+ is not finite"):
        work(pipeline, "attribute/mucs/score", cluster)
    assert stage.state().status == "done" and pipeline.stages["attribute/mucs/score"].manifest() is None


def test_a_sum_that_is_not_a_number_is_not_published(copied: Callable[[], Path], data: Dataset, cluster: Cluster):
    """Unit and image are named, and the stage stays unfinished, so that a corrected method goes on from there."""
    pipeline = open_tiny(data, copied(), methods=("users:UndefinedSum",))
    message = r"sum-0001: train-part-00000-0001: the gradient of training image idx=21 is not finite"
    with pytest.raises(RunFailed, match=message):
        work(pipeline, "attribute", cluster)
    assert pipeline.stages["attribute/users:UndefinedSum/total"].state().status == "failed"


def test_a_corrupt_shard_is_one_line_and_exit_code_2(
    copied: Callable[[], Path], data: Dataset, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A command meets the shard while it scores: there is no traceback, and what was finished before stays."""
    monkeypatch.setattr(driver, "session", lambda *_, **__: nullcontext(cluster))
    (tmp_path / "tiny.toml").write_text(tiny_toml(data.url, engine={"train_workers": 1, "actors": [1, 1]}))
    run, shard = copied(), Path(data.url, "train/part-00000.parquet")
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    try:
        command = ["attribute", "--recipe", str(tmp_path / "tiny.toml"), "--run", str(run), "--method", "pixel"]
        result = CliRunner().invoke(app, [*command, "--json"])
    finally:
        shard.write_bytes(whole)
    assert result.exit_code == 2 and result.stdout == "", result.output
    assert "is corrupt" in result.stderr and "part-00000.parquet" in result.stderr
    assert "Traceback" not in result.stderr and (run / "generate/manifest.json").exists()


@pytest.mark.slow
def test_an_input_error_in_a_training_is_raised_at_once(tmp_path: Path, cluster: Cluster):
    """It is not retried as a lost worker would be."""
    own = write_dataset(str(tmp_path / "data"), rows(61, first_idx=0, seed=3), rows(12, first_idx=61, seed=4))
    pipeline = open_tiny(own, tmp_path / "run")
    shard = Path(own.url, "train/part-00000.parquet")
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(InputError, match=r"part-00000\.parquet is corrupt"):
        work(pipeline, "pretrain", cluster)


def test_a_worker_without_memory_is_one_line():
    """Ray's own text is a page that ends in a link."""
    text = "Task was killed due to the node running low on memory.\nRefer to ... how to address the out of memory issue"
    assert last_line(RuntimeError(text)).startswith("a worker was ended because the machine ran out of memory")
    assert last_line(RuntimeError("Traceback\n  ...\nValueError: no\n")) == "ValueError: no"
