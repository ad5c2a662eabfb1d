"""Training sets of which it is known who made what: planted groups of patterns, and folders of pictures by class."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mucs_ray import storage
from mucs_ray.data.table import Card, Dataset, Row, Shard, Split, schema, to_parquet, to_table

SIZE = 16
UNIT = 128
"""The number of images in a row group."""
RED, GREEN, BLUE, YELLOW = (0.85, 0.2, 0.2), (0.2, 0.7, 0.25), (0.2, 0.3, 0.85), (0.95, 0.8, 0.2)
GROUPS = {
    "red-lying": (RED, (0.0, 1.0)),
    "red-upright": (RED, (1.0, 0.0)),
    "green-slanted": (GREEN, (1.0, 1.0)),
    "blue-slanted": (BLUE, (1.0, 1.0)),
    "yellow-discs": (YELLOW, None),
}
"""Colour and direction of each group's stripes: two share a colour, two a direction, and the discs stand alone."""


def pattern(group: str, stream: np.random.Generator) -> np.ndarray:
    """Return a picture of a group, with a phase or place, a width, a shade and a little noise of its own."""
    colour, direction = GROUPS[group]
    y, x = np.mgrid[:SIZE, :SIZE]
    if direction is None:
        centre, radius = stream.uniform(5, 10, 2), stream.uniform(3, 5)
        inside = np.hypot(x - centre[0], y - centre[1]) < radius
    else:
        along = direction[0] * x + direction[1] * y
        inside = np.sin(along * 2 * np.pi / stream.uniform(5, 8) + stream.uniform(0, 2 * np.pi)) > 0
    shade = np.asarray(colour) * stream.uniform(0.8, 1.1)
    picture = np.where(inside, shade[:, None, None], 0.95) + stream.normal(0, 0.02, (3, SIZE, SIZE))
    return (255 * picture.clip(0, 1)).astype(np.uint8)


def planted(url: str, per_group: int, num_test: int) -> Dataset:
    """Write so many training images of each group, and test images of the groups in turn; names begin with the group.

    There is no condition, so that a model cannot know the group but from the picture.
    """
    stream, names = np.random.default_rng(0), list(GROUPS)
    counts = {"train": per_group * len(names), "test": num_test}
    made = {
        split: [(names[n % len(names)], pattern(names[n % len(names)], stream)) for n in range(count)]
        for split, count in counts.items()
    }
    return write(url, "planted", made["train"], made["test"], classes=())


def from_folder(url: str, folder: str, per_class: int, num_test: int) -> Dataset:
    """Write so many pictures of each class, at 16 px, from a folder with a folder of pictures for each class."""
    folders = sorted(path for path in Path(folder).iterdir() if path.is_dir())
    classes, per_test = [path.name for path in folders], -(-num_test // max(1, len(folders)))
    train, test = [], []
    for path in folders:
        files = sorted(path.iterdir())[: per_class + per_test]
        if len(files) < per_class + per_test:
            raise SystemExit(f"{path} has {len(files)} pictures; expected {per_class + per_test} or more")
        pictures = [(path.name, small(file)) for file in files]
        train += pictures[:per_class]
        test += pictures[per_class:]
    return write(url, "cifar10-small", train, test, classes=classes)


def small(file: Path) -> np.ndarray:
    """Read a picture at 16 px."""
    picture = Image.open(file).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BOX)
    return np.asarray(picture).transpose(2, 0, 1).copy()


def write(
    url: str,
    name: str,
    train: Sequence[tuple[str, np.ndarray]],
    test: Sequence[tuple[str, np.ndarray]],
    *,
    classes: Sequence[str],
) -> Dataset:
    """Write pictures with their groups as a prepared data set; with classes, these are the condition."""

    def rows(pictures: Sequence[tuple[str, np.ndarray]], first: int) -> Iterator[Row]:
        for number, (group, image) in enumerate(pictures, start=first):
            label = classes.index(group) if classes else None
            yield Row(idx=number, image=image, label=label, name=f"{group}/{number:05d}.png")

    shards, columns = [], schema(len(classes), embedding=False, named=True)
    parts: tuple[tuple[Split, list[Row]], ...] = (
        ("train", list(rows(train, 0))),
        ("test", list(rows(test, len(train)))),
    )
    for split, of_split in parts:
        path = f"{split}/part-00000.parquet"
        digest = storage.publish(storage.join(url, path), to_parquet(to_table(of_split, columns), UNIT))
        counts = tuple(min(UNIT, len(of_split) - start) for start in range(0, len(of_split), UNIT))
        shards.append(Shard(path=path, split=split, row_groups=counts, sha256=digest))
    card = Card(
        name=name,
        source="benchmarks/planted.py",
        licence="none",
        size=SIZE,
        condition="label" if classes else "none",
        condition_dim=len(classes),
        classes=tuple(classes),
        shards=tuple(shards),
        named=True,
    )
    storage.publish_json(storage.join(url, "card.json"), card.to_json())
    return Dataset.open(url)
