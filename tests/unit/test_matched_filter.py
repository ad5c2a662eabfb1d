"""The weights of the matched filter are those by hand, from losses of the item under its own two models."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from mucs_ray.attribution.config import ScoreConfig
from mucs_ray.attribution.loss_change import LossChange, scored_levels
from mucs_ray.attribution.matched_filter import matched_weights
from mucs_ray.attribution.skew import normalized_skew
from mucs_ray.diffusion.batch import Item
from mucs_ray.diffusion.edm import EDM
from mucs_ray.diffusion.loss import denoising_loss
from mucs_ray.diffusion.noise import generator, normal
from mucs_ray.errors import RunFailed
from mucs_ray.models.dit import DiTConfig, unlearned_names
from mucs_ray.models.dit_edm import DiTEDM
from tiny import lively

MODEL = DiTConfig(
    image_size=8, patch_size=4, width=16, depth=1, num_heads=2, registers=0, condition_channels=8, condition_dim=3,
    kernel_size=3, dropout=0.0,
)  # fmt: skip
F1 = lively(MODEL)
CONFIG = ScoreConfig(noises=5, sigmas="both")


def item(number: int) -> Item:
    image = 0.4 * normal(generator(7, f"image={number}"), 3, 8, 8)
    return Item(number=number, idx=60 + number, condition={"condition": torch.eye(3)[number]}, z=image)


def other_tensors(number: int) -> dict[str, Tensor]:
    stream = generator(4, f"item={number}")
    own = {name: F1.network.get_parameter(name) for name in unlearned_names(F1.network)}
    return {name: tensor + 0.2 * normal(stream, *tensor.shape) for name, tensor in own.items()}


def change(bank: list[dict[str, Tensor]]) -> LossChange:
    return LossChange(F1, bank, config=CONFIG, seed=1)


@pytest.mark.parametrize(("power", "expected"), [("linear", [0.25, 0, 0.75]), ("squared", [0.1, 0, 0.9])])
def test_weights_by_hand(power: Any, expected: list[float]):
    """A noise at which the item's loss fell counts for nothing; the sum is 1."""
    found = matched_weights(torch.tensor([[0.1, -0.5, 0.3]]), power)
    torch.testing.assert_close(found, torch.tensor([expected]))


def test_an_item_that_moved_nowhere_has_even_weights():
    found = matched_weights(torch.tensor([[-0.1, 0.0], [0.0, 0.2]]), "squared")
    assert found.tolist() == [[0.5, 0.5], [0.0, 1.0]]


def test_the_skew_is_the_weighted_mean():
    before, after = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 2.0]])
    weights = torch.tensor([0.25, 0.75])
    assert normalized_skew(before, after, epsilon=0.0, weights=weights).item() == pytest.approx(0.25 * 0.5)
    even = normalized_skew(before, after, weights=torch.full((2,), 0.5))
    torch.testing.assert_close(even, normalized_skew(before, after))


def test_own_skews_are_those_of_the_item_under_f1_and_its_f2():
    """Each item is compared under its own F2, with its condition, at the noises that the images meet."""
    bank, items = [other_tensors(0), other_tensors(1)], [item(0), item(1)]
    scorer = change(bank)
    found = scorer.own_skews(items)
    assert found.shape == (2, 5)
    noises = scorer.shared_noises
    for row, each, tensors in zip(found, items, bank, strict=True):
        changed = copy.deepcopy(F1)
        changed.network.load_state_dict(tensors, strict=False)

        def losses(model: DiTEDM, each: Item = each) -> Tensor:
            condition = {"condition": each.condition["condition"].expand(5, -1)}
            return denoising_loss(EDM(), model, each.z.expand(5, -1, -1, -1), noises.unit, noises.level, condition)

        before, after = losses(F1), losses(changed)
        torch.testing.assert_close(row, (after - before) / (after + before + 1e-3), rtol=1e-3, atol=1e-4)
    assert torch.equal(change(bank[:1]).own_skews(items[:1])[0], found[0])  # whatever the other items are


def test_an_item_whose_loss_is_not_finite_is_named():
    broken = {name: tensor * float("nan") for name, tensor in other_tensors(0).items()}
    with pytest.raises(RunFailed, match="item 0: the loss of the generated image idx=60 is not finite"):
        change([broken]).own_skews([item(0)])


@pytest.mark.parametrize(("noises", "scheduled"), [(5, 3), (6, 3), (1, 1)])
def test_both_grids_by_hand(noises: int, scheduled: int):
    """Half of the levels are the largest of the schedule, the others quantiles of the log-normal training levels."""
    found = scored_levels(EDM(), ScoreConfig(noises=noises, sigmas="both"), 1)
    assert torch.equal(found[:scheduled], EDM().scoring_levels(scheduled, 0.7))
    rest = noises - scheduled
    at = (torch.arange(rest) + 0.5) / max(1, rest)
    expected = torch.exp(-1.2 + 1.2 * torch.special.ndtri(at))
    torch.testing.assert_close(found[scheduled:], expected, rtol=0.05, atol=0)
    assert len(found) == noises and found.dtype == torch.float32
