"""Workers are really killed, and the run ends with the same bits as an undisturbed one."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from mucs_ray import storage
from mucs_ray.data.table import Dataset
from mucs_ray.engine.ray_train import TrainJob
from mucs_ray.engine.session import Cluster
from mucs_ray.pipeline.graph import Pipeline
from mucs_ray.run.stages.rank import score_parts
from mucs_ray.store import checkpoint
from processes import killing
from tiny_run import open_tiny, train_plainly, work


def parts_there(pipeline: Pipeline, short: str, start: str) -> int:
    return sum(name.startswith(start) for name in storage.names(pipeline.stages[short].folder))


LONG = {"train": {"updates": 200, "updates_per_epoch": 10}}
MANY = {"score": {"noises": 150}}
"""Enough work that a kill falls in the middle."""


def last_weights(pipeline: Pipeline) -> dict[str, torch.Tensor]:
    stage = pipeline.stages["pretrain"]
    return checkpoint.load(stage.url(stage.part("last", "safetensors")))[0]


def all_scores(pipeline: Pipeline) -> tuple[np.ndarray, np.ndarray]:
    tables = list(score_parts(pipeline.stages["attribute/mucs/score"], pipeline.dataset.units("train"), "skew"))
    idx = np.concatenate([table["idx"].to_numpy() for table in tables])
    return idx, np.concatenate([np.stack(table["score"].to_numpy()) for table in tables])


def test_a_killed_training_worker(data: Dataset, tmp_path: Path, cluster: Cluster):
    """The undisturbed one is the plain loop."""
    pipeline, calm = (open_tiny(data, tmp_path / name, **LONG) for name in ("disturbed", "calm"))
    with killing("RayTrainWorker", lambda: parts_there(pipeline, "pretrain", "state.") > 0) as killed:
        work(pipeline, "pretrain", cluster)
    assert killed
    recipe, stage = calm.recipe, calm.stages["pretrain"]
    train_plainly(TrainJob(dataset=data, stage=stage, model=recipe.model, train=recipe.train, seed=recipe.seed))
    expected, disturbed = last_weights(calm), last_weights(pipeline)
    assert all(torch.equal(expected[name], disturbed[name]) for name in expected)


@pytest.mark.slow  # as chaos, and briefly in test_attempts
def test_a_killed_scorer(data: Dataset, copied: Callable[[], Path], cluster: Cluster):
    """One score for each (item, image), and the same ones."""
    pipeline, undisturbed = (open_tiny(data, copied(), **MANY) for _ in range(2))
    with killing("MapBatches(Scorer)", lambda: parts_there(pipeline, "attribute/mucs/score", "train-") > 0) as killed:
        work(pipeline, "attribute", cluster)
    assert killed
    work(undisturbed, "attribute", cluster)
    (idx, scores), (calm_idx, calm) = all_scores(pipeline), all_scores(undisturbed)
    assert np.array_equal(idx, np.arange(60)) and np.array_equal(idx, calm_idx)
    assert np.array_equal(scores, calm)


def test_lost_parts_are_scored_again_by_a_larger_pool(data: Dataset, copied: Callable[[], Path], cluster: Cluster):
    """With another number of workers the parts come out the same, so the ranking made of them stays valid."""
    changes = {"score": {"keep_losses": True}, "engine": {"actors": [2, 2], "train_workers": 1}}
    pipeline = open_tiny(data, copied(), **changes)
    assert pipeline.plan("attribute")["attribute/mucs/score"].status == "done"
    stage = pipeline.stages["attribute/mucs/score"]
    idx, calm = all_scores(pipeline)
    manifest = stage.manifest()
    for name in ["manifest.json", *list(manifest.files)[1:3]]:
        storage.remove(stage.url(name))
    assert work(pipeline, "attribute", cluster) == ["attribute/mucs/score"]
    assert stage.manifest().files == manifest.files
    assert np.array_equal(all_scores(pipeline)[1], calm) and np.array_equal(all_scores(pipeline)[0], idx)
