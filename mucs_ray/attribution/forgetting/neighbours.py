"""The nearest images outside a group: exact, and the same whatever the order in which images are read.

Axes: f images of the group, r other images of one table, k neighbours, d numbers of an image.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64

from mucs_ray.errors import InputError

SLACK = 1e-9
"""More than the error of the squared distances by matrix products, relative to the squared norms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbours:
    """The nearest images of each image, nearest first; of equally near ones that with the smaller idx."""

    idx: Int64[np.ndarray, "f k"]
    distance: Float[np.ndarray, "f k"]
    """The Euclidean distance."""


def nearest(
    images: Float[np.ndarray, "f d"],
    others: Iterable[tuple[Int64[np.ndarray, " r"], Float[np.ndarray, "r d"]]],
    num: int,
) -> Neighbours:
    """Return the `num` nearest of the others, which are read table by table. InputError if there are fewer.

    Matrix products find those that may be among the nearest; their distances are then computed from differences, so
    that equal images are equally near to the last bit.
    """
    images = images.astype(np.float64)
    norms = (images**2).sum(axis=1)
    best = [(np.empty(0, dtype=np.int64), np.empty(0)) for _ in images]
    for idx, table in others:
        table = table.astype(np.float64)
        table_norms = (table**2).sum(axis=1)
        approximate = norms[:, None] + table_norms[None] - 2 * images @ table.T
        slack = SLACK * (norms[:, None] + table_norms[None])
        for row, (known_idx, known) in enumerate(best):
            bound = known[-1] if len(known) == num else np.inf
            if len(idx) > num:
                bound = min(bound, np.partition(approximate[row] + slack[row], num - 1)[num - 1])
            near = np.flatnonzero(approximate[row] - slack[row] <= bound)
            exact = ((table[near] - images[row]) ** 2).sum(axis=1)
            all_idx, squares = np.concatenate([known_idx, idx[near]]), np.concatenate([known, exact])
            first = np.lexsort((all_idx, squares))[:num]
            best[row] = all_idx[first], squares[first]
    if any(len(found) < num for found, _ in best):
        raise InputError(f"groups.neighbours is {num}, but there are only {len(best[0][0])} images outside the group")
    return Neighbours(
        idx=np.stack([found for found, _ in best]), distance=np.sqrt(np.stack([squares for _, squares in best]))
    )
