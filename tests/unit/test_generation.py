"""From unit noise to an image: steps of the reference schedulers, steps by hand, and where the steps lead."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fixture_files import document, tensors
from mucs_ray.diffusion.condition import NO_CONDITION, Condition
from mucs_ray.diffusion.edm import EDM
from mucs_ray.diffusion.generation import ancestral, ddim, euler, towards
from mucs_ray.diffusion.noise import generator, normal
from mucs_ray.diffusion.process import Process
from mucs_ray.diffusion.vp import VP
from mucs_ray.diffusion.vp_config import Prediction
from mucs_ray.diffusion.vp_continuous import ContinuousVP

FIXTURE = tensors("eps_contract/eps_contract")
META = document("eps_contract/meta")
ROWS = range(4)


def level(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


def answers(process: Process, raw: Tensor) -> Callable[..., Tensor]:
    """A network whose output is `raw` whatever it is asked."""

    def denoiser(noisy: Tensor, level: Tensor, condition: Condition = NO_CONDITION) -> Tensor:
        return process.denoised(raw, noisy, level)

    return denoiser


def knows(image: float) -> Callable[..., Tensor]:
    """A denoiser of a data set of one image."""

    def denoiser(noisy: Tensor, level: Tensor, condition: Condition = NO_CONDITION) -> Tensor:
        return torch.full_like(noisy, image)

    return denoiser


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-6) -> None:
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_a_ddim_step_is_the_reference_one(prediction: Prediction, row: int):
    process, start = VP(prediction=prediction, spacing="trailing"), META["ddim_step_timesteps"][row]
    levels = process.sampling_levels(50)
    following = process.following(levels)[levels == start]
    assert following.item() == (start - 20 if start > 19 else -1)
    denoiser = answers(process, FIXTURE["model_output"][row : row + 1])
    noisy = FIXTURE["noisy"][row : row + 1]
    (found,) = ddim(process, denoiser, noisy, levels=(level(start), following))
    close(found, FIXTURE[f"ddim_prev_{prediction}"][row : row + 1])


@pytest.mark.parametrize("row", ROWS)
def test_an_ancestral_step_is_the_reference_one(row: int):
    start = META["ddpm_step_timesteps"][row]
    denoiser = answers(VP(), FIXTURE["model_output"][row : row + 1])
    (found,) = ancestral(
        VP(),
        denoiser,
        FIXTURE["noisy"][row : row + 1],
        levels=(level(start), level(start - 1)),
        step_noise=lambda step: FIXTURE["ddpm_step_noise"][row : row + 1],
        clip=1.0,
    )
    close(found, FIXTURE["ddpm_prev_clip"][row : row + 1])


def test_an_ancestral_step_by_hand():
    """EDM from sigma 2 to 1, D = 3, x = 5: mean (1 * 5 + 3 * 3) / 4 = 3.5, variance 3 * 1 / 4."""
    x = torch.full((1, 2), 5.0, dtype=torch.float64)
    levels = torch.tensor([2.0, 1.0]), torch.tensor([1.0, 0.0])
    asked: list[int] = []

    def step_noise(step: int) -> Tensor:
        asked.append(step)
        return torch.tensor([[2.0, -1.0]], dtype=torch.float64)

    first, last = ancestral(EDM(), knows(3.0), x, levels=levels, step_noise=step_noise)
    close(first, torch.tensor([[3.5 + 2 * math.sqrt(0.75), 3.5 - math.sqrt(0.75)]], dtype=torch.float64), 1e-12)
    assert last.tolist() == [[3, 3]]
    assert asked == [0]


def test_a_ddim_step_by_hand():
    """EDM from sigma 2 to .5, x = 5, D = 3: E = 1, x' = 3.5; clipped to 1 it is 1.5."""
    x = torch.full((1, 1), 5.0, dtype=torch.float64)
    levels = towards(torch.tensor([2.0, 0.5]), 0.0)
    assert [state.item() for state in ddim(EDM(), knows(3.0), x, levels=levels)] == [3.5, 3]
    assert [state.item() for state in ddim(EDM(), knows(3.0), x, levels=levels, clip=1.0)] == [1.5, 1]


def test_ddim_is_eulers_method_on_the_axis_of_sigma():
    process, levels = VP(), VP().sampling_levels(50)
    x_t = normal(generator(0, "x"), 2, 3, 4).double()

    def denoiser(noisy: Tensor, level: Tensor, condition: Condition = NO_CONDITION) -> Tensor:
        return torch.tanh(noisy.flip(2) + level[:, None, None] / 1000)

    at = process.at(torch.cat([levels, level(-1)]))
    sigma = at.s / at.alpha
    x_n = x_t / at.alpha[0]
    for step, each in enumerate(levels):
        denoised = denoiser(at.alpha[step] * x_n, each.expand(2))
        x_n = x_n + (sigma[step + 1] - sigma[step]) * (x_n - denoised) / sigma[step]
    *_, found = ddim(process, denoiser, x_t, levels=towards(levels, -1))
    torch.testing.assert_close(found, x_n, rtol=0, atol=1e-9)


def test_steps_lead_on_by_a_fixed_number_and_at_last_to_no_noise():
    process = VP(spacing="linspace")
    assert process.following(process.sampling_levels(4)).tolist() == [749, 416, 83, -1]
    assert towards(torch.tensor([3.0, 1.0]), 0.0)[1].tolist() == [1, 0]


def test_an_euler_step_by_hand():
    """Half-way, t = .5: B = 2.5375, beta = 10.05; slope beta alpha (alpha x - D) / (2 s^2)."""
    alpha, s = math.exp(-2.5375 / 2), math.sqrt(1 - math.exp(-2.5375))
    noise = torch.ones(1, 1, dtype=torch.float64)
    (found,) = euler(ContinuousVP(), knows(0.5), noise, levels=(level(0.5), level(0.4)))
    slope = 10.05 * alpha * (alpha * s - 0.5) / (2 * s**2)
    assert found.item() == pytest.approx(s - 0.1 * slope, rel=1e-12)


def test_the_step_that_the_official_loop_leaves_out_halves_what_noise_is_left():
    """sigma = .0105 at t = 1e-3; near 0 it grows like the root of t, of which a step of Euler's method takes half."""
    process = ContinuousVP()
    noise = normal(generator(0, "x"), 4, 9).double()
    levels = towards(process.sampling_levels(500), 0.0)
    *_, before_last, last = euler(process, knows(0.5), noise, levels=levels)
    assert ((before_last - 0.5) / noise).mean().item() == pytest.approx(0.0105, rel=0.2)
    assert ((last - 0.5) / (before_last - 0.5)).mean().item() == pytest.approx(0.5, abs=0.05)
