"""The work that a command has left: its passes through the network and bytes, counted, and the number of its pieces."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

import torch

from mucs_ray.attribution.base import Passes
from mucs_ray.attribution.forgetting.config import ANCHORED
from mucs_ray.attribution.forgetting.score import score_grid
from mucs_ray.config.engine import LEAST_IMAGES, SUM_SHARDS
from mucs_ray.config.recipe import GenerateConfig, Recipe
from mucs_ray.data.table import Dataset
from mucs_ray.diffusion.model import DiffusionModel
from mucs_ray.diffusion.samplers import evaluations
from mucs_ray.evaluation.subsets import NUM_NOISES
from mucs_ray.models.adapters import adapter
from mucs_ray.pipeline.graph import FRESH, RETRAINS, Pipeline, StageRef
from mucs_ray.pipeline.groups_stages import FORGOTTEN, FULL, SCORED
from mucs_ray.pipeline.lds_stages import OUTPUTS
from mucs_ray.pipeline.method_stages import StageSpec
from mucs_ray.store.run import State

WORK = {
    "features": "{num_images:,} images",
    "accumulate": "{num_images:,} images",
    "fit": "once",
    "fit_item": "{num_items} items",
    "fit_together": "once",
    "sample": "a sample x {num_items} items",
    "fit_screen": "once",
    "score": "{num_images:,} images x {num_items} items",
}
"""The work of a method's stage in words, by the stage's hook."""

TESTING = (*RETRAINS, "regenerate", OUTPUTS)
"""The first folders of the names of stages of which there are many."""
BYTES_OF_AN_ERROR = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The work of one stage, or of all retrainings or regenerations."""

    stage: str
    work: str
    passes: Passes
    written_bytes: int
    pieces: int
    """The number of about equal pieces, of which a worker does one at a time."""


def left_to_do(pipeline: Pipeline, states: Mapping[str, State], *, processor: str) -> Iterator[Work]:
    """Yield the work of the stages that are not done, in order; rankings and comparisons of images are negligible.

    `processor` is "GPU" or "CPU", of which a worker has one.
    """
    recipe = pipeline.recipe
    model = adapter(recipe.model).model(torch.device("meta"))
    network_bytes = sum(4 * parameter.numel() for parameter in model.parameters())
    missing = [name for name, state in states.items() if state.status != "done"]
    # all retrainings together, for they run side by side, and all that is generated from them
    rows = Counter(StageRef(pipeline, name).phase if name.startswith(TESTING) else name for name in missing)
    for name, count in rows.items():
        if name in RETRAINS or (name == "pretrain" and recipe.trains):
            yield trainings(recipe, name, count, network_bytes=network_bytes, processor=processor)
        elif name == OUTPUTS:
            yield subset_outputs(recipe, count, model)
        elif name in (FRESH, "generate", "regenerate"):
            if not (pipeline.queries and name == "generate"):  # pictures of the user's are only read
                yield generation(pipeline, name, count, model)
        elif name.startswith(f"{FORGOTTEN}/"):
            yield unlearning_of_groups(pipeline, name, network_bytes=network_bytes)
        elif name.startswith(f"{SCORED}/"):
            yield scoring_of_groups(pipeline, name, model)
        elif spec := pipeline.method_stages.get(name):
            yield from method_stage_work(spec, pipeline.dataset, model)


def trainings(recipe: Recipe, name: str, count: int, *, network_bytes: int, processor: str) -> Work:
    """Return the work of trainings up to their last update, though most stop sooner."""
    train = recipe.train
    workers = recipe.engine.train_workers or (max(1, train.batch_size // LEAST_IMAGES) if processor == "GPU" else 2)
    updates = f"{train.updates:,} updates (at most)"
    return Work(
        stage=name,
        work=updates if name == "pretrain" else f"{count} x {updates}",
        passes=Passes(backwards=count * train.updates * train.batch_size),
        # a retraining's state is deleted at its end
        written_bytes=count * network_bytes * (5 if name == "pretrain" else 2),
        pieces=count * workers,
    )


def forwards_an_item(config: GenerateConfig, model: DiffusionModel) -> int:
    """Return the forwards that generating an image takes: with guidance, two for each evaluation."""
    return evaluations(model.process, config.sampler, config.steps) * (1 if config.guidance == 1 else 2)


def generation(pipeline: Pipeline, name: str, count: int, model: DiffusionModel) -> Work:
    """Return the work of generating targets and controls, or fresh images of the conditions of pictures.

    If each target has a retraining of its own, only targets are generated again.
    """
    recipe = pipeline.recipe
    config = recipe.generate
    samples = config.items * (recipe.evaluate.fresh if pipeline.regeneration == "fresh" else 1)
    if name == "generate" or recipe.remove.modes != ("per-item",):
        samples += config.controls
    times = f"{count} x " if name == "regenerate" else ""
    forwards = forwards_an_item(config, model)
    return Work(
        stage=name,
        work=f"{times}{samples} items",
        passes=Passes(forwards=count * samples * forwards),
        written_bytes=count * samples * 4 * prod(model.shape),
        pieces=count * samples,
    )


def subset_outputs(recipe: Recipe, count: int, model: DiffusionModel) -> Work:
    """Return the work of generating the targets by the models of subsets, and of measuring the targets' losses."""
    config = recipe.generate
    forwards = forwards_an_item(config, model)
    return Work(
        stage=OUTPUTS,
        work=f"{count} x {config.items} items",
        passes=Passes(forwards=count * config.items * (forwards + NUM_NOISES)),
        written_bytes=count * config.items * 4 * (prod(model.shape) + 1),
        pieces=count,
    )


def unlearning_of_groups(pipeline: Pipeline, name: str, *, network_bytes: int) -> Work:
    """Return the work of unlearning each group in one way; finding neighbours is negligible."""
    config, num_groups = pipeline.recipe.groups, len(pipeline.groups.names)
    unlearner = name.removeprefix(f"{FORGOTTEN}/")
    images = num_groups * config.updates * config.batch_size
    # images of an update that the full model answers too: those of the group, with and without class, and others
    guided = 2 if unlearner == "esd" else int(unlearner in ANCHORED)
    taught = config.retain == "distil" or unlearner in ANCHORED
    return Work(
        stage=name,
        work=f"{num_groups} groups x {config.updates:,} updates",
        passes=Passes(
            backwards=images * (1 if unlearner == "retain-only" else 2),
            forwards=images * (guided + taught),
        ),
        written_bytes=num_groups * network_bytes,
        pieces=num_groups,
    )


def scoring_of_groups(pipeline: Pipeline, name: str, model: DiffusionModel) -> Work:
    """Return the work of measuring the errors of the full model, or of the models without each group."""
    recipe = pipeline.recipe
    models = 1 if name == f"{SCORED}/{FULL}" else len(pipeline.groups.names)
    levels = len(score_grid(model.process, recipe.groups, recipe.score).level)
    forwards = models * recipe.generate.items * recipe.groups.noise_sets * levels
    return Work(
        stage=name,
        work=f"{recipe.generate.items} items x {models} model{'' if models == 1 else 's'}",
        passes=Passes(forwards=forwards),
        written_bytes=forwards * BYTES_OF_AN_ERROR,
        pieces=models,
    )


def method_stage_work(spec: StageSpec, dataset: Dataset, model: DiffusionModel) -> Iterator[Work]:
    """Yield the work of a method's stage; nothing for a ranking. Only names and shapes of the model's tensors count."""
    if spec.method_stage is None:
        return
    stage, method = spec.method_stage, spec.load()
    units, num_items = len(dataset.units("train")), spec.recipe.generate.items
    pieces = {"fit": 1, "fit_together": 1, "fit_screen": 1, "fit_item": num_items, "accumulate": min(SUM_SHARDS, units)}
    counts = {"num_images": dataset.card.num_images("train"), "num_items": num_items}
    yield Work(
        stage=spec.name,
        work=WORK[stage.hook].format(**counts),
        passes=method.passes(stage, spec.recipe, **counts),
        written_bytes=method.written_bytes(stage, spec.recipe, model=model, **counts),
        pieces=pieces.get(stage.hook, units),
    )
