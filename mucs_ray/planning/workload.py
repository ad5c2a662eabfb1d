"""What a command has to do that is not done: passes and bytes by counting, and into how many pieces they fall."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

import torch

from mucs_ray.attribution.base import Passes
from mucs_ray.config.engine import LEAST_IMAGES, SUM_SHARDS
from mucs_ray.diffusion.model import DiffusionModel
from mucs_ray.diffusion.samplers import evaluations
from mucs_ray.models.adapters import adapter
from mucs_ray.pipeline.graph import Pipeline
from mucs_ray.pipeline.method_stages import StageSpec
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
"""What the stages of methods go over, by their hook."""

TESTING = ("retrain", "regenerate")
"""Stages of the counterfactual test, one or more a method."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The work of one stage, or of all that retrain or regenerate."""

    stage: str
    work: str
    passes: Passes
    written_bytes: int
    pieces: int
    """About equal pieces, of which a worker does one at a time."""


def left_to_do(pipeline: Pipeline, states: Mapping[str, State], *, processor: str) -> Iterator[Work]:
    """The work of the stages that are not done, in order; rankings and comparisons of images are negligible.

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
        elif spec := pipeline.method_stages.get(name):
            yield from method_stage_work(pipeline, spec, model)


def trainings(pipeline: Pipeline, name: str, count: int, *, every: int, processor: str) -> Work:
    """The work of trainings to their last update, though most stop sooner; `every`: bytes of the network."""
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
    """The work of generating targets and controls; only targets come again where each has a retraining of its own."""
    config = pipeline.recipe.generate
    samples = config.items
    if name == "generate" or pipeline.recipe.remove.mode != "per-item":
        samples += config.controls
    times = f"{count} x " if name == "regenerate" else ""
    forwards = evaluations(model.process, config.sampler, config.steps) * (1 if config.guidance == 1 else 2)
    return Work(
        stage=name,
        work=f"{times}{samples} items",
        passes=Passes(forwards=count * samples * forwards),
        written_bytes=count * samples * 4 * prod(model.shape),
        pieces=count * samples,
    )


def method_stage_work(pipeline: Pipeline, spec: StageSpec, model: DiffusionModel) -> Iterator[Work]:
    """The work of a method's stage; nothing for a ranking. `model`: the names and shapes of its tensors count."""
    if spec.method_stage is None:
        return
    stage, method = spec.method_stage, spec.load()
    units, num_items = len(pipeline.dataset.units("train")), pipeline.recipe.generate.items
    pieces = {"fit": 1, "fit_screen": 1, "fit_item": num_items, "accumulate": min(SUM_SHARDS, units)}
    counts = {"num_images": pipeline.dataset.card.num_images("train"), "num_items": num_items}
    yield Work(
        stage=spec.name,
        work=WORK[stage.hook].format(**counts),
        passes=method.passes(stage, spec.recipe, **counts),
        written_bytes=method.written_bytes(stage, spec.recipe, model=model, **counts),
        pieces=pieces.get(stage.hook, units),
    )
