"""The knobs of the counterfactual test; defaults are the paper's (spec 11)."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge

Mode = Literal["union", "per-item", "matched"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveConfig:
    """Which training images a retraining leaves out; the top-k themselves are `rank.top_percent`."""

    mode: Mode = "union"
    """union: the top-k of all items at once; per-item: one retraining an item, without its top-k; matched: the ranked
    lists are drawn from in turn until the union has `size` images, so that every method removes as many."""
    size: Annotated[int, Ge(0)] = 0
    """For "matched": images to remove; 0 = as many as the union of random lists of k has on average."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateConfig:
    """How regenerated images are compared with the first ones (spec 11.1)."""

    metrics: tuple[str, ...] = ()
    """Similarities by name; none named: ssim, sscd, lpips, clip, dino, mse, without those whose weights are absent."""
    unrelated: Annotated[int, Ge(0)] = 10
    """For the reference level each target is also compared with this many of the next ones."""
