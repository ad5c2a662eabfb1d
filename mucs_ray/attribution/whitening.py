"""Whitening over the items takes out of the scores what the items' columns have in common, such as hubs.

S~ are the scores with each item's column centred and scaled to unit variance, C = S~^T S~ / N their correlations, and
the new scores are S~ (C + delta I)^(-1/2). C is a sum over images, so the scores need not be in memory together.
Axes: b images of a part, i items.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64

from mucs_ray.attribution.finite import require_finite
from mucs_ray.attribution.ranking import SCORE

Part = tuple[Int64[np.ndarray, " b"], Float[np.ndarray, "b i"]]
"""This is a part of the scores: idx and a row for each image."""


def whitened(parts: Callable[[], Iterable[Part]], num_items: int, delta: float) -> Iterator[Part]:
    """Yield whitened scores part by part; the parts are read twice, first for their moments."""
    moments = Moments.empty(num_items)
    for idx, scores in parts():
        moments = moments.add(idx, scores)
    whitening = Whitening.of(moments, delta)
    for idx, scores in parts():
        yield idx, whitening(scores)


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """These are the first two moments of the scores seen so far, in float64, whatever the size of the scores."""

    count: int
    mean: Float64[np.ndarray, " i"]
    products: Float64[np.ndarray, "i i"]
    """The sum over images of (s - mean) (s - mean)^T."""

    @classmethod
    def empty(cls, num_items: int) -> "Moments":
        """Return the moments of no scores."""
        return cls(count=0, mean=np.zeros(num_items), products=np.zeros((num_items, num_items)))

    def add(self, idx: Int64[np.ndarray, " b"], scores: Float[np.ndarray, "b i"]) -> "Moments":
        """Return the moments with more images seen. It raises RunFailed, naming the image, if a score is not finite."""
        require_finite(scores, idx, SCORE)
        mean = scores.mean(axis=0, dtype=np.float64)
        centred, apart = scores - mean, mean - self.mean
        count = self.count + len(scores)
        return Moments(
            count=count,
            mean=self.mean + apart * (len(scores) / count),
            products=self.products + centred.T @ centred + np.outer(apart, apart) * (self.count * len(scores) / count),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Whitening:
    """The whitening subtracts the mean of each item's scores, and mixes the items' columns by a matrix."""

    mean: Float64[np.ndarray, " i"]
    matrix: Float64[np.ndarray, "i i"]

    @classmethod
    def of(cls, moments: Moments, delta: float) -> "Whitening":
        """Return the whitening of scores that have these moments; a large `delta` only centres and scales."""
        deviation = np.sqrt(np.diag(moments.products) / moments.count)
        deviation[deviation == 0] = 1.0  # an item for which all images are equal: its column becomes 0
        correlations = moments.products / moments.count / np.outer(deviation, deviation)
        values, vectors = np.linalg.eigh(correlations + delta * np.eye(len(deviation)))
        inverse_root = vectors / np.sqrt(values) @ vectors.T
        return cls(mean=moments.mean, matrix=inverse_root / deviation[:, None])

    def __call__(self, scores: Float[np.ndarray, "b i"]) -> Float32[np.ndarray, "b i"]:
        """Return the whitened scores; higher still means more influential."""
        return ((scores - self.mean) @ self.matrix).astype(np.float32)
