"""What a command has to do that is not done: passes and bytes by counting, and into how many pieces they fall."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

import torch

from mucs_ray.attribution.base import Passes
from mucs_ray.config.engine import GROUPS, LEAST_IMAGES
from mucs_ray.diffusion.model import DiffusionModel
from mucs_ray.models.adapters import adapter
from mucs_ray.pipeline.graph import Pipeline
from mucs_ray.pipeline.method_stages import Task
from mucs_ray.store.run import State

WORK = {
    "features": "{num_images:,} images",
    "accumulate": "{num_images:,} images",
    "fit": "once",
    "fit_item": "{num_items} items",
    "sample": "a sample x {num_items} items",
    "fit_screen": "once",
    "score": "{num_images:,} images x {num_items} items",
}
"""What the parts of methods go over."""

TESTING = ("retrain", "regenerate")
"""Stages of the counterfactual test, one or more a method."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Of one stage, or of all that retrain or regenerate."""

    stage: str
    work: str
    passes: Passes
    written_bytes: int
    pieces: int
    """About equal ones, of which a worker does one at a time."""


def left_to_do(pipeline: Pipeline, states: Mapping[str, State], *, processor: str) -> Iterator[Work]:
    """Of the stages that are not done, in order; rankings and comparisons of images are negligible.

    `processor`: "GPU" or "CPU", what a worker has one of.
    """
    model = adapter(pipeline.recipe.model).model(torch.device("meta"))
    every = sum(4 * each.numel() for each in model.parameters())
    todo = [name for name, state in states.items() if state.status != "done"]
    # all retrainings together, for they run side by side, and all that is generated from them
    rows = Counter(name.split("/")[0] if name.startswith(TESTING) else name for name in todo)
    for name, count in rows.items():
        if name == "retrain" or (name == "pretrain" and pipeline.recipe.trains):
            yield trainings(pipeline, name, count, every=every, processor=processor)
        elif name in ("generate", "regenerate"):
            yield generation(pipeline, name, count, model)
        elif task := pipeline.tasks.get(name):
            yield from part(pipeline, task, model)


def trainings(pipeline: Pipeline, name: str, count: int, *, every: int, processor: str) -> Work:
    """To their last update, though most stop sooner; `every`: bytes of the network."""
    recipe = pipeline.recipe
    train = recipe.train
    workers = recipe.engine.train_workers or (max(1, train.batch_size // LEAST_IMAGES) if processor == "GPU" else 2)
    updates = f"{train.updates:,} updates (at most)"
    return Work(
        stage=name,
        work=updates if name == "pretrain" else f"{count} x {updates}",
        passes=Passes(backwards=count * train.updates * train.batch_size),
        written_bytes=count * every * (5 if name == "pretrain" else 2),  # a retraining's state is deleted at its end
        pieces=count * workers,
    )


def generation(pipeline: Pipeline, name: str, count: int, model: DiffusionModel) -> Work:
    """Targets and controls; only targets are generated again where each has a retraining of its own."""
    config = pipeline.recipe.generate
    samples = config.items
    if name == "generate" or pipeline.recipe.remove.mode != "per-item":
        samples += config.controls
    several = f"{count} x " if name == "regenerate" else ""
    evaluations = (2 * config.steps - 1) * (1 if config.guidance == 1 else 2)
    return Work(
        stage=name,
        work=f"{several}{samples} items",
        passes=Passes(forwards=count * samples * evaluations),
        written_bytes=count * samples * 4 * prod(model.shape),
        pieces=count * samples,
    )


def part(pipeline: Pipeline, task: Task, model: DiffusionModel) -> Iterator[Work]:
    """The work of a method's stage; nothing for a ranking. `model`: the names and shapes of its tensors count."""
    if task.part is None:
        return
    stage, method = task.part, task.load()
    units, num_items = len(pipeline.dataset.units("train")), pipeline.recipe.generate.items
    pieces = {"fit": 1, "fit_screen": 1, "fit_item": num_items, "accumulate": min(GROUPS, units)}
    counts = {"num_images": pipeline.dataset.card.num_images("train"), "num_items": num_items}
    yield Work(
        stage=task.name,
        work=WORK[stage.hook].format(**counts),
        passes=method.passes(stage, task.recipe, **counts),
        written_bytes=method.written_bytes(stage, task.recipe, model=model, **counts),
        pieces=pieces.get(stage.hook, units),
    )
