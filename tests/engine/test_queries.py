"""Pictures of the user's go through the same stages as generated ones, and the model is not trained again for them."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mucs_ray import storage
from mucs_ray.config.recipe import with_values
from mucs_ray.data.queries import find_queries
from mucs_ray.data.table import Dataset
from mucs_ray.engine.session import Cluster
from mucs_ray.errors import InputError
from mucs_ray.pipeline.graph import Pipeline, StageRef, reopen
from mucs_ray.results import report
from mucs_ray.run import driver
from mucs_ray.run.stages.rank import score_parts
from mucs_ray.store.item_names import item_file
from mucs_ray.store.items import load_item
from mucs_ray.store.parts import matrix, stored_scores
from mucs_ray.store.topk import read_topk
from tiny_run import work

METHODS = ("mucs", "pixel")


def open_queries(finished: Pipeline, run: Path, images: list[str], **condition: str) -> Pipeline:
    return Pipeline.open(
        finished.recipe,
        finished.dataset,
        str(run),
        console=finished.console,
        methods=METHODS,
        queries=find_queries(images, **condition),
    )


def scores(pipeline: Pipeline, method: str) -> np.ndarray:
    return np.concatenate([matrix(table, "score") for table in stored_scores(pipeline.stages[f"attribute/{method}"])])


@pytest.fixture(scope="module")
def files(finished: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The first generated image as its tensor and as a PNG, and a training image."""
    folder, stage = tmp_path_factory.mktemp("pictures"), finished.stages["generate"]
    shutil.copy(stage.url(item_file(stage, 0)), folder / "exact.safetensors")
    pixels = np.array(Image.open(stage.url(stage.part("item-0000", "png"))))
    pixels[0, 0] ^= 1  # else it is recognized
    Image.fromarray(pixels).save(folder / "[8] bit.png")
    return [str(folder / "exact.safetensors"), str(folder / "[8] bit.png"), "idx:5"]


@pytest.fixture(scope="module")
def answered(finished: Pipeline, files: list[str], copied: Callable[[], Path], cluster: Cluster) -> Pipeline:
    pipeline = open_queries(finished, copied(), files)
    done = work(pipeline, "attribute", cluster)
    assert "pretrain" not in done and "attribute/mucs/null" not in done
    for run in (pipeline, pipeline.model_run):
        storage.publish_json(storage.join(run.run_url, "recipe.json"), run.describe())
    return pipeline


def test_queries_become_items(answered: Pipeline, finished: Pipeline):
    names = [Path(query.name).name for query in answered.queries]
    items = {name: load_item(answered.stages["generate"], number) for number, name in enumerate(names)}
    generated = load_item(finished.stages["generate"], 0)
    assert torch.equal(items["exact.safetensors"].z, generated.z)
    assert (items["[8] bit.png"].z - generated.z.clamp(-1, 1)).abs().max() <= 3 / 255 + 1e-6
    assert torch.equal(items["[8] bit.png"].condition["condition"], torch.zeros(3))  # none was named
    # the file of the run's own tensor is known by its content, and so are its condition and its noise
    assert torch.equal(items["exact.safetensors"].condition["condition"], generated.condition["condition"])
    assert items["exact.safetensors"].idx == generated.idx
    (row,) = [
        table.filter([idx == 5 for idx in table["idx"].to_pylist()]) for table in finished.dataset.stream("train")
    ][:1]
    batch = finished.dataset.batch(row)
    assert items["idx:5"].idx == 5 and torch.equal(items["idx:5"].z, batch.z[0])
    assert torch.equal(items["idx:5"].condition["condition"], batch.condition["condition"][0])
    top = read_topk(answered.stages["attribute/pixel"])[names.index("idx:5")]
    assert top[0]["idx"] == "5"  # nothing is nearer to a training image than itself


def test_an_answer_does_not_depend_on_company(
    answered: Pipeline, finished: Pipeline, files: list[str], copied: Callable[[], Path], cluster: Cluster
):
    alone = open_queries(finished, copied(), files[:1])
    work(alone, "attribute", cluster)
    (number,) = [n for n, query in enumerate(answered.queries) if query.idx == alone.queries[0].idx]
    for method in METHODS:
        assert np.array_equal(scores(alone, method)[:, 0], scores(answered, method)[:, number])


def test_a_further_query_reads_no_training_picture(
    finished: Pipeline, files: list[str], copied: Callable[[], Path], cluster: Cluster, tmp_path: Path
):
    """The features are those of the first query; when the second is asked for the training set is gone."""
    methods = ("das", "mucs/linear")
    dataset = Dataset.open(str(shutil.copytree(finished.dataset.url, tmp_path / "data")))
    small = {f"method.{method}.{name}": number for method in methods for name, number in (("dim", 16), ("noises", 2))}
    recipe, run = replace(with_values(finished.recipe, small), data=dataset.url), copied()
    first, second = (
        Pipeline.open(
            recipe, dataset, str(run), console=finished.console, methods=methods, queries=find_queries([image])
        )
        for image in (files[1], files[2])
    )
    done = work(first, "attribute", cluster)
    assert {f"attribute/{method}/{part}" for method in methods for part in ("features", "solve")} <= {*done}
    driver.run_stages([StageRef(second, "generate")])
    for file in (tmp_path / "data/train").iterdir():
        file.unlink()
    parts = ["attribute/das/items", "attribute/das/score", "attribute/mucs/unlearn", "attribute/mucs/linear/score"]
    left = [ref for ref in driver.missing_stages([second], "attribute") if ref.name in parts]
    assert sorted(ref.name for ref in left) == sorted(parts)
    driver.run_stages(left)
    for method in methods:
        tables = score_parts(second.stages[f"attribute/{method}/score"], dataset.units("train"), "skew")
        top = np.concatenate([matrix(table, "score") for table in tables])
        assert len(top) == dataset.card.num_images("train") and np.isfinite(top).all()


def test_a_class_is_the_vector_of_training_images(
    finished: Pipeline, files: list[str], copied: Callable[[], Path], cluster: Cluster
):
    pipeline = open_queries(finished, copied(), [files[1]], label="GREEN")
    work(pipeline, "generate", cluster)
    condition = load_item(pipeline.stages["generate"], 0).condition["condition"]
    rows = finished.dataset.batch(next(finished.dataset.stream("train")))
    assert torch.equal(condition, rows.condition["condition"][1])  # the second image is green
    assert condition.tolist() == [0, 1, 0] and condition.dtype == torch.float32


def test_an_image_that_the_run_generated_is_known_again(
    finished: Pipeline, copied: Callable[[], Path], cluster: Cluster, tmp_path: Path
):
    stage = finished.stages["generate"]
    Image.open(stage.url(stage.part("item-0001", "png"))).save(tmp_path / "again.png", compress_level=1)
    pipeline = open_queries(finished, copied(), [str(tmp_path / "again.png")])
    work(pipeline, "generate", cluster)
    again, first = load_item(pipeline.stages["generate"], 0), load_item(stage, 1)
    assert torch.equal(again.z, first.z) and again.idx == first.idx  # which names its noise
    assert torch.equal(again.condition["condition"], first.condition["condition"])


def test_a_run_with_queries_is_read_off_its_directory(answered: Pipeline):
    again = reopen(answered.run_url, console=answered.console)
    assert again.queries == answered.queries
    states = again.plan("attribute")
    assert {state.status for state in states.values()} == {"done"} and driver.missing_stages([again], "attribute") == []
    html = (Path(answered.run_url) / "report.html").read_text()
    assert "[8] bit.png" in html and "No class or caption was named" in html and "8-bit pixels" in html
    names = [item["query"] for item in report.as_json(again, ())["attributions"]["mucs"]["items"]]
    assert sorted(Path(name).name for name in names) == ["[8] bit.png", "exact.safetensors", "idx:5"]


def test_bad_queries_are_one_line(finished: Pipeline, tmp_path: Path, cluster: Cluster):
    with pytest.raises(InputError, match="no class 'reed'; did you mean red"):
        np.save(tmp_path / "z.npy", np.zeros((3, 8, 8)))
        open_queries(finished, tmp_path / "run", [str(tmp_path / "z.npy")], label="reed")
    for name, message in {
        "idx:999": "has no image of this number",
        "flat.npy": r"expected z of shape \(3, 8, 8\)",
    }.items():
        np.save(tmp_path / "flat.npy", np.zeros((8, 8)))
        image = name if name.startswith("idx:") else str(tmp_path / name)
        pipeline = open_queries(finished, Path(finished.run_url), [image])
        with pytest.raises(InputError, match=message):
            work(pipeline, "attribute", cluster)
    with pytest.raises(InputError, match="lds explains no pictures"):
        pipeline.plan("lds")
    order = [ref.name for ref in driver.missing_stages([pipeline], "attribute")]
    assert order[0] == "generate"  # a bad picture is reported before anything is trained


def test_the_model_of_a_run_is_never_trained_again_for_pictures(finished: Pipeline, answered: Pipeline):
    """Settings that would make it stale are refused, and an answer is not taken for a run."""
    queries = find_queries(["idx:5"])
    other = replace(finished.recipe, seed=2)
    with pytest.raises(InputError, match=r"made with other settings \(seed 1 -> 2\)"):
        Pipeline.open(other, finished.dataset, finished.run_url, console=finished.console, queries=queries)
    with pytest.raises(InputError, match=f"a part of a run; give --run {answered.model_run.run_url}$"):
        Pipeline.open(finished.recipe, finished.dataset, answered.run_url, console=finished.console)
