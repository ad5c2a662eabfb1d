"""What is said of the model before any work, or refused: the noise at which it scores, and what is out of reach."""

from collections.abc import Collection, Iterator
from math import prod, sqrt

import torch

from mucs_ray.attribution.loss_change import scored_levels
from mucs_ray.diffusion.levels import range_text
from mucs_ray.diffusion.model import DiffusionModel
from mucs_ray.diffusion.samplers import sampler_for
from mucs_ray.models.adapters import adapter
from mucs_ray.pipeline.graph import Pipeline
from mucs_ray.pipeline.method_stages import StageSpec

SHORTFALL = 0.4
"""How far below the bound the clamped loss of a network that knows nothing is expected, in units of its spread."""


def notices(pipeline: Pipeline, missing: Collection[str]) -> Iterator[str]:
    """Yield lines on what the `missing` stages will do. InputError for what the model cannot do."""
    if not missing:
        return
    model = adapter(pipeline.recipe.model).model(torch.device("meta"))
    sampler_for(model.process, pipeline.recipe.generate.sampler)
    specs = [pipeline.method_stages[name] for name in missing if name in pipeline.method_stages]
    ranges = [scored_range(model, spec) for spec in specs if spec.method_stage and spec.method_stage.compares_losses]
    yield from dict.fromkeys(ranges)  # the methods of a run nearly always share one
    unlearned = [spec for spec in specs if spec.name == "attribute/mucs/unlearn"]
    yield from (line for spec in unlearned if (line := out_of_reach(model, spec)))


def scored_range(model: DiffusionModel, spec: StageSpec) -> str:
    """Return a line on the noise at which images are scored."""
    return f"scores at {range_text(model.process, scored_levels(model.process, spec.recipe.score, spec.recipe.seed))}"


def out_of_reach(model: DiffusionModel, spec: StageSpec) -> str | None:
    """Return a line if small images keep an item from ever counting as unlearned (spec/backbones 2.5).

    The mean square of D unit numbers spreads by sqrt(2 / D); clamped at its mean, .4 of that is missing on average.
    """
    config, numbers = spec.recipe.method["mucs"], prod(model.shape)
    missing = SHORTFALL * sqrt(2 / numbers)
    if not config.clamp or config.fixed_updates or missing <= config.tolerance:
        return None
    return (
        f"images of {numbers} numbers are so small that even a model that knows nothing has a clamped loss of only"
        f" {1 - missing:.1%} of the bound on average, and method.mucs.tolerance asks for {1 - config.tolerance:.1%}:"
        f" items will be unlearned for all {config.max_updates} updates; set it to {1.5 * missing:.2f}"
    )
