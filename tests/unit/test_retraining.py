"""What the counterfactual test rests on: an image changes when what made it is left out of the training."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mucs_ray.data.local import LocalImages
from mucs_ray.diffusion.edm import EDM
from mucs_ray.diffusion.noise import generator, name_torch_stream, normal
from mucs_ray.diffusion.sampler import sample
from mucs_ray.models.dit import DiT
from mucs_ray.models.dit_edm import DiTEDM
from mucs_ray.training.step import Group, TrainState, training
from tiny import rows, tiny_recipe, write_dataset


def test_removing_planted_duplicates_changes_an_image_more_than_random_removal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The images of the third class are near-duplicates of one pattern, which its noise is then turned into."""
    monkeypatch.setenv("MUCS_RAY_CACHE", str(tmp_path / "cache"))
    train = rows(60, first_idx=0, seed=1)
    pattern = np.zeros((3, 8, 8), dtype=np.uint8)
    pattern[:, ::2, :] = 255
    rng = np.random.default_rng(4)
    planted = [row.idx for row in train if row.label == 2]
    for number in planted:
        noise = rng.integers(0, 20, pattern.shape, dtype=np.uint8)
        train[number] = replace(
            train[number], z=np.abs(pattern.astype(np.int16) - noise).astype(np.uint8), text=("stripes",)
        )
    dataset = write_dataset(str(tmp_path / "data"), train, rows(12, first_idx=60, seed=2))
    changes = {
        "updates": 200, "updates_per_epoch": 200, "batch_size": 20, "ema_decay": 0.95, "warmup_epochs": 0,
        "augment": 0.0, "flip": False, "learning_rate": 1e-2,
    }  # fmt: skip
    recipe = tiny_recipe(
        dataset.url, train=changes, model={"width": 48, "depth": 1, "dropout": 0.0, "condition_drop": 0.0}
    )
    test = LocalImages(dataset, "test")

    def image_without(removed: list[int]) -> torch.Tensor:
        name_torch_stream(recipe.seed, "train/init")
        state = TrainState.fresh(DiTEDM(DiT(recipe.model)), recipe.train)
        images = LocalImages(dataset, "train", removed=frozenset(removed))
        for _ in training(state, images, test, recipe.train, seed=recipe.seed, group=Group()):
            pass
        noise = normal(generator(7, "planted"), 1, 3, 8, 8)
        with torch.inference_mode():
            return sample(EDM(), state.average, noise, {"condition": torch.eye(3)[2:]}, num_steps=12)[0].clamp(-1, 1)

    whole = image_without([])
    stripes = torch.from_numpy(pattern.astype(np.float32) / 127.5 - 1)
    assert (whole - stripes).square().mean() < 0.3  # any other picture of the class: above 1
    others = rng.permutation([row.idx for row in train])[: len(planted)].tolist()
    by_random = (whole - image_without(others)).square().mean()
    by_planted = (whole - image_without(planted)).square().mean()
    assert by_planted > 5 * by_random
