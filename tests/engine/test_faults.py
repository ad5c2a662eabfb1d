"""Workers are really killed, and the run ends with the same bits as an undisturbed one."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from mucs_ray import storage
from mucs_ray.data.table import Dataset
from mucs_ray.engine.progress import bar
from mucs_ray.engine.ray_train import TrainJob, TrainRun
from mucs_ray.engine.session import Cluster
from mucs_ray.engine.trainings import train_all
from mucs_ray.pipeline.graph import Pipeline
from mucs_ray.run.stages.rank import score_parts
from mucs_ray.store import checkpoint
from mucs_ray.store.run import Stage
from processes import killing, pids_of
from tiny_run import open_tiny, train_plainly, work


def parts_there(pipeline: Pipeline, short: str, start: str) -> int:
    return sum(name.startswith(start) for name in storage.names(pipeline.stages[short].folder))


LONG = {"train": {"updates": 80, "updates_per_epoch": 10}}
MANY = {"score": {"noises": 150}}
"""Enough work that a kill falls in the middle."""


def last_weights(stage: Stage) -> dict[str, torch.Tensor]:
    return checkpoint.load(stage.url(stage.part("last", "safetensors")))[0]


def all_scores(pipeline: Pipeline) -> tuple[np.ndarray, np.ndarray]:
    tables = list(score_parts(pipeline.stages["attribute/mucs/score"], pipeline.dataset.units("train"), "skew"))
    idx = np.concatenate([table["idx"].to_numpy() for table in tables])
    return idx, np.concatenate([np.stack(table["score"].to_numpy()) for table in tables])


def test_a_killed_worker_of_two_trainings(data: Dataset, tmp_path: Path, cluster: Cluster):
    """One group of workers trains twice and is killed in the second training; the undisturbed one is the plain loop."""
    recipe = open_tiny(data, tmp_path / "run", **LONG).recipe
    url, engine = str(tmp_path / "run"), replace(recipe.engine, trainings=1)
    jobs = [
        TrainJob(
            dataset=data,
            stage=Stage(run_url=url, name=f"retrain/{name}", reads={}, inputs={}),
            model=recipe.model,
            train=recipe.train,
            seed=recipe.seed,
            removed=removed,
        )
        for name, removed in (("first", frozenset()), ("second", frozenset(range(9))))
    ]
    for job in jobs:
        job.stage.begin([])

    def second_has_begun() -> bool:
        return any(name.startswith("state.") for name in storage.names(jobs[1].stage.folder))

    runs = [TrainRun(job=job, num_workers=1) for job in jobs]
    with bar(Console(file=io.StringIO()), "retrain", 160, "updates") as progress:
        trained = train_all(runs, replace(cluster, engine=engine), bar=progress)
        done = [next(trained)]
        group = pids_of("RayTrainWorker")
        with killing("RayTrainWorker", second_has_begun) as killed:
            done += trained
    assert killed == group and len(group) == 1
    assert [(number, facts["updates"]) for number, facts in done] == [(0, 80), (1, 80)]
    for job in jobs:
        calm = replace(job, stage=Stage(run_url=str(tmp_path / "calm"), name=job.stage.name, reads={}, inputs={}))
        train_plainly(calm)
        expected, disturbed = last_weights(calm.stage), last_weights(job.stage)
        assert all(torch.equal(expected[name], disturbed[name]) for name in expected)


@pytest.mark.slow  # as chaos, and briefly in test_attempts
def test_a_killed_scorer(data: Dataset, copied: Callable[[], Path], cluster: Cluster):
    """There is one score for each (item, image), and it is the same as without the kill."""
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
    pipeline = open_tiny(data, copied(), engine={"actors": [2, 2], "train_workers": 1})
    assert pipeline.plan("attribute")["attribute/mucs/score"].status == "done"
    stage = pipeline.stages["attribute/mucs/score"]
    idx, calm = all_scores(pipeline)
    manifest = stage.manifest()
    for name in ["manifest.json", *list(manifest.files)[1:3]]:
        storage.remove(stage.url(name))
    assert work(pipeline, "attribute", cluster) == ["attribute/mucs/score"]
    assert stage.manifest().files == manifest.files
    assert np.array_equal(all_scores(pipeline)[1], calm) and np.array_equal(all_scores(pipeline)[0], idx)
