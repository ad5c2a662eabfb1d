"""This module has the settings and the card of AbU; mucs_ray/attribution/abu.py computes."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt

from mucs_ray.attribution.card import MethodCard, MethodStage


@dataclass(frozen=True, slots=True, kw_only=True)
class AbUConfig:
    """These settings say how AbU unlearns an item: natural-gradient ascent with a diagonal Fisher matrix (spec 9.8)."""

    updates: Annotated[int, Gt(0)] = 1
    step: Annotated[float, Gt(0)] = 0.01
    """alpha in p + alpha g_p / (N F_p)."""
    draws: Annotated[int, Gt(0)] = 1000
    """Noise levels and noises of the item, averaged into one gradient."""
    draws_per_forward: Annotated[int, Gt(0)] = 100
    fisher_draws: Annotated[int, Gt(0)] = 5
    """Noise levels and noises of each training image, for the Fisher matrix."""
    damping: Annotated[float, Ge(0)] = 0.1
    """This times the mean of F over its tensor is added to F_p."""
    parameters: Literal["attention", "mlp", "all"] = "attention"
    """Attention's qkv matrices (the authors' choice of cross-attention has no match here), MLP matrices, or all."""


CARD = MethodCard(
    name="abu",
    label="AbU",
    summary="a natural-gradient step away from the item, then the change of each training image's loss",
    cost="N x fisher_draws gradients, then N x noises x (items + 1) forwards",
    source="Attribution by unlearning; adapted to transformers",
    stages=(
        MethodStage(
            name="fisher",
            hook="accumulate",
            reads=("method.abu.fisher_draws", "method.abu.parameters"),
            uses_items=False,
        ),
        MethodStage(name="unlearn", hook="fit_item", over="items", reads=("method.abu",), computes_as_in_training=True),
        MethodStage(name="score", hook="score", reads=("score",), compares_losses=True),
    ),
    settings={"score.sigmas": "schedule", "score.keep": 1.0, "score.noise": "shared", "rank.measure": "difference"},
    config_class=AbUConfig,
    implementation="mucs_ray.attribution.abu:AbU",
)
