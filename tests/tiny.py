"""A tiny data set and recipe that take every stage seconds: coloured squares whose class is the colour."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from mucs_ray import storage
from mucs_ray.config.recipe import Recipe, build
from mucs_ray.data.table import Card, Dataset, Row, Shard, schema, to_parquet, to_table
from mucs_ray.diffusion.noise import generator, normal
from mucs_ray.models.dit import DiT, DiTConfig
from mucs_ray.models.dit_edm import DiTEDM
from mucs_ray.training.ema import frozen_copy

SIZE, CLASSES = 8, ("red", "green", "blue")

TINY = {
    "name": "tiny",
    "model": {
        "image_size": SIZE, "condition_dim": 3, "patch_size": 4, "width": 16, "depth": 2, "num_heads": 2,
        "registers": 1, "condition_channels": 16, "kernel_size": 3, "dropout": 0.1,
    },
    "train": {
        "updates": 12, "updates_per_epoch": 4, "batch_size": 8, "learning_rate": 5e-3, "warmup_epochs": 1,
        "ema_decay": 0.8, "patience": 0, "checkpoint": "last",
    },
    "generate": {"items": 2, "controls": 1, "steps": 4, "guidance": 2.0},
    "method": {"mucs": {"batch_size": 8, "null_batches": 2, "max_updates": 6, "learning_rate_divisor": 1.0}},
    "score": {"noises": 5},
    "rank": {"top_percent": 10.0},
    "engine": {"check_weights": False},  # twelve updates are too few to denoise anything
}  # fmt: skip


def rows(count: int, *, first_idx: int, seed: int) -> list[Row]:
    """Make squares of a random size on a noisy ground."""
    rng = np.random.default_rng(seed)
    images = []
    for number in range(count):
        label = number % 3
        image = rng.integers(0, 60, (3, SIZE, SIZE), dtype=np.uint8)
        side = int(rng.integers(3, 7))
        image[label, 1 : 1 + side, 1 : 1 + side] = 255
        images.append(Row(idx=first_idx + number, image=image, label=label, text=(f"{CLASSES[label]} {side}",)))
    return images


def write_dataset(
    url: str, train: list[Row], test: list[Row], *, rows_per_unit: int = 16, rows_per_shard: int = 32
) -> Dataset:
    """Write a data set of these rows, cut into shards and units as requested."""
    shards = []
    for split, images in (("train", train), ("test", test)):
        for number, start in enumerate(range(0, len(images), rows_per_shard)):
            part = images[start : start + rows_per_shard]
            path = f"{split}/part-{number:05d}.parquet"
            content = to_parquet(to_table(part, schema(3, embedding=False)), rows_per_unit)
            digest = storage.publish(storage.join(url, path), content)
            groups = tuple(min(rows_per_unit, len(part) - at) for at in range(0, len(part), rows_per_unit))
            shards.append(Shard(path=path, split=split, row_groups=groups, sha256=digest))
    card = Card(
        name="tiny", source="drawn by the tests", licence="none", size=SIZE, condition="label", condition_dim=3,
        classes=CLASSES, shards=tuple(shards),
    )  # fmt: skip
    storage.publish_json(storage.join(url, "card.json"), card.to_json())
    return Dataset.open(url)


def tiny_dataset(folder: Path, **cut: int) -> Dataset:
    """Write 60 training and 12 test images."""
    return write_dataset(str(folder), rows(60, first_idx=0, seed=1), rows(12, first_idx=60, seed=2), **cut)


def tiny_recipe(data: str, **changes: object) -> Recipe:
    """Build TINY with some sections changed: tiny_recipe(url, score={"noises": 7}, method={"das": {"dim": 16}})."""
    return build(merged({**TINY, "data": data}, changes))


def merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Merge changed values into others, section by section."""
    return values | {
        key: merged(values[key], change) if isinstance(change, dict) and isinstance(values.get(key), dict) else change
        for key, change in changes.items()
    }


def tiny_toml(data: str, **sections: dict[str, object]) -> str:
    """Write TINY as a recipe file: tiny_toml(url, engine={"train_workers": 1})."""
    values: dict[str, Any] = {**TINY, "data": data, **sections}
    values["engine"] = {**TINY["engine"], **values["engine"]}
    values |= {f'method."{name}"': own for name, own in values.pop("method").items()}
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items() if not isinstance(value, dict)]
    for name, section in values.items():
        if isinstance(section, dict):
            lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in section.items())]
    return "\n".join(lines) + "\n"


def lively(model: DiTConfig) -> DiTEDM:
    """Build an F1 whose output depends on all its inputs and parameters."""
    denoiser = frozen_copy(DiTEDM(DiT(model)))
    for number, parameter in enumerate(denoiser.parameters()):
        parameter.copy_(0.2 * normal(generator(3, f"parameter={number}"), *parameter.shape))
    return denoiser
