"""Scores of groups from the scores and kept losses of a finished attribution, whose losses are of made-up models."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from mucs_ray import storage
from mucs_ray.attribution.loss_change import LossChange, by_image, fp16
from mucs_ray.data.local import LocalImages
from mucs_ray.data.table import Dataset
from mucs_ray.pipeline.graph import Pipeline
from mucs_ray.results.group_image_scores import image_scores
from mucs_ray.store.parts import part_bytes, unit_part
from tiny import lively, tiny_dataset, tiny_recipe

SKEW = "mucs, skew of mean losses"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("data"))


def scored(data: Dataset, folder: Path, group_of: Any, **score: Any) -> Pipeline:
    """A run with the scores of MUCS for two items, whose models are the first one with larger parameters."""
    by = folder / "groups.csv"
    by.write_text("idx,group\n" + "".join(f"{idx},{group_of(idx)}\n" for idx in range(60)))
    recipe = tiny_recipe(data.url, groups={"by": str(by)}, score={"keep_losses": True, **score})
    pipeline = Pipeline.open(recipe, data, str(folder / "run"), console=Console(file=io.StringIO()))
    model = lively(recipe.model)  # pyright: ignore[reportArgumentType]
    bank = [{name: size * own for name, own in model.network.named_parameters()} for size in (0.9, 1.2)]
    change = LossChange(model, bank, config=recipe.score, seed=recipe.seed)
    stage, images, skews, first = pipeline.stages["attribute/mucs/score"], LocalImages(data, "train"), [], 0
    files = {}
    for unit in data.units("train"):
        batch = images.batch(np.arange(first, first := first + unit.rows))
        losses = change.losses(batch)
        skews.append(change.skew(losses).numpy())
        columns = {
            "skew": skews[-1],
            "before": fp16(losses.before).numpy(),
            "after": fp16(by_image(losses.after)).numpy(),
        }
        file = unit_part(stage, unit)
        files[file] = storage.publish(stage.url(file), part_bytes(batch.idx.numpy(), columns))
    stage.finish(files, {})
    ranked = pipeline.stages["attribute/mucs"]
    content = part_bytes(np.arange(60), {"score": np.concatenate(skews)})
    ranked.finish({"scores.parquet": storage.publish(ranked.url("scores.parquet"), content)}, {})
    return pipeline


@pytest.mark.parametrize("sigmas", ["schedule", "training"])
def test_a_group_of_one_image_has_the_skew_of_the_image(data: Dataset, tmp_path: Path, sigmas: str):
    """But for losses that are kept in fp16."""
    found = image_scores(scored(data, tmp_path, lambda idx: idx, sigmas=sigmas))
    assert np.ptp(found["mucs, sum"]) > 0.02
    np.testing.assert_allclose(found[SKEW], found["mucs, sum"], atol=1e-3)


def test_without_kept_losses_there_is_none(data: Dataset, tmp_path: Path):
    found = image_scores(scored(data, tmp_path, lambda idx: idx % 3, keep_losses=False))
    assert SKEW not in found and "mucs, top-10 mean" in found


def test_independent_noise_has_no_losses_of_groups(data: Dataset, tmp_path: Path):
    assert SKEW not in image_scores(scored(data, tmp_path, lambda idx: idx % 3, noise="independent", noises=2))
