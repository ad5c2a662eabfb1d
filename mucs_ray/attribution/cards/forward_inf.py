"""This module has the settings and the card of Forward-INF; mucs_ray/attribution/forward_inf.py computes."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt

from mucs_ray.attribution.card import MethodCard, MethodStage


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardINFConfig:
    """These settings say how Forward-INF unlearns an item: plain gradient ascent on all weights (spec 9.7)."""

    updates: Annotated[int, Gt(0)] = 10
    learning_rate_divisor: Annotated[float, Gt(0)] = 10.0
    """The ascent runs at the training's learning rate divided by this: 1e-5 for the paper's CIFAR-10 model."""
    draws: Annotated[int, Gt(0)] = 100
    """Noise levels and noises of the item in one update."""


CARD = MethodCard(
    name="forward-inf",
    label="Forward-INF",
    summary="a few steps of gradient ascent on the item alone, then the change of each training image's loss",
    cost="N x noises x (items + 1) forwards, one pass over the data",
    source="Forward-INF, adapted to diffusion as in MUCS",
    stages=(
        MethodStage(
            name="unlearn",
            hook="fit_item",
            over="items",
            reads=("method.forward-inf", "train.learning_rate"),
            computes_as_in_training=True,
        ),
        MethodStage(name="score", hook="score", reads=("score",), compares_losses=True),
    ),
    settings={"score.sigmas": "training", "score.noise": "independent", "rank.measure": "difference"},
    config_class=ForwardINFConfig,
    implementation="mucs_ray.attribution.forward_inf:ForwardINF",
)
