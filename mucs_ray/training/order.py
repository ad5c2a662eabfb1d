"""The order of images: a pure function of (seed, name, step), independent of the number of workers and restarts."""

from functools import lru_cache

import numpy as np
from jaxtyping import Int64

from mucs_ray.diffusion.noise import generator
from mucs_ray.errors import InputError


@lru_cache(maxsize=4)
def permutation(seed: int, name: str, epoch: int, num_images: int) -> Int64[np.ndarray, " n"]:
    """Return the order of all images in one pass over the data."""
    return generator(seed, f"{name}/order/epoch={epoch}").permutation(num_images)


def batch_rows(seed: int, name: str, step: int, *, num_images: int, batch_size: int) -> Int64[np.ndarray, " b"]:
    """Return the rows of update `step`: shuffled passes, each image at most once a pass, incomplete last batches
    dropped.
    """
    steps_per_pass = num_images // batch_size
    if steps_per_pass == 0:
        raise InputError(f"{num_images} training images are fewer than one batch of {batch_size}; lower the batch size")
    epoch, step_in_pass = divmod(step, steps_per_pass)
    start = step_in_pass * batch_size
    return permutation(seed, name, epoch, num_images)[start : start + batch_size]
