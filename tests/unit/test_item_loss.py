"""The loss of a picture before and after a retraining."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from mucs_ray.diffusion.batch import Item
from mucs_ray.diffusion.edm import EDM
from mucs_ray.diffusion.noise import NoiseSet
from mucs_ray.evaluation.item_loss import NOISES_PER_FORWARD, evaluation_noises, item_losses, loss_changes
from mucs_ray.models.dit import DiTConfig
from tiny import TINY, lively


class Blank(nn.Module):
    """It denoises everything to a constant picture."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))
        self.process, self.shape = EDM(), (1, 2, 2)

    def forward(self, noisy: torch.Tensor, level: torch.Tensor, condition: object = None) -> torch.Tensor:
        return self.value.expand_as(noisy)


def item(value: float, number: int = 0) -> Item:
    return Item(number=number, idx=number, condition={}, z=torch.full((1, 2, 2), value))


def test_losses_by_hand():
    """A model that sees 1 everywhere is wrong by 3 on a picture of -2: 9 times the weight (s^2 + .25) / (.5 s)^2."""
    level = torch.tensor([0.5, 1.0])
    noises = NoiseSet(level=level, unit=torch.ones(2, 1, 2, 2))
    before = item_losses(Blank(1.0), [item(1.0), item(-2.0)], noises)  # pyright: ignore[reportArgumentType]
    assert before[0].tolist() == [0.0, 0.0]
    assert before[1].tolist() == pytest.approx([9 * 0.5 / 0.0625, 9 * 1.25 / 0.25])
    after = item_losses(Blank(0.0), [item(1.0), item(-2.0)], noises)  # pyright: ignore[reportArgumentType]
    changes = loss_changes(Blank(0.0), before, after, noises, 0.0)  # pyright: ignore[reportArgumentType]
    assert changes.before[1].item() == pytest.approx((72 + 45) / 2) and changes.before[0].item() == 0
    assert changes.after.tolist() == pytest.approx([(8 + 5) / 2, 4 * (8 + 5) / 2])
    assert changes.skew.tolist() == pytest.approx([1.0, (4 - 9) / (4 + 9)])  # 1: what was known by heart is lost


def test_a_loss_does_not_depend_on_company_to_the_last_bit():
    model = lively(DiTConfig(**{**TINY["model"], "condition_dim": 0}))
    noises = evaluation_noises(model, NOISES_PER_FORWARD + 3, seed=5)
    pictures = [replace(item(0.0, number), z=torch.linspace(-1, number, 192).view(3, 8, 8)) for number in range(3)]
    together = item_losses(model, pictures, noises)
    assert together.shape == (3, NOISES_PER_FORWARD + 3) and (together > 0).all()
    for number, alone in enumerate(pictures):
        assert torch.equal(item_losses(model, [alone], noises)[0], together[number])
    assert torch.equal(evaluation_noises(model, 3, seed=5).level, evaluation_noises(model, 3, seed=5).level)
    assert not torch.equal(evaluation_noises(model, 3, seed=5).level, evaluation_noises(model, 3, seed=6).level)
