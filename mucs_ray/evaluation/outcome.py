"""The measurements of the counterfactual test, before any statistics.

Axes: m targets, c controls, k top images.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64

from mucs_ray.evaluation.config import Mode


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MethodOutcome:
    """The outcome of one method in one seed. Similarities are higher for more similar images; distances are negated
    (spec 11.2).
    """

    seed: int
    method: str
    mode: Mode = "union"
    """How images were removed; in "per-item" mode each target has its own retraining."""
    num_images: int
    """The number of training images."""
    removed: int
    """The number of training images that the retraining left out; with a retraining for each item, the mean over the
    items.
    """
    top: Int64[np.ndarray, "m k"]
    """The idx of the top-k of each target, best first."""
    similarity: Mapping[str, Float[np.ndarray, " m"]]
    """By metric, the similarity of each target before and after retraining."""
    controls: Mapping[str, Float[np.ndarray, " c"]]
    """By metric, the same for generated images that were not attributed; empty arrays if there are none."""
    seconds_an_item: float
    """The wall time of the attribution divided by the number of its items."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Unrelated:
    """The reference level of one seed: the similarities of different generated images, by metric (spec 11.2)."""

    seed: int
    similarity: Mapping[str, Float[np.ndarray, " pairs"]]
