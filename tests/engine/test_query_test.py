"""Pictures of the user's are tested by removal too: by their loss, and by images where those can be made again."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mucs_ray import storage
from mucs_ray.data.local import LocalImages
from mucs_ray.data.queries import find_queries
from mucs_ray.engine import generation, trainings
from mucs_ray.engine.ray_train import TrainJob
from mucs_ray.engine.session import Cluster
from mucs_ray.errors import InputError
from mucs_ray.evaluation.item_loss import evaluation_noises, item_losses
from mucs_ray.evaluation.unions import union
from mucs_ray.models.adapters import adapter
from mucs_ray.pipeline.graph import Pipeline, RemovalTest, reopen
from mucs_ray.results import counterfactual, report
from mucs_ray.run import driver
from mucs_ray.store import checkpoint
from mucs_ray.store.facts import LossFacts, read_facts
from mucs_ray.store.items import load_item
from mucs_ray.store.run import Stage
from mucs_ray.store.topk import top_lists
from tiny import tiny_recipe
from tiny_run import train_all_plainly, train_plainly, work


@pytest.fixture(autouse=True)
def quick_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainings, "train_all", train_all_plainly)


def opened(finished: Pipeline, run: Path, images: list[str], **evaluate: object) -> Pipeline:
    recipe = tiny_recipe(
        finished.dataset.url,
        score={"keep_losses": True},
        engine={"train_workers": 1, "actors": [1, 1]},
        evaluate={"metrics": ["mse"], "noises": 7, **evaluate},
    )
    return Pipeline.open(
        recipe, finished.dataset, str(run), console=finished.console, methods=("pixel",), queries=find_queries(images)
    )


def evaluated(pipeline: Pipeline, cluster: Cluster) -> list[str]:
    assert pipeline.model_run is not None
    done = work(pipeline, "evaluate", cluster)
    for run in (pipeline, pipeline.model_run):
        storage.publish_json(storage.join(run.run_url, "recipe.json"), run.describe())
    return done


@pytest.fixture
def stranger(tmp_path: Path) -> str:
    pixels = np.random.default_rng(3).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "stranger.png")
    return str(tmp_path / "stranger.png")


def test_a_picture_without_known_noise_is_compared_by_its_loss(
    finished: Pipeline, copied: Callable[[], Path], cluster: Cluster, stranger: str, tmp_path: Path
):
    pipeline = opened(finished, copied(), [stranger, "idx:5"])
    with pytest.raises(InputError, match=r"idx:5 was not generated in this run.*--set evaluate\.fresh=8"):
        pipeline.plan("regenerate")
    done = evaluated(pipeline, cluster)
    assert "pretrain" not in done and not any(name.startswith(("regenerate", "generate/")) for name in done)
    assert (Path(pipeline.run_url) / "retrain/pixel/manifest.json").exists()

    recipe, model = pipeline.recipe, adapter(pipeline.recipe.model)
    items = [load_item(pipeline.stages["generate"], number) for number in range(2)]
    for method in ("random", "pixel"):  # the loss of the plain loop, bit for bit
        removed = union(top_lists(pipeline.stages[f"attribute/{method}"]))
        stage = Stage(run_url=str(tmp_path), name=f"retrain/{method}", reads={}, inputs={})
        job = TrainJob(
            dataset=pipeline.dataset, stage=stage, model=recipe.model, train=recipe.train, seed=1, removed=removed
        )
        after = train_plainly(job).average
        with torch.inference_mode():
            losses = item_losses(after, items, evaluation_noises(after, 7, seed=1))
        facts = read_facts(pipeline.stage(f"evaluate/{method}"), LossFacts)
        assert facts.after == losses.mean(dim=1).tolist()
    pretrained = pipeline.stages["pretrain"]
    tensors, _ = checkpoint.load(pretrained.url(pretrained.part("last", "safetensors")))
    before = model.model(torch.device("cpu"), tensors)
    with torch.inference_mode():
        assert facts.before == item_losses(before, items, evaluation_noises(before, 7, seed=1)).mean(dim=1).tolist()

    (analysis,) = counterfactual.analyses_of([pipeline])
    assert analysis.metrics == ("skew", "loss") and analysis.num_items == 2
    measured = counterfactual.outcome(pipeline, RemovalTest("pixel", "union"))
    np.testing.assert_allclose(measured.similarity["loss"], -np.asarray(facts.after), rtol=1e-6)
    document = json.loads((Path(pipeline.run_url) / "report/report.json").read_text())
    assert document["loss_before"] == facts.before and document["loss_after"]["pixel"] == facts.after
    assert "on the same 7 noises" in document["compared_by"]
    html = (Path(pipeline.run_url) / "report.html").read_text()
    assert "The noise that the pictures were made from is not known" in html and "loss of the pictures" in html
    assert "generated images" not in html[html.index('id="evaluation"') : html.index("Remarks")]
    again = reopen(pipeline.run_url, console=pipeline.console)
    assert again.last_command() == "evaluate" and driver.missing_stages([again], "evaluate") == []


def test_a_picture_of_the_run_is_made_again_from_its_noise(
    finished: Pipeline, copied: Callable[[], Path], cluster: Cluster, tmp_path: Path
):
    stage = finished.stages["generate"]
    shutil.copy(stage.url(stage.part("item-0001", "png")), tmp_path / "own.png")
    pipeline = opened(finished, copied(), [str(tmp_path / "own.png")])
    evaluated(pipeline, cluster)
    retrained = pipeline.stages["retrain/pixel"]
    tensors, _ = checkpoint.load(retrained.url(retrained.part("last", "safetensors")))
    model = adapter(pipeline.recipe.model).model(torch.device("cpu"), tensors)
    planned = generation.plan_items(finished.dataset, finished.recipe.generate, finished.recipe.seed)[1]
    lenders = LocalImages(finished.dataset, "test")
    with torch.inference_mode():
        (again,) = generation.generate_batch(
            model, generation.lent(lenders, [planned]), [planned], pipeline.recipe.generate, 1
        )
    assert torch.equal(load_item(pipeline.stages["regenerate/pixel"], 0).z, again.z)
    before = load_item(stage, 1).z
    pixels = [(image.clamp(-1, 1) + 1) / 2 for image in (before, again.z)]
    measured = counterfactual.outcome(pipeline, RemovalTest("pixel", "union")).similarity
    assert list(measured) == ["mse", "skew", "loss"]
    assert measured["mse"][0] == pytest.approx(-(pixels[0] - pixels[1]).square().mean().item(), rel=1e-5)
    assert (
        "generated again from its own noise"
        in report.as_json(pipeline, counterfactual.analyses_of([pipeline]))["compared_by"]
    )


def test_fresh_images_stand_for_a_picture(
    finished: Pipeline, copied: Callable[[], Path], cluster: Cluster, stranger: str
):
    pipeline = opened(finished, copied(), [stranger, "idx:5"], fresh=3)
    evaluated(pipeline, cluster)
    first, again = pipeline.stages["generate/fresh"], pipeline.stages["regenerate/random"]
    images = [[load_item(stage, number) for number in range(6)] for stage in (first, again)]
    assert len({item.idx for item in images[0]}) == 6  # each has noise of its own, the same before and after
    assert [item.idx for item in images[0]] == [item.idx for item in images[1]]
    given = [load_item(pipeline.stages["generate"], number).condition["condition"] for number in (0, 0, 0, 1, 1, 1)]
    assert all(torch.equal(item.condition["condition"], one) for item, one in zip(images[0], given, strict=True))
    clamped = [torch.stack([(item.z.clamp(-1, 1) + 1) / 2 for item in side]) for side in images]
    expected = -(clamped[0] - clamped[1]).square().mean(dim=(1, 2, 3)).view(2, 3).mean(dim=1)
    measured = counterfactual.outcome(pipeline, RemovalTest("random", "union")).similarity
    np.testing.assert_allclose(measured["mse"], expected.numpy(), rtol=1e-5)
    assert "3 fresh images" in (Path(pipeline.run_url) / "report.html").read_text()
    (level,) = counterfactual.unrelated([pipeline])
    assert len(level.similarity["mse"]) == 2
