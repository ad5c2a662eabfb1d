"""A small network, six images and two items, on which tests unlearn in a moment."""

from types import SimpleNamespace

import numpy as np
import torch

from mucs_ray.attribution.base import ItemState, MethodContext
from mucs_ray.attribution.cards.mucs import MUCSConfig
from mucs_ray.attribution.config import RankConfig, ScoreConfig
from mucs_ray.attribution.mucs import MUCS
from mucs_ray.diffusion.batch import Batch, Item
from mucs_ray.diffusion.noise import generator, normal
from mucs_ray.models.dit import DiTConfig, unlearned_names
from mucs_ray.training.config import TrainConfig
from mucs_ray.training.order import batch_rows
from tiny import lively, rows

MODEL = DiTConfig(
    image_size=8, patch_size=4, width=16, depth=1, num_heads=2, registers=0, condition_channels=8, condition_dim=3,
    kernel_size=3, dropout=0.0,
)  # fmt: skip
F1 = lively(MODEL)
NAMES = unlearned_names(F1.network)
FITTED = {"null_loss": torch.tensor(1e9, dtype=torch.float64)}


def images() -> Batch:
    made = rows(6, first_idx=0, seed=5)
    pixels = torch.from_numpy(np.stack([row.image for row in made])).float() / 127.5 - 1
    return Batch(idx=torch.arange(6), z=pixels, condition={"condition": torch.eye(3)[[row.label for row in made]]})


def batches(name: str, size: int):
    return lambda step: images()[torch.from_numpy(batch_rows(1, name, step, num_images=6, batch_size=size))]


def item(number: int) -> Item:
    image = 0.4 * normal(generator(7, f"image={number}"), 3, 8, 8)
    return Item(number=number, idx=60 + number, condition={"condition": torch.eye(3)[number]}, z=image)


def context(config: MUCSConfig) -> MethodContext:
    knobs = SimpleNamespace(
        seed=1, model=MODEL, train=TrainConfig(learning_rate=0.01), method={"mucs": config},
        score=ScoreConfig(noises=4), rank=RankConfig(),
    )  # fmt: skip
    return MethodContext(
        settings=knobs, device=torch.device("cpu"), num_images=6, denoiser=F1, batches=batches,
        items=[item(0), item(1)],
    )  # fmt: skip


def unlearned(number: int, config: MUCSConfig) -> ItemState:
    """Unlearn an item by MUCS."""
    return MUCS(context(config)).fit_item(item(number), FITTED, lambda *_: None)
