"""The images of one group and all others, as unlearning takes them: batches by name, and the nearest images outside.

Images are seen in the middle and with their first caption, so that an image and its neighbours stay what they are.
Axes: f images of the group, k neighbours, *shape of z.
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np
from jaxtyping import Float, Int64
from torch import Tensor

from mucs_ray.attribution.forgetting.forget import Batches, rows_of_step, step_name
from mucs_ray.attribution.forgetting.losses import NeighboursOf
from mucs_ray.attribution.forgetting.neighbours import Neighbours, nearest
from mucs_ray.data.local import LocalImages
from mucs_ray.diffusion.batch import Batch

ROWS_PER_TABLE = 1024


class GroupImages:
    """The training set cut in two: the images of a group, and the others. Images in no group are among the others."""

    def __init__(self, images: LocalImages, members: frozenset[int]) -> None:
        """Cut `images`, of which none are removed."""
        self.images = images
        self.idx = np.concatenate([chunk.idx for chunk in images.images])
        inside = np.isin(self.idx, list(members))
        self.rows = {"forget": np.flatnonzero(inside), "retain": np.flatnonzero(~inside)}

    def batches(self, part: Literal["retain", "forget"], *, group: int, batch_size: int, seed: int) -> Batches:
        """Return the function that draws the images of an update by its name."""
        rows = self.rows[part]

        def of_step(step: int) -> Batch:
            drawn = rows_of_step(step_name(group, step, part), len(rows), batch_size, seed)
            return self.images.batch(rows[drawn])

        return of_step

    def neighbours(self, num: int) -> Neighbours:
        """Return the nearest images outside the group for each image of the group, in order of idx."""
        return nearest(self.flat(self.rows["forget"]), self.others(), num)

    def neighbours_of(self, found: Neighbours) -> NeighboursOf:
        """Return the function that finds the z of an image's neighbours by the image's idx."""
        own = self.idx[self.rows["forget"]]

        def of_images(idx: Int64[Tensor, " b"]) -> Float[Tensor, "b k *shape"]:
            near = found.idx[np.searchsorted(own, idx.numpy())]
            z = self.images.batch(np.searchsorted(self.idx, near.reshape(-1))).z
            return z.unflatten(0, near.shape)

        return of_images

    def others(self) -> Iterator[tuple[Int64[np.ndarray, " r"], Float[np.ndarray, "r d"]]]:
        """Yield the images outside the group, table by table."""
        rows = self.rows["retain"]
        for start in range(0, len(rows), ROWS_PER_TABLE):
            some = rows[start : start + ROWS_PER_TABLE]
            yield self.idx[some], self.flat(some)

    def flat(self, rows: Int64[np.ndarray, " r"]) -> Float[np.ndarray, "r d"]:
        """Return images as rows of numbers."""
        return self.images.batch(rows).z.flatten(1).numpy()
