"""The linear datamodeling score through Ray equals the plain loop, and more subsets can be added later."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from mucs_ray.data.local import LocalImages
from mucs_ray.data.table import Dataset
from mucs_ray.data.thumbnails import thumbnails
from mucs_ray.diffusion.loss import denoising_loss
from mucs_ray.diffusion.noise import generator, normal
from mucs_ray.engine import generation, trainings
from mucs_ray.engine.ray_train import TrainJob
from mucs_ray.engine.session import Cluster
from mucs_ray.engine.subset_outputs import load_outputs
from mucs_ray.evaluation.subsets import chosen, find_blocks, repeat_seed
from mucs_ray.models.adapters import adapter
from mucs_ray.pipeline.graph import Pipeline
from mucs_ray.run.stages.rank import all_scores
from mucs_ray.store import checkpoint
from mucs_ray.store.items import load_item
from mucs_ray.store.parts import matrix, read_part, stored_scores
from mucs_ray.store.run import Stage
from tiny_run import open_tiny, train_all_plainly, train_plainly, work

SUBSETS = {"subsets": 4, "repeats": 1, "blocks": 6, "keep_weights": True}
MSE = {"metrics": ["mse"]}
"""The tiny images are too small for SSIM."""


@pytest.fixture(scope="module")
def trained(data: Dataset, copied: Callable[[], Path], cluster: Cluster) -> Pipeline:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainings, "train_all", train_all_plainly)
        pipeline = open_tiny(data, copied(), lds=SUBSETS, evaluate=MSE)
        work(pipeline, "lds", cluster)
    return pipeline


@pytest.mark.parametrize(("name", "number"), [("lds/train/0003", 3), ("lds/train/0000-repeat", 0)])
def test_a_training_on_a_subset_equals_the_plain_loop(trained: Pipeline, name: str, number: int, tmp_path: Path):
    recipe, every = trained.recipe, thumbnails(trained.dataset)
    idx, label, pixels = every
    kept = chosen(number, idx, find_blocks(pixels, label, 6, seed=recipe.seed), size=30, seed=recipe.seed)
    stage = Stage(run_url=str(tmp_path), name="retrain/x", reads={}, inputs={})
    seed = repeat_seed(recipe.seed) if "repeat" in name else recipe.seed
    removed = frozenset(idx.tolist()) - kept
    job = TrainJob(
        dataset=trained.dataset, stage=stage, model=recipe.model, train=recipe.train, seed=seed, removed=removed
    )
    expected = train_plainly(job).average.network.state_dict()
    tensors, _ = checkpoint.load(trained.stage(name).url(trained.stage(name).part("last", "safetensors")))
    assert len(removed) == 30 and all(torch.equal(tensors[key], value) for key, value in expected.items())


def test_outputs_equal_the_plain_loop(trained: Pipeline):
    recipe, generated = trained.recipe, trained.stages["generate"]
    training, stage = trained.stage("lds/train/0001"), trained.stage("lds/outputs/0001")
    tensors, _ = checkpoint.load(training.url(training.part("last", "safetensors")))
    denoiser = adapter(recipe.model).model(torch.device("cpu"), tensors)
    planned = generation.plan_items(trained.dataset, recipe.generate, recipe.seed)[:2]
    stored = load_outputs(stage)
    levels = denoiser.process.training_levels(generator(recipe.seed, "lds/level"), 60)
    noises = normal(generator(recipe.seed, "lds/noise"), 60, 3, 8, 8)
    test = LocalImages(trained.dataset, "test")
    table = read_part(
        trained.stage("lds/similarity").checked(trained.stage("lds/similarity").part("similarity", "parquet"))
    )
    with torch.inference_mode():
        for number, target in enumerate(planned):
            (again,) = generation.generate_batch(
                denoiser, generation.lent(test, [target]), [target], recipe.generate, recipe.seed
            )
            assert torch.equal(stored["image"][number], again.z)
            original = load_item(generated, number)
            condition = {name: tensor.expand(60, -1) for name, tensor in original.condition.items()}
            losses = denoising_loss(
                denoiser.process, denoiser, original.z.expand(60, -1, -1, -1), noises, levels, condition
            )
            torch.testing.assert_close(stored["loss"][number], losses.mean())
            pixels = [(image.clamp(-1, 1) + 1) / 2 for image in (original.z, again.z)]
            mse = -(pixels[0] - pixels[1]).square().mean().item()
            assert matrix(table, "mse")[1, number] == pytest.approx(mse, rel=1e-5)
    assert table["subset"].to_pylist() == [0, 1, 2, 3, 0] and table["repeat"].to_pylist() == [False] * 4 + [True]


def test_scores_equal_the_plain_loop(trained: Pipeline):
    recipe = trained.recipe
    idx, label, pixels = thumbnails(trained.dataset)
    block = find_blocks(pixels, label, 6, seed=recipe.seed)
    kept = [sorted(chosen(number, idx, block, size=30, seed=recipe.seed)) for number in range(4)]
    scores = all_scores(stored_scores(trained.stages["attribute/random"]))[1].astype(float)
    predicted = np.stack([scores[rows].sum(axis=0) for rows in kept])  # idx are the rows here
    seen = np.stack([load_outputs(trained.stage(f"lds/outputs/{number:04d}"))["loss"] for number in range(4)])
    expected = np.mean([spearmanr(predicted[:, item], -seen[:, item]).statistic for item in range(2)])
    written = json.loads((Path(trained.run_url) / "lds/lds.json").read_text())
    of_all, kind = written["kinds"]  # two uniform subsets, and two of blocks, are too few for scores of their own
    methods = {method["method"]: method for method in kind["methods"]}
    assert (
        {*methods} == {"random", "mucs"}
        and of_all["subsets"] == kind["subsets"] == 4
        and written["names"] == ["mse", "loss"]
    )
    assert methods["random"]["scores"]["loss"]["mean"] == pytest.approx(expected)
    table = (Path(trained.run_url) / "lds/lds.csv").read_text().splitlines()
    assert table[0].startswith("subsets,method,f,lds") and len(table) == 1 + 2 * 2 * 2
    assert json.loads((Path(trained.run_url) / "report/report.json").read_text())["lds"] == written
    assert 'id="lds"' in (Path(trained.run_url) / "report.html").read_text()


def test_more_subsets_can_be_added(trained: Pipeline, data: Dataset):
    more = open_tiny(data, Path(trained.run_url), lds={**SUBSETS, "subsets": 6}, evaluate=MSE)
    missing = [name for name, state in more.plan("lds").items() if state.status != "done"]
    new = [f"lds/{phase}/000{number}" for phase in ("train", "outputs") for number in (4, 5)]
    assert missing == [*new, "lds/similarity", "lds", "report"]


def test_a_model_whose_outputs_are_stored_is_not_needed_any_more(trained: Pipeline, copied_run: Path, data: Dataset):
    stage = trained.stage("lds/train/0002")
    weights = copied_run / "lds/train/0002" / stage.part("last", "safetensors")
    weights.unlink()
    again = open_tiny(data, copied_run, lds=SUBSETS, evaluate=MSE)
    assert {name: state for name, state in again.plan("lds").items() if state.status != "done"} == {}
    (copied_run / "lds/outputs/0002/manifest.json").unlink()
    missing = [name for name, state in again.plan("lds").items() if state.status != "done"]
    assert missing == ["lds/train/0002", "lds/outputs/0002"]


@pytest.fixture
def copied_run(trained: Pipeline, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained.run_url, tmp_path / "run"))
