"""Hubs: training images that are in the lists of many different items (spec 11.3).

A hub is influential for everything, or an artefact of the method; either way it says little about one image, and lists
that share hubs remove fewer images.

Axes: m items, k top images.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64
from scipy import stats

from mucs_ray.evaluation.unions import expected_union

RARE = 0.05
"""Chance makes a hub of any image at all with at most this probability."""
MOST_FREQUENT = 0.01
"""The share of the training set whose share of the places in lists is reported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frequent:
    """A training image and the number of items whose lists contain it."""

    idx: int
    lists: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Hubs:
    """How unevenly one method's lists draw on the training set. "By chance" refers to independent random lists."""

    num_lists: int
    num_images: int
    top_k: int
    most_frequent: tuple[Frequent, ...]
    """The images in the most lists come first; among equals, those nearer to the top of their lists."""
    expected_lists: float
    """The number of lists that contain any one image by chance: m k / N."""
    most_by_chance: int
    """By chance, no image is in more lists than this, with a probability of 0.95 over all N images (Bonferroni)."""
    num_hubs: int
    """The number of images in more lists than that."""
    share: float
    """The share of all m k places that the 1 % most frequent images take, in [0, 1]."""
    share_by_chance: float
    union: int
    """The number of different images in all lists."""
    union_by_chance: int


def find_hubs(top: Sequence[Int64[np.ndarray, " k"]], *, num_images: int, num_frequent: int = 8) -> Hubs:
    """Find the hubs in one method's lists, one for each item, best first; `num_frequent` bounds `most_frequent`.

    Items of one class may rightly share images, which the comparison with chance ignores: hubs are a reason to look.
    """
    lists = _checked(top, num_images)
    num_lists, k = lists.shape
    idx, where, counts = np.unique(lists, return_inverse=True, return_counts=True)
    places = np.bincount(where.reshape(-1), weights=np.tile(np.arange(k), num_lists)) / counts
    order = np.lexsort((idx, places, -counts))[:num_frequent]
    threshold = most_by_chance(num_images, k, num_lists)
    most_places = np.sort(counts)[::-1][: _num_most_frequent(num_images)].sum()
    return Hubs(
        num_lists=num_lists,
        num_images=num_images,
        top_k=k,
        most_frequent=tuple(Frequent(idx=int(idx[at]), lists=int(counts[at])) for at in order),
        expected_lists=num_lists * k / num_images,
        most_by_chance=threshold,
        num_hubs=int((counts > threshold).sum()),
        share=float(most_places / lists.size),
        share_by_chance=share_by_chance(num_images, k, num_lists),
        union=len(idx),
        union_by_chance=expected_union(num_images, k, num_lists),
    )


def most_by_chance(num_images: int, k: int, num_lists: int) -> int:
    """Return the smallest c with N P(X > c) <= 0.05, X ~ Bin(m, k/N); it is never above m."""
    counts = np.arange(num_lists + 1)
    return int(counts[num_images * stats.binom.sf(counts, num_lists, k / num_images) <= RARE][0])


def share_by_chance(num_images: int, k: int, num_lists: int) -> float:
    """Return the share of places of the 1 % most frequent of N images if N P(X = c) images are in c lists each."""
    counts = np.arange(num_lists, 0, -1)
    images = num_images * stats.binom.pmf(counts, num_lists, k / num_images)
    frequent_images = np.diff(np.minimum(np.cumsum(images), _num_most_frequent(num_images)), prepend=0.0)
    return float((frequent_images * counts).sum() / (num_lists * k))


def _num_most_frequent(num_images: int) -> int:
    return max(1, round(MOST_FREQUENT * num_images))


def _checked(top: Sequence[Int64[np.ndarray, " k"]], num_images: int) -> Int64[np.ndarray, "m k"]:
    lengths = {len(idx) for idx in top}
    if len(lengths) != 1 or 0 in lengths or max(lengths) > num_images:
        raise ValueError(f"expected lists of one length from 1 to {num_images}, found lengths {sorted(lengths)}")
    lists = np.stack(top)
    if (np.diff(np.sort(lists, axis=1), axis=1) == 0).any():
        raise ValueError("the list of one item contains an image twice")
    return lists
