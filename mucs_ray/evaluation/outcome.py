"""What the counterfactual test measured, before any statistics.

Axes: m targets, c controls, k top images.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64

from mucs_ray.evaluation.config import Mode


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcome:
    """One method in one seed. Similarities are higher for more similar images; distances come negated (spec 11.2)."""

    seed: int
    method: str
    mode: Mode = "union"
    """How images were removed; in "per-item" each target has a retraining of its own."""
    num_images: int
    """Training images there are."""
    removed: int
    """Training images left out in retraining: of the union, or, retraining for each item alone, on average."""
    top: Int64[np.ndarray, "m k"]
    """idx of the top-k of each target, best first."""
    similarity: Mapping[str, Float[np.ndarray, " m"]]
    """By metric: each target before against after retraining."""
    controls: Mapping[str, Float[np.ndarray, " c"]]
    """By metric: the same of generated images that were not attributed; empty arrays if there are none."""
    seconds_an_item: float
    """Wall time of the attribution, spread over its items."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Unrelated:
    """The reference level of one seed: by metric, the similarities of different generated images (spec 11.2)."""

    seed: int
    similarity: Mapping[str, Float[np.ndarray, " pairs"]]
