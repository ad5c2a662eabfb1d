"""Draws from the item's own trajectory: what the sampler asked, as levels and noise relative to the item."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from mucs_ray.attribution.base import MethodContext
from mucs_ray.attribution.cards.mucs import MUCSConfig
from mucs_ray.attribution.mucs import MUCS
from mucs_ray.attribution.trajectory import Trajectory, trajectory_of
from mucs_ray.attribution.unlearn import draw_losses, drawn_levels, noise_levels
from mucs_ray.config.recipe import GenerateConfig
from mucs_ray.diffusion.batch import Item
from mucs_ray.diffusion.condition import for_each
from mucs_ray.diffusion.loss import denoising_loss
from mucs_ray.diffusion.noise import generator, normal
from mucs_ray.diffusion.rows import copies
from mucs_ray.diffusion.samplers import draw_named
from mucs_ray.errors import InputError
from small_unlearning import F1, FITTED, batches
from small_unlearning import context as small_context

SEED = 1
CONDITION = {"condition": torch.eye(3)[1]}


def settings(guidance: float = 1.0) -> SimpleNamespace:
    return SimpleNamespace(seed=SEED, generate=GenerateConfig(steps=3, guidance=guidance))


def item(guidance: float = 1.0) -> Item:
    image = draw_named(F1, for_each(CONDITION, 1), [64], settings(guidance).generate, SEED)[0]
    return Item(number=2, idx=64, condition=CONDITION, z=image)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_what_the_sampler_asked_by_hand(guidance: float):
    """Three steps of Heun's method: each but the last asks twice, here and one step on."""
    made = item(guidance)
    visited = trajectory_of(F1, made, settings(guidance), 0.5)
    levels = F1.process.sampling_levels(3).float()
    assert visited.level.tolist() == pytest.approx([levels[n].item() for n in (0, 1, 1, 2, 2)])
    first = levels[0] * normal(generator(SEED, "generate/idx=64"), 3, 8, 8)
    torch.testing.assert_close(made.z + levels[0] * visited.noise[0], first)
    if guidance == 1.0:
        denoised = F1(first[None], levels[:1], for_each(CONDITION, 1))[0]
        step_on = first + (levels[1] - levels[0]) * (first - denoised) / levels[0]
        torch.testing.assert_close(made.z + levels[1] * visited.noise[1], step_on, rtol=1e-4, atol=1e-4)


def test_the_last_draws_are_replaced():
    visited = Trajectory(
        level=torch.tensor([10.0, 20.0]), noise=torch.stack([torch.full((1,), 1.0), torch.full((1,), 2.0)]), share=0.5
    )
    level, noise = torch.arange(5.0), torch.zeros(5, 1)
    new_level, new_noise = visited.replace(level, noise, generator(SEED, "x"))
    assert new_level[:3].tolist() == [0, 1, 2]  # round(2.5) = 2 are replaced
    rows = generator(SEED, "x").integers(2, size=2)
    assert new_level[3:].tolist() == [10.0 * (1 + row) for row in rows]
    assert new_noise[3:, 0].tolist() == [1.0 + row for row in rows]


def test_losses_are_those_at_the_visited_images():
    made = item()
    visited = trajectory_of(F1, made, settings(), 1.0)
    image, condition = copies(made.z, 4), for_each(CONDITION, 4)
    losses = draw_losses(F1, image, condition, seed=SEED, name="n", trajectory=visited)
    stream = generator(SEED, "n")
    noise_levels(F1.process, stream, 4, "training")
    normal(stream, 4, 3, 8, 8)
    rows = torch.from_numpy(stream.integers(5, size=4))
    by_hand = denoising_loss(F1.process, F1, image, visited.noise[rows], visited.level[rows], condition)
    assert torch.equal(losses, by_hand)


def test_unlearning_draws_from_it():
    made = item()

    def unlearned(share: float):
        config = MUCSConfig(batch_size=4, max_updates=2, bound=1e9, trajectory=share)
        old = small_context(config)
        knobs = SimpleNamespace(**{**vars(old.settings), "generate": settings().generate})
        lent = {"device": old.device, "num_images": 6, "denoiser": F1, "batches": batches}
        return MUCS(MethodContext(settings=knobs, items=[made], **lent)).fit_item(made, FITTED, lambda *_: None)

    with_it, without = unlearned(0.5), unlearned(0.0)
    assert with_it.facts["item_loss"] != without.facts["item_loss"]
    assert with_it.facts["train_loss"][0] == without.facts["train_loss"][0]


def test_bounds_are_at_the_levels_of_these_draws():
    visited = trajectory_of(F1, item(), settings(), 0.5)
    level = drawn_levels(F1, 4, seed=SEED, name="n", sigmas="training", trajectory=visited)
    stream = generator(SEED, "n")
    drawn = noise_levels(F1.process, stream, 4, "training")
    normal(stream, 4, 3, 8, 8)
    rows = torch.from_numpy(stream.integers(5, size=2))
    assert torch.equal(level, torch.cat([drawn[:2], visited.level[rows]]))


def test_a_picture_of_somebody_elses_is_one_line():
    other = replace(item(), z=torch.ones(3, 8, 8))
    with pytest.raises(InputError, match=r"needs items that this run generated, and item 2 is none") as caught:
        trajectory_of(F1, other, settings(), 0.5)
    assert "\n" not in str(caught.value)
