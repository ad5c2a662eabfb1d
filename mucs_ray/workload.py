"""What a command has to do that is not done: passes and bytes by counting, and into how many pieces they fall."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mucs_ray.attribution.base import Passes
from mucs_ray.attribution.cards import das, forward_inf
from mucs_ray.engine_config import GROUPS, LEAST_IMAGES
from mucs_ray.models.dit import DiT, unlearned_names
from mucs_ray.pipeline import Pipeline
from mucs_ray.store.run import State
from mucs_ray.tasks import Task

WORK = {
    "features": "{num_images:,} images",
    "total": "{num_images:,} images",
    "prepare": "once",
    "adapt": "{num_items} items",
    "sample": "a sample x {num_items} items",
    "bounds": "once",
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
    parameters = {name: each.numel() for name, each in DiT(pipeline.recipe.model).named_parameters()}
    every = 4 * sum(parameters.values())
    changed = 4 * sum(parameters[name] for name in unlearned_names(DiT(pipeline.recipe.model)))
    todo = [name for name, state in states.items() if state.status != "done"]
    # all retrainings together, for they run side by side, and all that is generated from them
    rows = Counter(name.split("/")[0] if name.startswith(TESTING) else name for name in todo)
    for name, count in rows.items():
        if name == "retrain" or (name == "pretrain" and not pipeline.recipe.weights):
            yield trainings(pipeline, name, count, every=every, processor=processor)
        elif name in ("generate", "regenerate"):
            yield generation(pipeline, name, count)
        elif task := pipeline.tasks.get(name):
            yield from part(pipeline, task, every=every, changed=changed)


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


def generation(pipeline: Pipeline, name: str, count: int) -> Work:
    """Targets and controls; only targets are generated again where each has a retraining of its own."""
    config, size = pipeline.recipe.generate, pipeline.dataset.card.size
    samples = config.items
    if name == "generate" or pipeline.recipe.remove.mode != "per-item":
        samples += config.controls
    several = f"{count} x " if name == "regenerate" else ""
    evaluations = (2 * config.steps - 1) * (1 if config.guidance == 1 else 2)
    return Work(
        stage=name,
        work=f"{several}{samples} items",
        passes=Passes(forwards=count * samples * evaluations),
        written_bytes=count * samples * 4 * 3 * size**2,
        pieces=count * samples,
    )


def part(pipeline: Pipeline, task: Task, *, every: int, changed: int) -> Iterator[Work]:
    """Of a method; nothing for a ranking. `every`, `changed`: bytes of the network, and of what MUCS changes of it."""
    if task.part is None:
        return
    units, num_items = len(pipeline.dataset.units("train")), pipeline.recipe.generate.items
    pieces = {"prepare": 1, "bounds": 1, "adapt": num_items, "total": min(GROUPS, units)}
    counts = {"num_images": pipeline.dataset.card.num_images("train"), "num_items": num_items}
    yield Work(
        stage=task.name,
        work=WORK[task.part.hook].format(**counts),
        passes=task.method.load().passes(task.part, task.recipe, **counts),
        written_bytes=written_bytes(task, changed=changed, every=every, **counts),
        pieces=pieces.get(task.part.hook, units),
    )


def written_bytes(task: Task, *, changed: int, every: int, num_images: int, num_items: int) -> int:
    """About what a part leaves in the run directory; `changed` and `every`: bytes of what MUCS changes, and of all."""
    assert task.part is not None
    if task.part.hook == "score":
        score = task.recipe.score
        kept = 2 * num_images * score.noises * (num_items + 1) if score.keep_losses else 0
        return 8 * num_images * num_items + kept
    is_a = task.method.implementation
    if task.part.hook == "adapt":
        return num_items * (every if is_a == forward_inf.CARD.implementation else changed)
    if task.part.hook == "features":
        return 4 * num_images * (task.recipe.das.dim if is_a == das.CARD.implementation else task.recipe.dtrak.dim)
    return 0
