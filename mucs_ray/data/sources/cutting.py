"""Functions that sources share: cutting a list of images into shards, and holding out a fixed tenth."""

from collections.abc import Sequence
from hashlib import blake2b
from typing import TypeVar

from mucs_ray.data.sources import Task
from mucs_ray.data.table import Split

T = TypeVar("T")
PER_SHARD = 4096
TEST_SHARE = 10
"""One image in this many is held out, where a source has no test split of its own."""


def tasks_of(
    train: Sequence[T], test: Sequence[T], *, per_shard: int = PER_SHARD, extra: object = None
) -> tuple[Task, ...]:
    """Make tasks of at most `per_shard` images: train first, then test; idx continues from one to the next.

    Each payload is (idx of its first image, its images, extra).
    """
    return (
        *cut(train, split="train", first_idx=0, per_shard=per_shard, extra=extra),
        *cut(test, split="test", first_idx=len(train), per_shard=per_shard, extra=extra),
    )


def cut(images: Sequence[T], *, split: Split, first_idx: int, per_shard: int, extra: object) -> list[Task]:
    """Make the tasks of one split, numbered from 0."""
    return [
        Task(split=split, number=number, payload=(first_idx + at, tuple(images[at : at + per_shard]), extra))
        for number, at in enumerate(range(0, len(images), per_shard))
    ]


def held_out(name: str) -> bool:
    """Return True for a fixed tenth of all names, the same on every machine and for life."""
    digest = blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "little") % TEST_SHARE == 0
