"""Noise, noise levels, denoiser, loss and sampler against hand-made numbers and closed forms (spec 3.1, 6, 7, 18)."""

import math
from hashlib import sha256
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mucs_ray.diffusion.condition import NO_CONDITION, Condition
from mucs_ray.diffusion.edm import EDM, analytic_null_loss, c_in, c_noise, c_out, c_skip, zero_network_loss
from mucs_ray.diffusion.loss import denoising_loss
from mucs_ray.diffusion.model import guided
from mucs_ray.diffusion.noise import NoiseSet, generator, normal
from mucs_ray.diffusion.sampler import sample
from mucs_ray.diffusion.schedule import rho_schedule, sampling_sigmas, scoring_sigmas, training_sigmas
from mucs_ray.models.dit import DiT, DiTConfig
from mucs_ray.models.dit_edm import DiTEDM


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def exactly(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


class RandomNetwork(nn.Module):
    """A raw network that needs all its inputs: some function of the scaled image, the level, condition and flag."""

    def forward(self, x: Tensor, level: Tensor, condition: Tensor | None, augmented: Tensor | None) -> Tensor:
        extra = level if condition is None else level + condition.sum(1)
        extra = extra if augmented is None else extra + augmented
        return torch.tanh(1.7 * x.flip(3)) + 0.3 * extra[:, None, None, None]

    def nothing(self, num: int) -> Condition:
        return {"condition": torch.zeros(num, 4)}


# --- the denoiser ---------------------------------------------------------------------------------------------------


def test_coefficients_by_hand():
    sigma = numbers(0.5, 1.2, 0.0)  # sigma^2 + 0.25 = 0.5, 1.69 = 1.3^2, 0.25
    torch.testing.assert_close(c_skip(sigma), numbers(0.5, 0.25 / 1.69, 1.0))
    torch.testing.assert_close(c_out(sigma), numbers(0.25 / math.sqrt(0.5), 0.6 / 1.3, 0.0))
    torch.testing.assert_close(c_in(sigma), numbers(math.sqrt(2), 1 / 1.3, 2.0))
    torch.testing.assert_close(EDM().loss_weight(sigma[:2]), numbers(8.0, 1.69 / 0.36))


def test_noise_level_input_by_hand():
    torch.testing.assert_close(c_noise(numbers(math.e**2 - 1e-6, 1e-6)), numbers(0.5, math.log(2e-6) / 4))
    assert torch.isfinite(c_noise(torch.zeros(1))).all()


@given(st.floats(0.002, 80))
def test_coefficient_identities(value: float):
    sigma = numbers(value)
    torch.testing.assert_close(EDM().loss_weight(sigma) * c_out(sigma) ** 2, numbers(1.0))
    torch.testing.assert_close(c_in(sigma) ** 2 * (sigma**2 + 0.25), numbers(1.0))  # unit variance in
    # unit variance of the target: (1 - c_skip)^2 sd^2 + c_skip^2 sigma^2 = c_out^2
    target = (1 - c_skip(sigma)) ** 2 * 0.25 + c_skip(sigma) ** 2 * sigma**2
    torch.testing.assert_close(target, c_out(sigma) ** 2)


def test_denoised_image_by_hand():
    seen: list[Tensor | None] = []

    class Constant(nn.Module):
        def forward(self, *given: Tensor | None) -> Tensor:
            seen.extend(given)
            return torch.full((2, 1, 1, 1), 3.0)

    noisy, sigma = torch.tensor([4.0, -1.0])[:, None, None, None], torch.tensor([0.5, 1.2])
    condition, flag = torch.ones(2, 5), torch.tensor([0, 1])
    denoised = DiTEDM(Constant())(noisy, sigma, {"condition": condition, "augmented": flag})
    expected = torch.tensor([0.5 * 4 + 3 * 0.25 / math.sqrt(0.5), -0.25 / 1.69 + 3 * 0.6 / 1.3])
    torch.testing.assert_close(denoised.flatten(), expected)
    scaled, level, seen_condition, seen_flag = seen
    torch.testing.assert_close(scaled, torch.tensor([4 * math.sqrt(2), -1 / 1.3])[:, None, None, None])
    torch.testing.assert_close(level, torch.log(sigma + 1e-6) / 4)
    assert seen_condition is condition
    assert seen_flag is flag


def test_denoised_image_is_fp32_when_the_network_is_not():
    class Half(nn.Module):
        def forward(self, x: Tensor, *_: Tensor | None) -> Tensor:
            return torch.ones_like(x, dtype=torch.bfloat16)

    denoised = DiTEDM(Half())(torch.full((1, 1, 1, 1), 1 / 3), torch.tensor([0.5]))
    assert denoised.dtype == torch.float32
    torch.testing.assert_close(denoised.item(), 1 / 6 + 0.25 / math.sqrt(0.5), rtol=1e-6, atol=0)


# --- the loss -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("conditional", [True, False])
def test_loss_is_the_mean_square_error_of_the_raw_network(dtype: torch.dtype, conditional: bool):
    """L = mean (F - F*)^2 with F* = (x - c_skip x_n) / c_out."""
    image, noise, condition = (normal(generator(1, name), 6, 3, 4, 5).to(dtype) for name in "abc")
    sigma = torch.tensor([0.05, 0.2, 0.5, 1.0, 9.0, 80.0], dtype=dtype)
    flag = torch.tensor([0, 1, 0, 1, 1, 0])
    given = {"augmented": flag} | ({"condition": condition[:, 0, 0]} if conditional else {})
    network = RandomNetwork().to(dtype)
    per_image = sigma[:, None, None, None]
    root = (per_image**2 + 0.25).sqrt()
    noisy = image + per_image * noise
    target = (image - 0.25 / root**2 * noisy) / (0.5 * per_image / root)
    raw = network(noisy / root, torch.log(sigma + 1e-6) / 4, given.get("condition"), flag)
    found = denoising_loss(EDM(), DiTEDM(network), image, noise, sigma, given)
    expected = ((raw - target) ** 2).mean((1, 2, 3))
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_loss_by_hand():
    """x = 1, eps = 2, sigma = 1.2: x_n = 3.4; D = 2 gives (1.69 / 0.36) (2 - 1)^2, D = (1, 4) gives half of 9 of it."""
    image, noise = torch.ones(2, 1, 1, 2), torch.full((2, 1, 1, 2), 2.0)
    seen: list[Tensor] = []

    def denoiser(noisy: Tensor, sigma: Tensor, condition: Condition = NO_CONDITION) -> Tensor:
        seen.append(noisy)
        return torch.tensor([[2.0, 2.0], [1.0, 4.0]])[:, None, None]

    found = denoising_loss(EDM(), denoiser, image, noise, torch.full((2,), 1.2))
    torch.testing.assert_close(found, torch.tensor([1.0, 4.5]) * (1.69 / 0.36))
    torch.testing.assert_close(seen[0], torch.full((2, 1, 1, 2), 3.4))


def test_zero_network_loss_is_the_loss_of_a_zero_network():
    """By Monte Carlo at one sigma, with pixels of mean square 0.2."""
    v, sigma = 0.2, 0.7
    image, noise = math.sqrt(v) * normal(generator(0, "x"), 1, 1, 400, 1000), normal(generator(0, "n"), 1, 1, 400, 1000)
    # the cross term has mean zero but not zero value; remove it so that the closed form is met to 3 digits
    noise = noise - (noise * image).mean() / image.square().mean() * image

    def zero(noisy: Tensor, sigma: Tensor, condition: Condition = NO_CONDITION) -> Tensor:
        return noisy * 0.25 / (sigma**2 + 0.25)

    found = denoising_loss(EDM(), zero, image, noise, torch.tensor([sigma]))
    assert found.item() == pytest.approx((sigma**2 * v + 0.0625) / (0.25 * (sigma**2 + 0.25)), rel=5e-3)
    torch.testing.assert_close(zero_network_loss(numbers(sigma), v).item(), (0.49 * 0.2 + 0.0625) / (0.25 * 0.74))


@pytest.mark.parametrize(("mean_square", "expected"), [(0.2, 0.927), (0.256, 1.009), (0.3, 1.073)])
def test_analytic_null_loss_is_that_of_the_spec(mean_square: float, expected: float):
    assert analytic_null_loss(mean_square) == pytest.approx(expected, abs=5e-4)


def test_analytic_null_loss_is_exactly_one_at_the_variance_of_the_data():
    assert analytic_null_loss(0.25) == pytest.approx(1, abs=1e-12)
    exactly(zero_network_loss(numbers(0.01, 1, 70), 0.25), numbers(1, 1, 1))


def test_analytic_null_loss_does_not_depend_on_the_number_of_nodes():
    assert analytic_null_loss(0.3, num_nodes=51) == pytest.approx(analytic_null_loss(0.3, num_nodes=2001), abs=1e-9)


@pytest.mark.parametrize("mean_square", [0.2, 0.3])
def test_the_untrained_network_has_the_analytic_null_loss(mean_square: float):
    """20 000 draws of image, noise and sigma through a real DiT at its start (spec 18, 1 %)."""
    torch.manual_seed(0)
    config = DiTConfig(image_size=8, width=8, depth=1, num_heads=1, registers=1, condition_channels=4)
    denoiser = DiTEDM(DiT(config).eval())
    shape = 20_000, 3, 8, 8
    image = math.sqrt(mean_square) * normal(generator(0, "image"), *shape)
    sigma = training_sigmas(generator(0, "sigma"), 20_000)
    noise = normal(generator(0, "noise"), *shape)
    with torch.no_grad():
        cuts = zip(image.split(2000), noise.split(2000), sigma.split(2000), strict=True)
        losses = torch.cat([denoising_loss(EDM(), denoiser, x, n, s) for x, n, s in cuts])
    assert losses.mean().item() == pytest.approx(analytic_null_loss(mean_square), rel=0.01)


# --- noise levels ---------------------------------------------------------------------------------------------------


def test_rho_schedule_by_hand():
    high, low = 80 ** (1 / 7), 0.002 ** (1 / 7)
    torch.testing.assert_close(rho_schedule(3), numbers(80, ((high + low) / 2) ** 7, 0.002))
    torch.testing.assert_close(rho_schedule(3, sigma_min=1.0, sigma_max=9.0, rho=2.0), numbers(9, 4, 1))
    torch.testing.assert_close(rho_schedule(5, sigma_min=1.0, sigma_max=9.0, rho=1.0), numbers(9, 7, 5, 3, 1))


@given(st.integers(2, 200))
def test_rho_schedule_descends_between_its_ends(num_levels: int):
    levels = rho_schedule(num_levels)
    assert len(levels) == num_levels
    torch.testing.assert_close(levels[[0, -1]], numbers(80, 0.002))
    assert (levels.diff() < 0).all()


def test_scoring_grid():
    grid = scoring_sigmas(100, 0.7)
    assert grid.dtype == torch.float32
    assert len(grid) == 100
    assert grid[0].item() == pytest.approx(80, abs=1e-5)
    assert grid[99].item() == pytest.approx(0.3102, abs=5e-5)
    assert (grid > 1).sum() == 85
    full = rho_schedule(142)
    torch.testing.assert_close(grid, full[:100].float(), rtol=0, atol=0)
    assert full[-1].item() == pytest.approx(0.002)


def test_scoring_grid_at_other_sizes():
    torch.testing.assert_close(scoring_sigmas(10, 1.0), rho_schedule(10).float())
    torch.testing.assert_close(scoring_sigmas(7, 0.5), rho_schedule(14)[:7].float())


def test_sampling_levels_end_in_zero():
    levels = sampling_sigmas(32)
    assert len(levels) == 33
    exactly(levels[:-1], rho_schedule(32))
    assert levels[-1].item() == 0


def test_training_levels_are_log_normal():
    sigma = training_sigmas(generator(0, "levels"), 200_000).double()
    # quantiles of exp(-1.2 + 1.2 z) at z = -1.96, 0, 1.96 (spec: 0.029, 0.30, 3.16)
    expected = np.exp([-1.2 - 1.2 * 1.959964, -1.2, -1.2 + 1.2 * 1.959964])
    np.testing.assert_allclose(expected, [0.029, 0.301, 3.16], rtol=0.02)
    np.testing.assert_allclose(np.quantile(sigma.numpy(), [0.025, 0.5, 0.975]), expected, rtol=0.025)
    assert sigma.log().mean().item() == pytest.approx(-1.2, abs=0.015)
    assert sigma.log().std().item() == pytest.approx(1.2, abs=0.01)


def test_training_levels_are_the_exponential_of_the_stream():
    z = generator(3, "levels").standard_normal(5)
    found = training_sigmas(generator(3, "levels"), 5)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), np.exp(-1.2 + 1.2 * z), rtol=1e-6)


# --- the sampler ----------------------------------------------------------------------------------------------------


class Gaussian:
    """The exact denoiser of images of variance v; counts its calls and keeps the levels and conditions it saw."""

    def __init__(self, v: float) -> None:
        self.v = v
        self.levels: list[float] = []
        self.conditions: list[Condition] = []
        self.batches: list[int] = []

    def __call__(self, noisy: Tensor, sigma: Tensor, condition: Condition = NO_CONDITION) -> Tensor:
        self.levels.append(sigma[0].item())
        self.conditions.append(condition)
        self.batches.append(len(noisy))
        assert sigma.shape == (len(noisy),)
        shift = condition["condition"].sum(1)[:, None, None, None] if condition else 0
        return noisy * self.v / (self.v + sigma[:, None, None, None] ** 2) + shift

    def nothing(self, num: int) -> Condition:
        return {"condition": torch.zeros(num, 2)}


def test_sampler_meets_the_closed_form():
    """dx/dsigma = (x - D) / sigma has x_0 = x_T sqrt(v / (v + smax^2)) when D = x v / (v + sigma^2)."""
    unit = torch.tensor([1.0, -2.0, 0.5])[:, None, None, None]
    v = 0.3
    found = sample(EDM(), Gaussian(v), unit, num_steps=400)
    torch.testing.assert_close(found, 80 * unit * math.sqrt(v / (v + 80**2)), rtol=2e-4, atol=0)
    assert found.dtype == torch.float32


def test_sampler_is_of_second_order():
    v, unit = 0.3, torch.ones(1, 1, 1, 1)
    exact = 80 * math.sqrt(v / (v + 80**2))
    errors = [abs(sample(EDM(), Gaussian(v), unit, num_steps=n).item() - exact) for n in (16, 32, 64)]
    for coarse, fine in pairwise(errors):
        assert 3.3 < coarse / fine < 5.5  # 4 for order two; 2 for Euler


def test_sampler_steps_by_hand():
    """Two levels, 80 and 0.002: one Heun step, then one Euler step to zero, which returns D (here 0.2 of x)."""
    v, high, low = 1e-6, 80.0, 0.002

    def slope(x: float, sigma: float) -> float:
        return (x - x * v / (v + sigma**2)) / sigma

    here = slope(high, high)
    there = slope(high + (low - high) * here, low)
    x = high + (low - high) * (here + there) / 2
    found = sample(EDM(), Gaussian(v), torch.ones(1, 1, 1, 1), num_steps=2).item()
    assert found == pytest.approx(x * v / (v + low**2), rel=0.01)  # 80 - 0.002 is rounded to fp32


def test_sampler_calls_the_network_63_times():
    denoiser, condition = Gaussian(0.3), {"condition": torch.zeros(2, 4)}
    sample(EDM(), denoiser, torch.ones(2, 1, 1, 1), condition)
    levels = rho_schedule(32).float().tolist()
    expected = [levels[0]] + [level for level in levels[1:] for _ in range(2)]  # Heun's corrector, then the next slope
    assert len(denoiser.levels) == 63
    assert denoiser.levels == pytest.approx(expected)
    assert all(seen is condition for seen in denoiser.conditions)


def test_sampler_does_not_clamp():
    big = sample(EDM(), Gaussian(50.0), torch.full((1, 1, 1, 1), 2.0))
    assert big.item() == pytest.approx(160 * math.sqrt(50 / (50 + 6400)), rel=0.01)
    assert big.item() > 10


def test_sampler_treats_images_one_by_one_and_leaves_its_input():
    unit = normal(generator(0, "unit"), 3, 1, 2, 2)
    kept = unit.clone()
    whole = sample(EDM(), Gaussian(0.3), unit, num_steps=4)
    exactly(torch.cat([sample(EDM(), Gaussian(0.3), one, num_steps=4) for one in unit.split(1)]), whole)
    exactly(unit, kept)


# --- guidance -------------------------------------------------------------------------------------------------------


def test_guidance_by_hand():
    noisy, sigma, condition = torch.ones(2, 1, 1, 1), torch.tensor([1.0, 2.0]), torch.tensor([[1.0, 2.0], [0.5, 0.0]])
    denoiser = Gaussian(1.0)
    found = guided(denoiser, 3.0)(noisy, sigma, {"condition": condition})
    absent = torch.tensor([0.5, 0.2])
    expected = 3 * (absent + torch.tensor([3.0, 0.5])) - 2 * absent
    torch.testing.assert_close(found.flatten(), expected)
    assert denoiser.batches == [4]


def test_guidance_gives_each_image_its_own_level_and_condition():
    torch.manual_seed(0)
    noisy, sigma, condition = torch.randn(5, 2, 3, 3), torch.rand(5) + 0.1, torch.randn(5, 4)
    denoiser = DiTEDM(RandomNetwork())
    given, null = {"condition": condition}, {"condition": torch.zeros(5, 4)}
    expected = 1.5 * denoiser(noisy, sigma, given) - 0.5 * denoiser(noisy, sigma, null)
    torch.testing.assert_close(guided(denoiser, 1.5)(noisy, sigma, given), expected)


def test_guidance_of_weight_one_is_one_plain_call():
    denoiser = Gaussian(1.0)
    assert guided(denoiser, 1.0) is denoiser


def test_guidance_of_weight_zero_is_the_null_condition():
    noisy, sigma = torch.ones(1, 1, 1, 1), torch.ones(1)
    exactly(guided(Gaussian(1.0), 0.0)(noisy, sigma, {"condition": torch.ones(1, 2)}), torch.full((1, 1, 1, 1), 0.5))


def test_guidance_without_condition_is_one_plain_call():
    denoiser = Gaussian(1.0)
    guided(denoiser, 3.0)(torch.ones(2, 1, 1, 1), torch.ones(2))
    assert denoiser.batches == [2]
    assert denoiser.conditions == [{}]


# --- noise ----------------------------------------------------------------------------------------------------------


def test_golden_noise():
    """Pinned: if these numbers change, every stored loss and score of earlier versions is of another noise."""
    drawn = NoiseSet.draw(7, "score/noise", scoring_sigmas(3, 0.7), (3, 4, 4))
    assert drawn.unit.dtype == torch.float32
    digest = sha256(drawn.unit.numpy().astype("<f4").tobytes()).hexdigest()
    assert digest == "920cac01d50ebfa423c4f5b4d4ee776c74669a012633f42d7dddce7ede5058f3"
    np.testing.assert_allclose(drawn.unit.flatten()[:3].numpy(), [0.7721785, -0.3166310, 1.6442525], rtol=1e-6)


def test_noise_is_standard_normal():
    unit = NoiseSet.draw(0, "score/noise", torch.ones(100), (3, 32, 32)).unit.double()
    assert unit.mean().item() == pytest.approx(0, abs=0.01)
    assert unit.std().item() == pytest.approx(1, abs=0.01)
    assert unit.pow(4).mean().item() == pytest.approx(3, abs=0.05)


def test_noise_set_keeps_its_levels_and_moves_whole():
    sigma = torch.tensor([3.0, 2.0])
    drawn = NoiseSet.draw(0, "n", sigma, (1, 2, 3))
    assert drawn.unit.shape == (2, 1, 2, 3)
    exactly(drawn.level, sigma)
    exactly(drawn.to("cpu").unit, drawn.unit)
    exactly(drawn.to("cpu").level, sigma)


@given(st.integers(0, 2**63), st.text(max_size=30), st.text(max_size=30))
def test_a_stream_depends_on_its_name_alone(seed: int, name: str, other: str):
    """Whatever was drawn before, by whom, in which order."""
    first = normal(generator(seed, name), 4)
    generator(seed, other).standard_normal(100)
    np.random.default_rng(0).standard_normal(3)
    exactly(normal(generator(seed, name), 4), first)
    if other != name:
        assert not torch.equal(normal(generator(seed, other), 4), first)
    assert not torch.equal(normal(generator(seed + 1, name), 4), first)


def test_a_stream_is_not_moved_by_torchs_or_numpys_global_seeds():
    torch.manual_seed(1)
    first = normal(generator(0, "a"), 4)
    torch.manual_seed(2)
    exactly(normal(generator(0, "a"), 4), first)


def test_streams_of_different_names_are_uncorrelated():
    streams = torch.stack([normal(generator(0, f"unlearn/item=1/step={step}"), 20_000) for step in range(8)])
    correlation = torch.corrcoef(streams).fill_diagonal_(0).abs().max()
    assert correlation < 0.035  # 5 standard deviations


def test_a_longer_draw_begins_with_the_shorter_one():
    exactly(normal(generator(0, "a"), 10, 3)[:4], normal(generator(0, "a"), 4, 3))


def test_a_stream_goes_on_where_it_stopped():
    stream = generator(0, "a")
    parts = torch.cat([normal(stream, 3), normal(stream, 5)])
    exactly(parts, normal(generator(0, "a"), 8))
