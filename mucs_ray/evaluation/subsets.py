"""The random subsets of the training set on which models are trained for the linear datamodeling score (LDS).

Even subsets are uniform. Odd ones take whole blocks, which are groups of images that look alike: without one image its
look-alikes still teach the same, so that leaving out whole groups moves the outputs further.
A subset depends on the seed and its number alone, so that more subsets can be added later.

Axes: n training images, d numbers that describe an image.
"""

import warnings

import numpy as np
from jaxtyping import Float, Int64


def num_chosen(num_images: int, share: float) -> int:
    """Return the number of images in every subset."""
    return round(share * num_images)


def stream_of(seed: int, name: str) -> np.random.Generator:
    """Return the random stream of a name."""
    from mucs_ray.diffusion.noise import generator  # imports torch, without which runs are looked at

    return generator(seed, name)


def is_uniform(number: int) -> bool:
    """Return True for a subset of single images, and False for one of whole blocks."""
    return number % 2 == 0


def chosen(
    number: int, idx: Int64[np.ndarray, " n"], block: Int64[np.ndarray, " n"], *, share: float, seed: int
) -> frozenset[int]:
    """Return the idx of the images in a subset; `block` is the block of each image.

    All subsets have the same size, and so a constant added to all scores changes no prediction: of the last block that
    is taken, only as many images are taken as are missing.
    """
    stream = stream_of(seed, f"lds/subset={number}")
    order = stream.permutation(len(idx))
    if not is_uniform(number):
        place_of_block = stream.permutation(int(block.max()) + 1)
        order = order[np.argsort(place_of_block[block[order]], kind="stable")]
    return frozenset(idx[order[: num_chosen(len(idx), share)]].tolist())


def repeat_seed(seed: int) -> int:
    """Return the seed of trainings that repeat others with other initial weights and another order of the images."""
    return int(stream_of(seed, "lds/repeat").integers(2**31))


def find_blocks(
    features: Float[np.ndarray, "n d"], label: Int64[np.ndarray, " n"], num_blocks: int, *, seed: int
) -> Int64[np.ndarray, " n"]:
    """Return the block of each image, counted from 0: groups that k-means finds among the images of one class.

    Classes share the blocks by their sizes, and each has at least one. There may be fewer blocks than were asked for,
    since a group of k-means can lose all of its images.
    """
    block = np.zeros(len(features), dtype=np.int64)
    num_found = 0
    for value in np.unique(label):
        rows = np.flatnonzero(label == value)
        num_groups = min(len(rows), max(1, round(num_blocks * len(rows) / len(label))))
        group = groups(features[rows], num_groups, stream_of(seed, f"lds/blocks/class={value}"))
        block[rows] = num_found + group
        num_found += int(group.max()) + 1
    return block


def groups(features: Float[np.ndarray, "n d"], num: int, stream: np.random.Generator) -> Int64[np.ndarray, " n"]:
    """Return the group of each image by k-means, counted from 0 without gaps; equal images share a group."""
    from scipy.cluster.vq import kmeans2  # slow to import, and needed once a run

    num = min(num, len(np.unique(features, axis=0)))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="One of the clusters is empty")
        _, found = kmeans2(features.astype(np.float64), num, minit="++", rng=stream)
    return np.unique(found, return_inverse=True)[1].astype(np.int64)
