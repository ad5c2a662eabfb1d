"""Kinds of models: how a recipe names one, what is refused."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from waves import KIND, WavesConfig

from mucs_ray.config.recipe import Recipe, build, check_fits, from_card, model_spec, read_recipe
from mucs_ray.data.table import Dataset
from mucs_ray.diffusion.batch import Batch
from mucs_ray.diffusion.model import DiffusionModel
from mucs_ray.diffusion.noise import generator, normal
from mucs_ray.diffusion.vp import VP
from mucs_ray.diffusion.vp_config import Betas
from mucs_ray.errors import InputError
from mucs_ray.models.adapters import KINDS, adapter, find
from mucs_ray.models.dit_config import DiTConfig
from mucs_ray.models.dit_edm import DiTEDM
from mucs_ray.models.spec import ModelSpec
from mucs_ray.pipeline.graph import Pipeline, reopen
from mucs_ray.run.resolve import with_kind
from mucs_ray.storage import join, publish_json
from mucs_ray.store.weights import model_facts
from mucs_ray.store.weights import model_spec as weights_spec
from mucs_ray.training.config import TrainConfig
from mucs_ray.training.step import TrainState, WorkerContext, training
from tiny import TINY, tiny_dataset, tiny_recipe

CPU = torch.device("cpu")
NETWORKS = [name for name in KINDS if name != "diffusers"]
"""The kinds whose networks are built here; the others bring theirs (test_pipelines.py)."""
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


def small(name: str) -> ModelSpec:
    """A network of each kind that takes no time."""
    values: dict[str, Any] = {
        "dit-edm": TINY["model"],
        "dit-vp": {**TINY["model"], "registers": 0},
        "unet-edm": {"image_size": 8, "channels": 8, "multipliers": [1, 2], "blocks": 1, "attention_at": [4]},
        "unet-vp": {"image_size": 8, "channels": 8, "multipliers": [1, 2], "blocks": 1, "attention_at": [4]},
        "unet2d": {
            "image_size": 8, "channels": [8, 16], "layers": 1, "attention_down": [False, True],
            "attention_up": [False, True], "head_width": 4, "groups": 4, "timesteps": 50,
        },
    }  # fmt: skip
    return model_spec({"kind": name, **values[name]})


class Pictures:
    """Thirty of them."""

    def __init__(self, model: DiffusionModel) -> None:
        self.shape, self.nothing = model.shape, model.nothing(30)

    def __len__(self) -> int:
        return 30

    def batch(self, rows: np.ndarray, stream: np.random.Generator | None = None) -> Batch:
        z = torch.tanh(normal(generator(1, "pictures"), 30, *self.shape))
        condition = {name: torch.ones_like(tensor) for name, tensor in self.nothing.items()}
        return Batch(idx=torch.arange(30), z=z, condition=condition)[torch.from_numpy(rows)]


@pytest.mark.parametrize("name", NETWORKS)
def test_every_kind_is_trained(name: str):
    """Some updates bring the loss down; the weights come back out of what a run stores."""
    spec = small(name)
    spec.check()
    kind = adapter(spec)
    model, trainer = kind.untrained(1, CPU), kind.trainer()
    assert model is not None and trainer is not None
    images = Pictures(model)
    config = TrainConfig(updates=30, updates_per_epoch=15, batch_size=16, learning_rate=3e-3, warmup_epochs=0)
    state = TrainState.fresh(model, config)
    updates = training(state, images, images, config, seed=1, worker=WorkerContext(), augment=trainer.augment)
    losses = [update.loss.item() for update in updates]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    saved = kind.model(CPU, state.average.network.state_dict())
    again = adapter(weights_spec(model_facts(spec), "x")).model(CPU, saved.network.state_dict())
    assert all(map(torch.equal, saved.state_dict().values(), again.state_dict().values()))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_kind_fills_what_its_recipe_leaves_open_and_refuses_what_does_not_fit(name: str, dataset: Dataset):
    plain = {"name": "x", "data": dataset.url, "train": {"batch_size": 8}, "generate": {"items": 1, "controls": 1}}
    recipe = build(from_card({**plain, "model": {"kind": name}}, dataset.card))
    shape = adapter(recipe.model).model(torch.device("meta")).shape
    assert shape == (3, dataset.card.size, dataset.card.size)
    assert recipe.model.conditional
    other = build({**plain, "model": {"kind": name, "image_size": 64}})
    with pytest.raises(InputError, match=r"is 64 but .* holds 8 px images"):
        check_fits(other, dataset.card)
    width = "num_classes" if name == "unet2d" else "condition_dim"
    other = build({**plain, "model": {"kind": name, "image_size": 8, width: 7}})
    with pytest.raises(InputError, match=rf"model\.{width} is 7 but .* has conditions of width 3"):
        check_fits(other, dataset.card)


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ({"kind": "dit-vp", "registers": 4}, "model.registers must be 0 for a DiT-VP, found 4"),
        ({"kind": "unet-edm", "image_size": 30}, "model.image_size 30 is not a multiple of 4"),
        ({"kind": "unet-vp", "channels": 0}, "model.channels must be at least 1, found 0"),
        ({"kind": "unet-vp", "channels": 36}, "feature maps of 144 channels, which do not divide into 32 groups"),
        ({"kind": "unet2d", "image_size": 20}, "model.image_size 20 is not a multiple of 8"),
        ({"kind": "unet2d", "attention_up": [True]}, "model.attention_up: expected true or false for each of 4 levels"),
        ({"kind": "unet2d", "channels": [48, 96, 96, 96]}, "model.channels 48 must be even and a multiple of groups"),
        ({"kind": "unet2d", "in_channels": 4}, "model.in_channels is 4, but pictures have 3 channels"),
        ({"kind": "unet2d", "beta_start": 0.5}, "expected 0 < model.beta_start < model.beta_end < 1; found 0.5"),
        ({"kind": "unet2d", "beta_schedule": "trained"}, "belong together; give both"),
        ({"kind": "unet2d", "dropout": 1.5}, "model.dropout must be at most 1, found 1.5"),
    ],
)
def test_sizes_that_make_no_network_are_one_line(model: dict[str, Any], told: str):
    with pytest.raises(InputError) as refused:
        model_spec(model).check()
    assert told in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("size", "width", "depth"), [("S", 384, 12), ("B", 768, 12), ("L", 1024, 24), ("XL", 1152, 28)]
)
def test_a_size_of_the_dit_is_one_word(size: str, width: int, depth: int):
    """Counted by hand: attention 4 w^2 + w, MLP 8 w^2 + 5 w, and six vectors of w out of 256 channels, with bias."""
    spec = model_spec({"size": size})
    assert isinstance(spec, DiTConfig) and "size" not in spec.to_dict()
    network = adapter(spec).model(torch.device("meta")).network
    blocks = [each.numel() for name, each in network.named_parameters() if name.startswith("dit_backbone.")]
    assert sum(blocks) == depth * (12 * width**2 + 6 * width + 6 * width * 257)


def test_a_size_that_is_none_or_is_told_twice():
    with pytest.raises(InputError, match=r"recipe key model\.size: expected one of S, B, L, XL; found 'M'"):
        model_spec({"size": "M"})
    with pytest.raises(InputError, match=r"model\.size says what model\.depth is; leave one of them out"):
        model_spec({"size": "S", "depth": 3})


@pytest.mark.parametrize("name", ["cifar10_dit_vp", "cifar10_unet_edm", "cifar10_unet_vp", "ddpm", "custom-small"])
def test_the_recipes_of_other_networks_are_recipes(name: str):
    recipe = build(read_recipe(name))
    recipe.model.check()
    assert adapter(recipe.model).model(torch.device("meta")).shape == (3, 32, 32)


def test_the_recipe_of_ddpm_is_the_network_of_guda():
    model = adapter(build(read_recipe("ddpm")).model).model(torch.device("meta"))
    assert sum(each.numel() for each in model.network.parameters()) == 49_062_787
    assert isinstance(model.process, VP) and model.process.betas == Betas(schedule="squaredcos_cap_v2", steps=4000)


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


def test_another_kind_starts_from_its_own_defaults_whatever_the_recipe_says_of_its_own():
    recipe = read_recipe("artbench10")
    assert with_kind(recipe, ["model.kind=unet-edm", "model.blocks=2"])["model"] == {"kind": "unet-edm", "blocks": 2}
    assert with_kind(recipe, ["model.kind=dit-edm"])["model"] == {**recipe["model"], "kind": "dit-edm"}
    assert with_kind(recipe, ["score.noises=3"])["model"] == recipe["model"]
    assert with_kind({"name": "x"}, ["model.kind=unet-vp"])["model"] == {"kind": "unet-vp"}
