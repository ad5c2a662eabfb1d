"""Kinds of models: how a recipe names one, what is refused."""

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from waves import KIND, WavesConfig

from mucs_ray.config.recipe import Recipe, build, check_fits, from_card
from mucs_ray.data.table import Dataset
from mucs_ray.errors import InputError
from mucs_ray.models.adapters import KINDS, adapter, find
from mucs_ray.models.dit_config import DiTConfig
from mucs_ray.models.dit_edm import DiTEDM
from mucs_ray.pipeline.graph import Pipeline, reopen
from mucs_ray.storage import join, publish_json
from tiny import TINY, tiny_dataset, tiny_recipe

CPU = torch.device("cpu")
OWN = {**TINY, "model": {"kind": KIND, "channels": 3}}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("data"))


def opened(recipe: Recipe, dataset: Dataset, folder: Path) -> Pipeline:
    return Pipeline.open(recipe, dataset, str(folder), console=Console(file=io.StringIO()))


def test_the_first_kind_is_the_one_that_need_not_be_named(dataset: Dataset, tmp_path: Path):
    """Neither its recipes nor its fingerprints changed when there came to be kinds."""
    plain = tiny_recipe(dataset.url)
    named = tiny_recipe(dataset.url, model={"kind": "dit-edm"})
    assert named == plain and isinstance(plain.model, DiTConfig)
    assert "kind" not in plain.to_dict()["model"]
    stages = [opened(recipe, dataset, tmp_path).stages for recipe in (plain, named)]
    assert stages[0]["pretrain"].fingerprint == stages[1]["pretrain"].fingerprint
    assert not any(key == "model.kind" for key in stages[0]["pretrain"].reads)


def test_another_kind_has_its_own_settings(dataset: Dataset, tmp_path: Path):
    recipe = build({**OWN, "data": dataset.url})
    assert recipe.model == WavesConfig(channels=3)
    assert recipe.to_dict()["model"] == {"kind": KIND, "channels": 3, "loudness": 0.2}
    reads = opened(recipe, dataset, tmp_path).stages["pretrain"].reads
    assert (reads["model.kind"], reads["model.channels"]) == (KIND, 3)
    values = {**OWN, "data": dataset.url}
    assert from_card(values, dataset.card) == values  # nothing is left open that it could take from a card
    check_fits(recipe, dataset.card)


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ({"kind": "gan"}, "unknown model.kind 'gan'; known: dit-edm"),
        ({"kind": 3}, "recipe key model.kind: expected one of dit-edm"),
        ({"kind": "nowhere:Model"}, "model.kind nowhere:Model: ModuleNotFoundError"),
        ({"kind": "waves:Rows"}, "is not a subclass of mucs_ray.models.adapter.Adapter"),
        ({"kind": "waves:Halfway"}, "model.kind waves:Halfway lacks model"),
        ({"kind": "waves:Nameless"}, "WavesConfig has to say kind = 'waves:Nameless'"),
        ({"kind": KIND, "chanels": 3}, "unknown recipe key model.chanels; did you mean model.channels?"),
        ({"kind": KIND, "channels": "many"}, "recipe key model.channels: "),
        ({"kind": KIND, "width": 3}, "unknown recipe key model.width"),
    ],
)
def test_a_kind_or_setting_that_is_not_there_is_one_line(model: dict[str, Any], told: str):
    with pytest.raises(InputError) as refused:
        build({**OWN, "data": "x", "model": model})
    assert told in str(refused.value) and "\n" not in str(refused.value)


def test_an_adapter_builds_the_model_that_its_name_stands_for():
    recipe = tiny_recipe("x")
    kind = adapter(recipe.model)
    first, again, other = (kind.untrained(seed, CPU) for seed in (1, 1, 2))
    assert isinstance(first, DiTEDM) and again is not None and other is not None
    state, same, different = (model.network.state_dict() for model in (first, again, other))
    assert all(torch.equal(tensor, same[name]) for name, tensor in state.items())
    assert not all(torch.equal(tensor, different[name]) for name, tensor in state.items())
    model = kind.model(CPU, other.network.state_dict())
    assert all(torch.equal(tensor, different[name]) for name, tensor in model.network.state_dict().items())
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())
    assert {parameter.device.type for parameter in kind.model(torch.device("meta")).parameters()} == {"meta"}


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_that_trains_has_all_that_training_asks_for(name: str):
    card = find(name)
    made = card.load()(card.spec_class())
    assert made.spec_class is card.spec_class and card.spec_class.kind == name
    assert (made.trainer() is not None) == card.spec_class.trains


def test_a_model_that_cannot_be_trained_is_only_attributed_to(dataset: Dataset, tmp_path: Path):
    pipeline = opened(build({**OWN, "data": dataset.url}), dataset, tmp_path)
    assert pipeline.stages["pretrain"].inputs == {}
    assert not any(name.startswith("retrain") for name in pipeline.stages)
    with pytest.raises(InputError, match=r"model\.kind waves:Waves cannot be trained here; use attribute"):
        pipeline.target_stages("retrain")


def test_its_recipe_comes_back_from_a_run_directory(dataset: Dataset, tmp_path: Path):
    pipeline = opened(build({**OWN, "data": dataset.url}), dataset, tmp_path / "run")
    publish_json(join(pipeline.run_url, "recipe.json"), pipeline.describe())
    assert reopen(pipeline.run_url, console=pipeline.console).recipe == pipeline.recipe
