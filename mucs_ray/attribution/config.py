"""These are the settings that methods share; their defaults are the paper's where it states them (spec 7, 15).

The settings of one method are on its card (mucs_ray.attribution.cards), under [method.NAME] of a recipe.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

from mucs_ray.training.config import Precision


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreConfig:
    """These settings say how training images are scored (spec 7.3)."""

    noises: Annotated[int, Gt(0)] = 100
    keep: Annotated[float, Gt(0), Le(1)] = 0.7
    """Share of the sampler's schedule that is used, from the largest sigma down."""
    lowest_sigma: Annotated[float, Gt(0)] | None = None
    """In place of `keep`: the lowest noise that is used, sigma = s / alpha. The same share of a schedule ends at
    another noise in each family of networks; at an equal sigma they can be compared."""
    epsilon: Annotated[float, Gt(0)] = 1e-3
    precision: Literal["auto"] | Precision = "fp32"
    """The precision of the network; losses are fp32. "auto": bf16 on GPUs, and on CPUs where a worker finds it faster,
    unless it changes the order of some images' scores.
    """
    images_per_forward: Literal["auto"] | Annotated[int, Gt(0)] = 1
    """Images (times `noises`) in one forward, or "auto": what a worker finds to be fastest before the pass. At 1, fp32
    scores are bitwise independent of how data is cut. Fewer where the device's memory is too small."""
    compile: Literal["auto", "on", "off"] = "off"
    """torch.compile for the network's blocks. "auto": where a worker finds it faster, and the pass is long enough."""
    keep_losses: bool = False
    """Also store every loss before and after, in fp16."""
    sigmas: Literal["schedule", "training", "both"] = "schedule"
    """The largest levels of the sampler's schedule, or levels drawn as in training (then `keep` says nothing). "both":
    half of them on the schedule, half at even quantiles of the training levels."""
    noise: Literal["shared", "independent"] = "shared"
    """One set of levels and noise for every image, before and after; or each loss its own draws (spec 8, S-C2)."""
    weights: Literal["even", "linear", "squared"] = "even"
    """How much the skew at each shared noise counts for an item: evenly, or in proportion to the item's own skew there
    or its square (mucs_ray/attribution/matched_filter.py)."""


Measure = Literal["skew", "difference", "absolute"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankConfig:
    """These settings say how many images an item is attributed to."""

    top_percent: Annotated[float, Gt(0), Le(100)] = 2.0
    """Percent of the training set: k = int(round(N / 100) * top_percent), at least 1 (spec 1)."""
    top: Annotated[int, Ge(0)] = 0
    """k itself; 0 = by top_percent."""
    measure: Measure = "skew"
    """The score of the methods that compare losses: normalised skew, mean difference (after - before), or its absolute
    value.
    """
    correction: Literal["none", "mutual", "whitened"] = "none"
    """"mutual": rank by the geometric mean of the image's rank for the item and the item's rank for the image, so that
    images near the top for every item come down. "whitened": take out of the scores what the items' columns have in
    common (mucs_ray/attribution/whitening.py)."""
    whitening: Annotated[float, Gt(0)] = 1.0
    """delta of the correction "whitened": a smaller one takes out more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsembleConfig:
    """This setting says where `ensemble/learned` has its weights from (spec 10)."""

    learned_from: str | None = None
    """Run directory of finished counterfactual tests of the same methods on other seeds."""
