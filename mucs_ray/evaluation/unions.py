"""Which training images are removed before retraining (spec 11, 11.3).

Axes: m targets, k top images.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from mucs_ray.errors import InputError


def union(ranked: Sequence[Int64[np.ndarray, " k"]]) -> frozenset[int]:
    """Return every training image that is in any item's list."""
    return frozenset(int(idx) for top in ranked for idx in top)


def expected_union(num_images: int, k: int, num_items: int) -> int:
    """Return the mean number of different images in m independent random lists of k: N (1 - (1 - k/N)^m)."""
    return round(num_images * (1 - (1 - k / num_images) ** num_items))


def drawn_in_turn(ranked: Sequence[Int64[np.ndarray, " k"]], size: int) -> frozenset[int]:
    """Take every item's rank 1, then every item's rank 2, and so on, until `size` different images are taken.

    A list of `size` places or more is always long enough. InputError if the lists are used up before.
    """
    removed: set[int] = set()
    for place in range(max((len(top) for top in ranked), default=0)):
        for top in ranked:
            if len(removed) == size:
                return frozenset(removed)
            if place < len(top):
                removed.add(int(top[place]))
    if len(removed) < size:
        raise InputError(f"remove.size is {size}, but there are only {len(removed)} training images to remove")
    return frozenset(removed)


def unrelated_pairs(num_items: int, num_shifts: int) -> list[tuple[int, int]]:
    """Return (i, i + shift) around the circle (spec 11.2, reference level), at most half way: then pairs repeat."""
    shifts = range(1, min(num_shifts, num_items // 2) + 1)
    return [(number, (number + shift) % num_items) for shift in shifts for number in range(num_items)]
