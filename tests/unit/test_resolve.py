"""The recipe of a data set that has none of its own suits the machine, and a run that was begun keeps its own."""

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console

from mucs_ray import storage
from mucs_ray.data.table import Dataset
from mucs_ray.pipeline.graph import Pipeline
from mucs_ray.run.request import Request, open_runs
from tiny import tiny_dataset

SMALL_WIDTH = 96


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("data") / "mine")


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def opened(data: Dataset, run: Path, **options: object) -> tuple[Pipeline, str]:
    console = Console(file=io.StringIO(), width=200)
    (pipeline,) = open_runs(
        Request(
            dataset=data.url,
            run=str(run),
            settings=["generate.items=4", "generate.controls=0", "train.batch_size=8"],
            **options,
        ),  # pyright: ignore[reportArgumentType]
        console,
    )
    return pipeline, console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def is_small(pipeline: Pipeline) -> bool:
    return pipeline.recipe.model.to_dict()["width"] == SMALL_WIDTH


def test_a_machine_without_a_gpu_takes_the_small_recipe(data: Dataset, tmp_path: Path):
    pipeline, told = opened(data, tmp_path / "run")
    assert is_small(pipeline) and pipeline.recipe.name == "mine" and pipeline.recipe.data == data.url
    assert (
        told
        == "there is no GPU here, so the recipe is custom-small, a small network; --recipe custom takes a large one\n"
    )


def test_the_large_recipe_where_it_is_asked_for_or_can_be_trained(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for options in ({"recipe": "custom"}, {"address": "auto"}):
        pipeline, told = opened(data, tmp_path / "run", **options)
        assert not is_small(pipeline) and told == ""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert not is_small(opened(data, tmp_path / "run")[0])


def test_a_run_that_was_begun_keeps_its_network(data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for recipe, small in (("custom", False), ("custom-small", True)):
        run = tmp_path / recipe
        begun, _ = opened(data, run, recipe=recipe)
        storage.publish_json(storage.join(begun.run_url, "recipe.json"), begun.describe())
        for has_gpu in (False, True):
            monkeypatch.setattr(torch.cuda, "is_available", lambda has_gpu=has_gpu: has_gpu)
            assert is_small(opened(data, run)[0]) == small
