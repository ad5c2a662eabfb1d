"""Training sets of noise, of any size, for benchmarks that do not look at the pictures."""

import numpy as np

from mucs_ray import storage
from mucs_ray.data.table import Card, Dataset, Row, Shard, schema, to_parquet, to_table

SHAPES = {"emoji": (16, 10), "cifar10": (32, 0)}
"""The data behind each recipe: pixels along a side, and classes of the condition."""


def write(url: str, num: int, *, size: int, classes: int, unit: int) -> Dataset:
    """Write `num` training and 16 test pictures of noise, `unit` rows per row group; 0 classes = no condition."""
    rng = np.random.default_rng(0)
    in_file = unit * max(1, 4096 // unit)
    shards = []
    for split, first, count in (("train", 0, num), ("test", num, 16)):
        for number, start in enumerate(range(0, count, in_file)):
            here = min(in_file, count - start)
            images = rng.integers(0, 256, (here, 3, size, size), dtype=np.uint8)
            labels = [n % classes if classes else None for n in range(here)]
            rows = [
                Row(idx=first + start + n, image=image, label=label)
                for n, (image, label) in enumerate(zip(images, labels, strict=True))
            ]
            path = f"{split}/part-{number:05d}.parquet"
            content = to_parquet(to_table(rows, schema(classes, embedding=False)), unit)
            groups = tuple(min(unit, here - at) for at in range(0, here, unit))
            digest = storage.publish(storage.join(url, path), content)
            shards.append(Shard(path=path, split=split, row_groups=groups, sha256=digest))  # pyright: ignore
    card = Card(
        name="synthetic",
        source="noise",
        licence="none",
        size=size,
        condition="label" if classes else "none",
        condition_dim=classes,
        shards=tuple(shards),
    )
    storage.publish_json(storage.join(url, "card.json"), card.to_json())
    return Dataset.open(url)
