"""Pipelines on the tiny data set, run inside a Ray that is already there, and trainings without Ray Train.

A training through Ray Train starts five processes, which takes 15 s of CPU; tests that are not about it train in a
plain loop, whose weights are the same (tests/engine/test_ray_equals_plain.py).
"""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from mucs_ray.data.table import Dataset
from mucs_ray.engine.ray_train import TrainJob, TrainRun, run_training
from mucs_ray.engine.session import Cluster
from mucs_ray.pipeline.graph import Pipeline
from mucs_ray.run import driver
from mucs_ray.training.step import TrainState, WorkerContext
from tiny import tiny_recipe


def open_tiny(
    dataset: Dataset,
    run: Path,
    *,
    methods: tuple[str, ...] = ("mucs",),
    weights_dir: str | None = None,
    **changes: object,
) -> Pipeline:
    """Open a pipeline on the tiny data set.

    By default one worker trains and one scores, which start sooner than two, and losses are kept, so that the scores of
    the finished run of tests/engine are valid in its copies.
    """
    changes = {"engine": {"train_workers": 1, "actors": [1, 1]}, "score": {"keep_losses": True}, **changes}
    console = Console(file=io.StringIO())
    recipe = tiny_recipe(dataset.url, **changes)
    return Pipeline.open(recipe, dataset, str(run), console=console, methods=methods, weights_dir=weights_dir)


def work(pipeline: Pipeline, target: str, cluster: Cluster) -> list[str]:
    """Run the driver inside the running session, up to a command's goal or to a part of MUCS's attribution."""
    part = target.startswith("attribute/")
    todo = driver.missing_stages([pipeline], "attribute" if part else target)
    names = [name for _, name in todo]
    if part and target in names:
        todo = todo[: names.index(target) + 1]
    driver.run_stages([stage for stage in todo if stage.name not in driver.RESULTS])
    for stage in todo:
        if stage.name in driver.RESULTS:
            driver.write_result(stage)
    return [name for _, name in todo]


def train_plainly(job: TrainJob, notes: dict[str, Any] | None = None) -> TrainState:
    """Train in this process; `notes` receives what a worker would post."""
    posted: dict[str, Any] = {} if notes is None else notes
    return run_training(job, WorkerContext(), torch.device("cpu"), posted.__setitem__)


def train_all_plainly(runs: Sequence[TrainRun], *_: object, **__: object) -> Iterator[tuple[int, dict[str, Any]]]:
    """Stand in for `engine.trainings.train_all` with one training after the other in this process."""
    for number, run in enumerate(runs):
        notes: dict[str, Any] = {}
        train_plainly(run.job, notes)
        yield number, {**notes["result"], "images_per_second": 0.0, "seconds": 0.0}


def trained_weights(dataset: Dataset, folder: Path) -> str:
    """Train on a data set with the tiny recipe, in this process, and return the URL of the weights."""
    pipeline = open_tiny(dataset, folder)
    stage, recipe = pipeline.stages["pretrain"], pipeline.recipe
    train_plainly(TrainJob(dataset=dataset, stage=stage, model=recipe.model, train=recipe.train, seed=recipe.seed))
    return stage.url(stage.part("last", "safetensors"))
