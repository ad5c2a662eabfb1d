"""Methods that look inside a model attribute every family of networks, and change nothing but what was selected."""

import pytest
import torch

from contract.test_models import METHODS, scored, worker
from families import FAMILIES, classes, family
from mucs_ray.attribution.cards.mucs import MUCSConfig
from mucs_ray.attribution.unlearn import changed_names
from mucs_ray.diffusion.batch import Batch, Item
from mucs_ray.diffusion.condition import one_by_one
from mucs_ray.diffusion.model import DiffusionModel
from mucs_ray.diffusion.noise import generator, normal

NAMES = ("mucs/full-block", "dtrak", "das", "abu", "forward-inf")


def images_of(model: DiffusionModel, num: int) -> Batch:
    z = torch.tanh(normal(generator(5, "images"), num, *model.shape))
    return Batch(idx=torch.arange(num), z=z, condition=classes(model, num))


def items_among(images: Batch, num: int) -> list[Item]:
    conditions = one_by_one(images.condition, num)
    return [Item(number=n, idx=50 + n, condition=conditions[n], z=images.z[n]) for n in range(num)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", FAMILIES)
def test_every_family_is_scored_and_left_as_it_was(kind: str, name: str):
    model = family(kind)
    images = images_of(model, 4)
    before = {each: tensor.clone() for each, tensor in model.state_dict().items()}
    scores = scored(name, model, images, items_among(images, 2))
    assert scores.shape == (4, 2)
    assert scores.isfinite().all()
    assert all(torch.equal(tensor, before[each]) for each, tensor in model.state_dict().items())


@pytest.mark.parametrize("kind", FAMILIES)
def test_what_a_recipe_unlearns_of_each_family(kind: str):
    """All but biases, the matrices of blocks, and of these the part that works position by position."""
    model = family(kind)
    few, more, most = (set(changed_names(model, MUCSConfig(parameters=each))) for each in ("mlp", "block", "weights"))
    assert few < more < most
    assert most == {name for name, _ in model.network.named_parameters() if not name.endswith("bias")}


@pytest.mark.parametrize("kind", FAMILIES)
def test_unlearning_changes_what_was_selected_and_all_of_it(kind: str):
    model = family(kind)
    images = images_of(model, 4)
    (item,) = items_among(images, 1)
    method = METHODS["mucs"]
    stage = next(stage for stage in method.stages if stage.hook == "fit_item")
    fitted = {"null_loss": torch.tensor(1e9)}  # out of reach: the updates are made
    state = worker(method, stage, model, images, [item]).fit_item(item, fitted, lambda step, loss: None)
    changed = {
        name for name, tensor in state.tensors.items() if not torch.equal(tensor, model.network.get_parameter(name))
    }
    assert changed == set(state.tensors) == set(model.names("mlp"))
