"""This module has the settings and the card of MUCS; mucs_ray/attribution/mucs.py computes."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from mucs_ray.attribution.card import MethodCard, MethodStage

Bound = Literal["auto", "drawn", "linear", "zero-output", "by-level"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MUCSConfig:
    """These settings say how a generated item is unlearned (spec 7.1, 7.2)."""

    bound: Bound | Annotated[float, Gt(0)] = "auto"
    """How far the item's loss may rise. "drawn": to the loss of the untrained network. "zero-output": to that of a
    network whose output is 0. "linear": level by level to that of the best linear denoiser. Both are computed from
    E[z^2]. "auto": what is usual for the kind of model. "by-level": that level by level, which in place of "drawn" is
    the loss of an output of 0 at each level. Or a number.
    """
    null_batches: Annotated[int, Gt(0)] = 200
    """Batches of 100 draws for the drawn bound."""
    ascent_weight: Annotated[float, Ge(0)] = 0.2
    """lambda: weight of the ascent on the item beside the descent on the training set."""
    batch_size: Annotated[int, Gt(0)] = 100
    learning_rate_divisor: Annotated[float, Gt(0)] = 10.0
    """Unlearning runs at the training's learning rate divided by this."""
    weight_decay: Annotated[float, Ge(0)] = 0.01
    tolerance: Annotated[float, Ge(0), Lt(1)] = 0.05
    """Done once the item's clamped loss is at least (1 - tolerance) of the bound."""
    max_updates: Annotated[int, Gt(0)] = 2000
    clamp: bool = True
    """Bound the ascent, draw by draw."""
    fixed_updates: Annotated[int, Ge(0)] = 0
    """Exactly so many updates, whatever the item's loss; 0 = until it is high enough."""
    parameters: Literal["mlp", "block", "weights"] = "mlp"
    """MLP weight matrices; or those of attention as well (spec 8, U-C4); or every tensor except biases. Where a network
    has no MLPs, the convolutions of its blocks take their place (docs/networks.md)."""
    sigmas: Literal["training", "schedule"] = "training"
    """Noise levels of both losses: as in training, or random positions on the sampler's schedule (spec 8)."""

    draws: Literal["own", "common"] = "own"
    """Batches, levels and noise of the updates: of each item's own, or the same ones for all items."""
    moments: Literal["fresh", "warm"] = "fresh"
    """What AdamW starts from: nothing, so that its first updates are signs of gradients; or the moments of 20 gradients
    that made no update."""
    retention: Annotated[float, Ge(0), Le(1)] = 0.0
    """Share of each training batch that is drawn from the images with the item's condition."""
    trajectory: Annotated[float, Ge(0), Le(1)] = 0.0
    """Share of the item's draws that are the noisy images which its own sampler visited; the rest are as ever."""
    antithetic: bool = False
    """Also make a model by as many updates with -lambda and no bound, with which the unlearned one is compared."""


CARD = MethodCard(
    name="mucs",
    label="MUCS",
    summary="unlearn the item, then the normalised skew of each training image's loss on the same noise",
    cost="N x noises x (items + 1) forwards, one pass over the data",
    source="MUCS: mirrored unlearning and noise-consistent skew",
    stages=(
        MethodStage(
            name="null",
            hook="fit",
            reads=("model", "method.mucs.bound", "method.mucs.null_batches"),
            uses_model=False,
            uses_items=False,
        ),
        MethodStage(
            name="unlearn",
            hook="fit_item",
            over="items",
            reads=("method.mucs", "train.learning_rate"),
            computes_as_in_training=True,
        ),
        MethodStage(name="score", hook="score", reads=("score",), compares_losses=True),
    ),
    config_class=MUCSConfig,
    implementation="mucs_ray.attribution.mucs:MUCS",
)
