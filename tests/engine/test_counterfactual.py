"""Removal, regeneration and comparison through Ray equal the plain loop; modes of removal."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from mucs_ray.data.local import LocalImages
from mucs_ray.data.table import Dataset
from mucs_ray.engine import generation, trainings
from mucs_ray.engine.ray_train import TrainJob
from mucs_ray.engine.session import Cluster
from mucs_ray.errors import InputError
from mucs_ray.evaluation.unions import expected_union, union
from mucs_ray.pipeline.graph import Pipeline, RemovalTest
from mucs_ray.results.counterfactual import analyses_of, outcome
from mucs_ray.run.stages.remove import removed_images
from mucs_ray.store import checkpoint
from mucs_ray.store.items import load_item
from mucs_ray.store.run import Stage
from mucs_ray.store.topk import top_lists
from tiny_run import open_tiny, train_all_plainly, train_plainly, work

MSE = {"evaluate": {"metrics": ["mse"]}}
"""The tiny images are too small for SSIM."""


@pytest.fixture(scope="module")
def evaluated(data: Dataset, copied: Callable[[], Path], cluster: Cluster) -> Pipeline:
    """Test by union removal. test_faults.py shows that Ray Train trains the same weights without the same images."""
    pipeline = open_tiny(data, copied(), **MSE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainings, "train_all", train_all_plainly)
        work(pipeline, "evaluate", cluster)
    return pipeline


def retrained_plainly(pipeline: Pipeline, folder: Path, removed: frozenset[int]):
    recipe = pipeline.recipe
    stage = Stage(run_url=str(folder), name="retrain/x", reads={}, inputs={})
    job = TrainJob(
        dataset=pipeline.dataset, stage=stage, model=recipe.model, train=recipe.train, seed=recipe.seed, removed=removed
    )
    return train_plainly(job).average


@pytest.mark.parametrize("method", ["random", "mucs"])
def test_the_whole_test_equals_the_plain_loop(evaluated: Pipeline, method: str, tmp_path: Path):
    recipe, stages = evaluated.recipe, evaluated.stages
    removed = union(top_lists(stages[f"attribute/{method}"]))
    denoiser = retrained_plainly(evaluated, tmp_path, removed)
    stage = stages[f"retrain/{method}"]
    tensors, _ = checkpoint.load(stage.url(stage.part("last", "safetensors")))
    assert all(torch.equal(tensors[name], value) for name, value in denoiser.network.state_dict().items())

    test, expected = LocalImages(evaluated.dataset, "test"), {"target": [], "control": []}
    for planned in generation.plan_items(evaluated.dataset, recipe.generate, recipe.seed):
        with torch.inference_mode():
            (again,) = generation.generate_batch(
                denoiser, generation.lent(test, [planned]), [planned], recipe.generate, recipe.seed
            )
        stored = load_item(stages[f"regenerate/{method}"], planned.number)
        assert torch.equal(stored.z, again.z)
        before = load_item(stages["generate"], planned.number).z
        pixels = [(image.clamp(-1, 1) + 1) / 2 for image in (before, again.z)]
        expected[planned.role].append(-(pixels[0] - pixels[1]).square().mean().item())

    actual = outcome(evaluated, RemovalTest(method, "union"))
    assert (actual.removed, actual.num_images) == (len(removed), 60)
    np.testing.assert_allclose(actual.similarity["mse"], expected["target"], rtol=1e-5)
    np.testing.assert_allclose(actual.controls["mse"], expected["control"], rtol=1e-5)


def matched(evaluated: Pipeline, data: Dataset, size: int) -> Pipeline:
    """Return the same run with matched removal."""
    return open_tiny(data, Path(evaluated.run_url), remove={"mode": "matched", "size": size}, **MSE)


def removal(pipeline: Pipeline, name: str) -> frozenset[int]:
    """Return the images that a retraining leaves out."""
    return removed_images(pipeline, name)


def test_matched_removal_takes_as_many_for_every_method(evaluated: Pipeline, data: Dataset):
    for size, expected in ((0, expected_union(60, 10, 2)), (33, 33)):
        pipeline = matched(evaluated, data, size)
        removed = {method: removal(pipeline, f"retrain/{method}") for method in ("random", "mucs")}
        assert [len(each) for each in removed.values()] == [expected, expected]
        assert removed["random"] != removed["mucs"]
    tops = top_lists(evaluated.stages["attribute/mucs"])
    assert removed["mucs"] > union(tops)


def test_each_item_by_itself(
    data: Dataset, copied: Callable[[], Path], tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
):
    """A training an item, without its own list only; controls are not generated again. Ray Train is tested above."""
    monkeypatch.setattr(trainings, "train_all", train_all_plainly)
    pipeline = open_tiny(data, copied(), methods=("random",), remove={"mode": "per-item"}, **MSE)
    work(pipeline, "evaluate", cluster)
    lists = top_lists(pipeline.stages["attribute/random"])
    for number, top in enumerate(lists):
        stage = pipeline.stages[f"retrain/random/item-{number:04d}"]
        written = Path(stage.url(stage.part("removed", "csv"))).read_text().split()[1:]
        assert {int(idx) for idx in written} == set(top.tolist()) and stage.facts()["removed"] == len(top)
    actual = outcome(pipeline, RemovalTest("random", "per-item"))
    assert actual.removed == len(lists[0]) and len(actual.similarity["mse"]) == 2 and len(actual.controls["mse"]) == 0
    images = [load_item(pipeline.stages["regenerate/random"], number).z for number in range(2)]
    denoiser = retrained_plainly(pipeline, tmp_path / "plain", frozenset(lists[1].tolist()))
    test = LocalImages(pipeline.dataset, "test")
    planned = generation.plan_items(pipeline.dataset, pipeline.recipe.generate, pipeline.recipe.seed)[1]
    with torch.inference_mode():
        (again,) = generation.generate_batch(
            denoiser, generation.lent(test, [planned]), [planned], pipeline.recipe.generate, pipeline.recipe.seed
        )
    assert torch.equal(again.z, images[1])


def test_matched_removal_beside_union(evaluated: Pipeline, data: Dataset, cluster: Cluster, tmp_path: Path):
    """The tests by union removal stay as they are; the headline is that of matched removal."""
    run = Path(shutil.copytree(evaluated.run_url, tmp_path / "run"))
    pipeline = open_tiny(data, run, remove={"mode": "both", "size": 33}, **MSE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainings, "train_all", train_all_plainly)
        done = work(pipeline, "evaluate", cluster)
    tests = [
        f"{phase}/{key}"
        for phase in ("retrain", "regenerate", "evaluate")
        for key in ("random/matched", "mucs/matched")
    ]
    assert done == [*tests, "report"]
    matched, union = analyses_of([pipeline])
    assert (matched.mode, matched.of("mucs").removed, union.mode) == ("matched", (33,), "union")
    assert asdict(union) == asdict(analyses_of([evaluated])[0])
    document = json.loads((run / "report/report.json").read_text())
    assert document["evaluation"]["mode"] == "matched" and list(document["evaluations"]) == ["matched", "union"]
    html = (run / "report.html").read_text()
    assert 'id="evaluation"' in html and 'id="evaluation-union"' in html


def test_too_few_images_left(evaluated: Pipeline, data: Dataset):
    message = r"retrain/mucs would remove 55 of 60 training images, and a batch takes 8; lower rank\.top_percent"
    with pytest.raises(InputError, match=message):
        removal(matched(evaluated, data, 55), "retrain/mucs")
