"""The knobs of the methods; defaults are the paper's where it tells them (spec 7, 9, 15)."""

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
    clamp: bool = True
    """Bound the ascent by the null loss, draw by draw."""
    fixed_updates: Annotated[int, Ge(0)] = 0
    """Exactly so many updates, whatever the item's loss; 0 = until it is high enough."""
    parameters: Literal["mlp", "block"] = "mlp"
    """MLP weight matrices, or those of attention as well (spec 8, U-C4)."""
    sigmas: Literal["training", "schedule"] = "training"
    """Noise levels of both losses: as in training, or random positions on the sampler's schedule (spec 8)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreConfig:
    """How training images are scored (spec 7.3)."""

    noises: Annotated[int, Gt(0)] = 100
    keep: Annotated[float, Gt(0), Le(1)] = 0.7
    """Share of the rho-schedule that is used, from the largest sigma down."""
    epsilon: Annotated[float, Gt(0)] = 1e-3
    precision: Literal["auto"] | Precision = "fp32"
    """Of the network; losses are fp32. "auto": bf16 on GPUs, and on CPUs that a worker finds to be faster with it."""
    images_per_forward: Literal["auto"] | Annotated[int, Gt(0)] = 1
    """Images (times `noises`) in one forward, or "auto": what a worker finds to be fastest before the pass. At 1, fp32
    scores are bitwise independent of how data is cut. Fewer where the device's memory is too small."""
    compile: Literal["auto", "on", "off"] = "off"
    """torch.compile for the network's blocks. "auto": where a worker finds it faster, and the pass is long enough."""
    keep_losses: bool = False
    """Also store every loss before and after, in fp16."""
    sigmas: Literal["schedule", "training"] = "schedule"
    """The largest levels of the sampler's schedule, or levels drawn as in training (then `keep` says nothing)."""
    noise: Literal["shared", "independent"] = "shared"
    """One set of levels and noise for every image, before and after; or each loss its own draws (spec 8, S-C2)."""


Share = Annotated[float, Gt(0), Lt(1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScreenConfig:
    """How `mucs/screen` leaves images out early."""

    recall: Share = 0.98
    """Share of the true top-k, over all items, that is to be found."""
    sample: Annotated[int, Ge(10)] = 1000
    """Training images, drawn at random, that are scored in full to learn the bounds."""
    rounds: tuple[Share, Share] = (0.1, 0.3)
    """Shares of the noises after which images are left out."""


Measure = Literal["skew", "difference", "absolute"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardINFConfig:
    """How Forward-INF unlearns an item: plain gradient ascent, all weights (spec 9.7)."""

    updates: Annotated[int, Gt(0)] = 10
    learning_rate_divisor: Annotated[float, Gt(0)] = 10.0
    """The ascent runs at the training's learning rate divided by this: 1e-5 for the paper's CIFAR-10 model."""
    draws: Annotated[int, Gt(0)] = 100
    """Noise levels and noises of the item in one update."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AbUConfig:
    """How AbU unlearns an item: natural-gradient ascent with a diagonal Fisher matrix (spec 9.8)."""

    updates: Annotated[int, Gt(0)] = 1
    step: Annotated[float, Gt(0)] = 0.01
    """alpha in p + alpha g_p / (N F_p)."""
    draws: Annotated[int, Gt(0)] = 1000
    """Of the item, averaged into one gradient."""
    draws_per_forward: Annotated[int, Gt(0)] = 100
    fisher_draws: Annotated[int, Gt(0)] = 5
    """Of each training image, for the Fisher matrix."""
    damping: Annotated[float, Ge(0)] = 0.1
    """Added to F_p: this times the mean of F over its tensor."""
    parameters: Literal["attention", "mlp", "all"] = "attention"
    """Attention's qkv matrices (the authors' choice of cross-attention has no match here), MLP matrices, or all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DTRAKConfig:
    """Gradient features of D-TRAK, and how they are compared (spec 9.5)."""

    noises: Annotated[int, Gt(0)] = 100
    dim: Annotated[int, Gt(0)] = 16384
    """Width of the projected gradient."""
    noises_per_forward: Annotated[int, Gt(0)] = 100
    """Noises in one backward pass; fewer need less memory and give the same features up to rounding."""
    signs: Annotated[int, Gt(0)] = 1
    """Places in the projection that each weight's gradient goes to."""
    damping: Annotated[float, Gt(0)] = 0.1
    """lambda = damping * trace(K) / dim."""
    parameters: Literal["all", "mlp"] = "all"
    gradients: Literal["of_average", "per_noise"] = "of_average"
    """Average the output function over the noises, then one backward pass an image; or, as published, one for each
    noise, averaged after. The same features up to rounding: the average is linear."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DASConfig:
    """Gradient features of DAS, and how they are compared (spec 9.6)."""

    noises: Annotated[int, Gt(0)] = 100
    dim: Annotated[int, Gt(0)] = 16384
    noises_per_forward: Annotated[int, Gt(0)] = 100
    signs: Annotated[int, Gt(0)] = 1
    damping: Annotated[float, Gt(0)] = 0.1
    parameters: Literal["all", "mlp"] = "all"
    gradients: Literal["of_average", "per_noise"] = "of_average"
    """One backward pass an image, its gradient scaled to length 1; or, as published, one for each noise, each scaled to
    length 1 and then averaged."""
    square: bool = True
    leverage: bool = False
    """Divide by 1 - h_i."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankConfig:
    """How many images an item is attributed to."""

    top_percent: Annotated[float, Gt(0), Le(100)] = 2.0
    """Percent of the training set: k = int(round(N / 100) * top_percent), at least 1 (spec 1)."""
    measure: Measure = "skew"
    """Of the methods that compare losses: normalised skew, mean difference (after - before), or its absolute value."""
    correction: Literal["none", "mutual"] = "none"
    """"mutual": rank by the geometric mean of the image's rank for the item and the item's rank for the image, so that
    images near the top for every item come down."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsembleConfig:
    """Where `ensemble/learned` has its weights from (spec 10)."""

    learned_from: str | None = None
    """Run directory of finished counterfactual tests of the same methods on other seeds."""
