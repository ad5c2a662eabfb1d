"""Which training images, in which groups, and which generated images a comparison of groups was made on, with digests.

Axes: p memberships, which are pairs of an image and a group.
"""

import json
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from typing import Any

import numpy as np
from jaxtyping import Int64

from mucs_ray.data.groups import Groups
from mucs_ray.data.table import Split
from mucs_ray.errors import InputError

DIGITS = 12
"""The length of a digest, in hexadecimal digits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainManifest:
    """The memberships of a split; an image that is in several groups stands there several times."""

    train_ids: tuple[int, ...]
    group_ids: tuple[int, ...]
    dataset_name: str
    split: Split = "train"

    @classmethod
    def of(cls, groups: Groups, dataset_name: str) -> "TrainManifest":
        """Return the manifest of groups."""
        ids, numbers = groups.idx.tolist(), groups.group.tolist()
        return cls(train_ids=tuple(ids), group_ids=tuple(numbers), dataset_name=dataset_name)

    @property
    def digest(self) -> str:
        """The first digits of sha256(name, zero byte, split, zero byte, ids, groups), the latter as little-endian int64
        (spec/errata 13.1).
        """
        numbers = np.array([self.train_ids, self.group_ids], dtype="<i8")
        return sha256(f"{self.dataset_name}\0{self.split}\0".encode() + numbers.tobytes()).hexdigest()[:DIGITS]

    def to_json(self) -> dict[str, Any]:
        """Return the content of the file, with the digest."""
        return {**asdict(self), "digest": self.digest}


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryManifest:
    """The generated images that are explained: number, picture, seed and prompt of each."""

    query_ids: tuple[int, ...]
    image_paths: tuple[str, ...]
    seeds: tuple[int, ...]
    prompts: tuple[str, ...]

    @property
    def digest(self) -> str:
        """The first digits of the sha256 of the content as JSON."""
        return sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:DIGITS]

    def to_json(self) -> dict[str, Any]:
        """Return the content of the file, with the digest."""
        return {**asdict(self), "digest": self.digest}


def with_noise(groups: Groups, *, share: float = 0.05, num_blocks: int = 10, seed: int) -> Groups:
    """Return groups in which some images of each are in a wrong one, to see what errors in the data would do.

    Of each group, `share` of the smallest group's size is moved, in blocks. The blocks of one number change places
    between the groups by a random permutation that leaves none where it was, so all groups keep their sizes.
    InputError for groups that overlap.
    """
    if groups.overlapping:
        raise InputError(f"the groups of {groups.by} overlap, so that an image has no one group to be moved from")
    num_moved = max(1, round(share * min(groups.sizes)))
    group = groups.group.copy()
    blocks = [
        np.array_split(moved_rows(groups, number, num_moved, seed), min(num_blocks, num_moved))
        for number in range(len(groups.names))
    ]
    for block in range(len(blocks[0])):
        for home, goal in enumerate(derangement(len(groups.names), seed, f"groups/noisy/block={block}")):
            group[blocks[home][block]] = goal
    return replace(groups, group=group)


def moved_rows(groups: Groups, number: int, count: int, seed: int) -> Int64[np.ndarray, " m"]:
    """Return the memberships of a group that are moved, in random order."""
    from mucs_ray.diffusion.noise import generator  # it imports torch, without which a run is looked at

    rows = np.flatnonzero(groups.group == number)
    return generator(seed, f"groups/noisy/group={number}").permutation(rows)[:count]


def derangement(num: int, seed: int, name: str) -> Int64[np.ndarray, " n"]:
    """Return a random permutation without a fixed point; all of them are equally likely."""
    from mucs_ray.diffusion.noise import generator

    stream = generator(seed, name)
    while True:
        drawn = stream.permutation(num)
        if (drawn != np.arange(num)).all():
            return drawn
