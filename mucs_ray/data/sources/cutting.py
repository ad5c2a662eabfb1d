"""Functions that sources share: cutting a list of images into shards, and holding out a fixed tenth."""

from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Protocol, TypeVar
from unicodedata import normalize

from mucs_ray.data.sources import Task
from mucs_ray.data.sources.splits import Named, listed
from mucs_ray.data.table import Split
from mucs_ray.data.understood import Aside


class HasSplit(Protocol):
    """What says of an image in which split it is, and the folder that says so."""

    @property
    def split(self) -> Named | None:
        """The split by name."""
        ...

    @property
    def folder(self) -> str:
        """The folder; "" if none says so."""
        ...


T = TypeVar("T")
S = TypeVar("S", bound=HasSplit)
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


def with_test_split(
    images: Sequence[S], aside: Aside, *, name: Callable[[S], str]
) -> tuple[list[S], list[S], dict[str, str]]:
    """Return the training and test images, and where each split is from.

    Test images are those of the test split, or else of the validation split, or else a tenth of the training images.
    """
    of: dict[Named, list[S]] = {
        split: [i for i in images if i.split == split] for split in ("train", "test", "validation")
    }
    train = of["train"]
    held: Named | None = next((split for split in ("test", "validation") if of[split]), None)
    origin = listed(image.folder for image in train)
    if held is None:
        test = [image for image in train if held_out(name(image))] or train[1:][-1:]
        chosen = {id(image) for image in test}
        rest = [image for image in train if id(image) not in chosen]
        return rest, test, {"train": origin, "test": f"{origin}, a tenth of it held out"}
    test = of[held]
    tested = listed(image.folder for image in test)
    if held == "test" and of["validation"]:
        unused = of["validation"]
        aside.add(
            f"images in {listed(i.folder for i in unused)}, since {tested} is there", name(unused[0]), len(unused)
        )
    return train, test, {"train": origin, "test": tested}


def held_out(name: str) -> bool:
    """Return True for a fixed tenth of all names, the same on every machine and for life."""
    digest = blake2b(normalize("NFC", name).encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "little") % TEST_SHARE == 0
