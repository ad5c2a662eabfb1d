"""This module takes the top-k of a stream of scores; merging is associative and commutative.

Ties are broken by a seeded hash of idx. Axes: b images seen, k kept; n all images, i items.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from jaxtyping import Float, Float32, Int64, UInt64

from mucs_ray.attribution.config import RankConfig
from mucs_ray.attribution.finite import require_finite

SCORE = "the score of training image"


def top_k(num_images: int, top_percent: float) -> int:
    """Return k = int(round(N / 100) * percent), at least 1 (spec 1: 1000, 998 and 2366 for the paper's sets at 2 %)."""
    return max(1, int(round(num_images / 100) * top_percent))


def list_length(num_images: int, config: RankConfig) -> int:
    """Return k, the number of images an item is attributed to."""
    return min(config.top, num_images) or top_k(num_images, config.top_percent)


def tie_break(idx: Int64[np.ndarray, " b"], seed: int, name: str) -> UInt64[np.ndarray, " b"]:
    """Return a hash of (seed, name, idx), which gives equal scores a random order that does not depend on their
    sequence.
    """
    key = int.from_bytes(blake2b(f"{seed}/{name}".encode(), digest_size=8).digest(), "little")
    x = idx.astype(np.uint64) ^ np.uint64(key)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # splitmix64's finaliser
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return x ^ (x >> np.uint64(31))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """A ranking holds the most influential images of one item, the best first."""

    idx: Int64[np.ndarray, " k"]
    score: Float[np.ndarray, " k"]
    k: int
    seed: int
    name: str
    """The name that, with the seed, decides the order among ties."""

    @classmethod
    def empty(cls, k: int, *, seed: int, name: str) -> "Ranking":
        """Return a ranking that has seen nothing."""
        return cls(idx=np.zeros(0, np.int64), score=np.zeros(0, np.float32), k=k, seed=seed, name=name)

    def add(self, idx: Int64[np.ndarray, " b"], score: Float[np.ndarray, " b"]) -> "Ranking":
        """Return the ranking with more images seen. It raises RunFailed, naming the image, if a score is not finite."""
        require_finite(score, idx, SCORE)
        idx, score = np.concatenate([self.idx, idx]), np.concatenate([self.score, score])
        best = np.lexsort((tie_break(idx, self.seed, self.name), -score))[: self.k]
        return Ranking(idx=idx[best], score=score[best], k=self.k, seed=self.seed, name=self.name)

    def merge(self, other: "Ranking") -> "Ranking":
        """Return the ranking of everything that either has seen."""
        return self.add(other.idx, other.score)


def ranks(
    scores: Float[np.ndarray, " n"], idx: Int64[np.ndarray, " n"], seed: int, name: str
) -> Int64[np.ndarray, " n"]:
    """Return ranks, where 1 is the highest score and each of 1..N comes once: the places in the whole `Ranking` of this
    name.
    """
    require_finite(scores, idx, SCORE)
    places = np.empty(len(idx), dtype=np.int64)
    places[np.lexsort((tie_break(idx, seed, name), -scores))] = np.arange(1, len(idx) + 1)
    return places


def mutual_ranks(
    scores: Float[np.ndarray, "n i"], idx: Int64[np.ndarray, " n"], seed: int, names: Sequence[str]
) -> Float32[np.ndarray, "n i"]:
    """Return -sqrt(r r'), where r is the image's rank for the item and r' the item's rank for the image.

    Higher means more influential. r' orders the items by the image's rank in each item's list, because scores do not
    compare between items. Items for which the rank is the same share the mean place: an image that is first for all m
    items is (m + 1) / 2 for each, where a random order would leave it first for one of them. fp32 tells r r' apart up
    to 2^21: the order is exact where it matters, at the top.
    """
    of_image = np.stack([ranks(column, idx, seed, name) for column, name in zip(scores.T, names, strict=True)], axis=1)
    better = np.stack([(of_image < column[:, None]).sum(axis=1) for column in of_image.T], axis=1)
    equal = np.stack([(of_image == column[:, None]).sum(axis=1) for column in of_image.T], axis=1)
    of_item = better + (equal + 1) / 2
    return -np.sqrt(of_image * of_item).astype(np.float32)
