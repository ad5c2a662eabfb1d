"""The knobs of MUCS; defaults are the paper's (spec 7, 15)."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from mucs_ray.training.config import Precision


@dataclass(frozen=True, slots=True, kw_only=True)
class UnlearnConfig:
    """How a generated item is unlearned (spec 7.1, 7.2)."""

    null_loss: Literal["auto", "analytic"] | Annotated[float, Gt(0)] = "auto"
    """Loss of an untrained network, the bound of the ascent: drawn, computed from E[x^2], or given."""
    null_batches: Annotated[int, Gt(0)] = 200
    """Batches of 100 draws for null_loss = "auto"."""
    ascent_weight: Annotated[float, Ge(0)] = 0.2
    """lambda: weight of the ascent on the item beside the descent on the training set."""
    batch_size: Annotated[int, Gt(0)] = 100
    learning_rate_divisor: Annotated[float, Gt(0)] = 10.0
    """Unlearning runs at the training's learning rate divided by this."""
    weight_decay: Annotated[float, Ge(0)] = 0.01
    tolerance: Annotated[float, Ge(0), Lt(1)] = 0.05
    """Done once the item's clamped loss is at least (1 - tolerance) of the null loss."""
    max_updates: Annotated[int, Gt(0)] = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreConfig:
    """How training images are scored (spec 7.3)."""

    noises: Annotated[int, Gt(0)] = 100
    keep: Annotated[float, Gt(0), Le(1)] = 0.7
    """Share of the rho-schedule that is used, from the largest sigma down."""
    epsilon: Annotated[float, Gt(0)] = 1e-3
    precision: Precision = "fp32"
    images_per_forward: Annotated[int, Gt(0)] = 1
    """Images (times `noises`) in one forward. At 1, fp32 scores are bitwise independent of how data is cut."""
    keep_losses: bool = False
    """Also store every loss before and after, in fp16."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankConfig:
    """How many images an item is attributed to."""

    top_percent: Annotated[float, Gt(0), Le(100)] = 2.0
    """Percent of the training set: k = int(round(N / 100) * top_percent), at least 1 (spec 1)."""
