"""benchmarks/gpu trains and unlearns many small models at once, and gets what one after the other gives."""

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from mucs_ray.attribution.registry import METHODS
from mucs_ray.config.recipe import Recipe, for_method, with_values
from mucs_ray.data.local import LocalImages
from mucs_ray.data.table import Dataset
from mucs_ray.diffusion.batch import Item
from mucs_ray.diffusion.condition import one_by_one
from mucs_ray.diffusion.model import DiffusionModel
from mucs_ray.models.adapters import adapter
from mucs_ray.training.step import TrainState, WorkerContext, training
from tiny import tiny_dataset, tiny_recipe

FOLDER = Path(__file__).parents[2] / "benchmarks" / "gpu"
TOLERANCE = 0.2
WITHOUT = [frozenset[int](), frozenset(range(0, 60, 3)), frozenset({5, 6, 7})]


@pytest.fixture(scope="module")
def module_of() -> Iterator[dict[str, ModuleType]]:
    """Import the scripts, which are no package, and forget them again."""
    before, path = set(sys.modules), list(sys.path)
    sys.path.insert(0, str(FOLDER))
    yield {name: import_module(name) for name in ("together", "unlearn_together", "plain")}
    sys.path[:] = path
    for name in set(sys.modules) - before:
        if (file := getattr(sys.modules[name], "__file__", None)) and Path(file).is_relative_to(FOLDER.parent):
            del sys.modules[name]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def recipe(dataset: Dataset) -> Recipe:
    return tiny_recipe(
        dataset.url,
        model={"dropout": 0.0, "registers": 0},
        train={"updates": 4, "warmup_epochs": 0, "augment": 0.0, "flip": False},
    )


@pytest.fixture(scope="module")
def model(module_of: dict[str, ModuleType], recipe: Recipe, dataset: Dataset) -> DiffusionModel:
    """A model that was trained long enough to be unlearned."""
    together = module_of["together"]
    (weights,) = together.Trainings(
        with_values(recipe, {"train.updates": 40}), LocalImages(dataset, "train"), [frozenset()]
    ).run()
    return together.model_of(recipe, weights)


def test_models_trained_together_are_those_trained_one_by_one(
    module_of: dict[str, ModuleType], recipe: Recipe, dataset: Dataset
):
    """Also where conditions are dropped, which the stack draws once for all."""
    together = module_of["together"].Trainings(recipe, LocalImages(dataset, "train"), WITHOUT).run()
    test = LocalImages(dataset, "test")
    for removed, weights in zip(WITHOUT, together, strict=True):
        first = adapter(recipe.model).untrained(recipe.seed, torch.device("cpu"))
        assert first is not None
        begun = {name: value.clone() for name, value in first.network.named_parameters()}
        state = TrainState.fresh(first, recipe.train)
        images = LocalImages(dataset, "train", removed=removed)
        list(training(state, images, test, recipe.train, seed=recipe.seed, worker=WorkerContext()))
        for name, value in state.average.network.named_parameters():
            torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=1e-4)  # AdamW of tiny gradients
        assert any(not torch.equal(begun[name], weights[name]) for name in begun if begun[name].numel())
    assert not torch.equal(together[0]["encoder.0.conv1.weight"], together[1]["encoder.0.conv1.weight"])


@pytest.mark.parametrize("name", ["mucs", "mucs/level-bound", "mucs/control", "mucs/antithetic"])
def test_items_unlearned_together_are_those_unlearned_one_by_one(
    module_of: dict[str, ModuleType], recipe: Recipe, model: DiffusionModel, dataset: Dataset, name: str
):
    """Some items are done at once, the others go on."""
    images, lent = LocalImages(dataset, "train"), LocalImages(dataset, "test").batch(np.arange(3))
    items = [
        Item(number=number, idx=60 + number, condition=condition, z=lent.z[number] * (1 + 2 * number))
        for number, condition in enumerate(one_by_one(lent.condition, 3))
    ]
    changed = with_values(for_method(recipe, METHODS[name]), {"method.mucs.tolerance": TOLERANCE})
    attribution = module_of["plain"].Attribution(changed, images, model, items)
    (stage,) = [stage for stage in METHODS["mucs"].stages if stage.hook == "fit_item"]
    worker = attribution.worker(stage, METHODS["mucs"], changed)
    fitted = worker.fit({}, iter(attribution.parts))
    states = module_of["unlearn_together"].Unlearnings(worker, images, items, fitted).run()
    for item, state in zip(items, states, strict=True):
        alone = worker.fit_item(item, fitted, lambda *_: None)
        assert state.facts["updates"] == alone.facts["updates"]
        assert state.facts["outcome"] == alone.facts["outcome"]
        assert state.facts["item_loss"] == pytest.approx(alone.facts["item_loss"], rel=1e-4)
        assert state.tensors.keys() == alone.tensors.keys()
        for key, value in alone.tensors.items():
            torch.testing.assert_close(state.tensors[key], value, rtol=1e-3, atol=1e-5)
    assert len({state.facts["updates"] for state in states}) > 1
