"""How far an item can be unlearned, level by level: the spec's table (spec/models 2.5), and what the formulas mean."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mucs_ray.diffusion.bound import linear_bound, relative_sigma, zero_output_loss
from mucs_ray.diffusion.condition import NO_CONDITION, Condition
from mucs_ray.diffusion.edm import EDM
from mucs_ray.diffusion.loss import denoising_loss
from mucs_ray.diffusion.noise import generator, normal
from mucs_ray.diffusion.process import Coefficients, Process
from mucs_ray.diffusion.vp import VP
from mucs_ray.diffusion.vp_config import Betas

SD = VP(betas=Betas(schedule="scaled_linear", first=0.00085, last=0.012))
COSINE = VP(betas=Betas(schedule="squaredcos_cap_v2"))
VELOCITY = VP(prediction="v_prediction")


def gaussian(num: int = 4001) -> Tensor:
    """The quantiles of a standard normal at the middles of `num` equal parts."""
    return torch.special.ndtri((torch.arange(num, dtype=torch.float64) + 0.5) / num)


def edm(mean_square: float) -> tuple[Coefficients, float]:
    return EDM().at(torch.exp(-1.2 + 1.2 * gaussian())), mean_square


def table(process: VP, mean_square: float) -> tuple[Coefficients, float]:
    return process.at(torch.arange(process.betas.steps, dtype=torch.float64)), mean_square


def flow(time: Tensor, shift: float) -> tuple[Coefficients, float]:
    """x = (1 - t) z + t eps, and the network predicts eps - z."""
    t = shift * time / (1 + (shift - 1) * time)
    one = torch.ones_like(t)
    return Coefficients(time=t, alpha=1 - t, s=t, p=-one, q=one, weight=one, c_in=one), 1.0


EVEN = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
TABLE: dict[str, tuple[tuple[Coefficients, float], float, float]] = {
    "EDM, v = .20": (edm(0.20), 0.921, 0.927),
    "EDM, v = .25": (edm(0.25), 1.000, 1.000),
    "EDM, v = .30": (edm(0.30), 1.069, 1.073),
    "EDM, v = .58": (edm(0.58), 1.348, 1.479),
    "DDPM linear eps, v = 1": (table(VP(), 1), 0.276, 1),
    "DDPM linear eps, v = .25": (table(VP(), 0.25), 0.173, 1),
    "SD scaled linear eps, v = 1": (table(SD, 1), 0.373, 1),
    "cosine eps, v = 1": (table(COSINE, 1), 0.496, 1),
    "v-prediction, v = 1": (table(VELOCITY, 1), 1, 1),
    "flow, uniform": (flow(EVEN, 1), 1.571, 2),
    "flow, uniform, shift 3": (flow(EVEN, 3), 1.493, 2),
    "flow, logit-normal": (flow(gaussian().sigmoid(), 1), 1.741, 2),
    "flow, logit-normal, shift 3": (flow(gaussian().sigmoid(), 3), 1.582, 2),
}


@pytest.mark.parametrize("row", TABLE)
def test_the_table_of_the_spec(row: str):
    (at, mean_square), linear, zero = TABLE[row]
    assert linear_bound(at, mean_square).mean().item() == pytest.approx(linear, rel=3e-3)
    assert zero_output_loss(at, mean_square).mean().item() == pytest.approx(zero, rel=3e-3)


def test_one_level_by_hand():
    """alpha = .6, s = .8, velocity: p = -.8, q = .6, det = 1; v = .5: .5 / (.36 * .5 + .64), and .64 * .5 + .36."""
    alpha, s, one = (torch.tensor([number], dtype=torch.float64) for number in (0.6, 0.8, 1.0))
    at = Coefficients(time=one, alpha=alpha, s=s, p=-s, q=alpha, weight=2 * one, c_in=one)
    assert linear_bound(at, 0.5).item() == pytest.approx(2 * 0.5 / 0.82)
    assert zero_output_loss(at, 0.5).item() == pytest.approx(2 * 0.68)
    assert relative_sigma(at, 0.25).item() == pytest.approx(8 / 3)


@pytest.mark.parametrize("process", [EDM(), VP(), SD, VELOCITY, VP(prediction="sample")], ids=str)
def test_the_bound_is_the_loss_of_the_best_linear_denoiser(process: Process):
    """By Monte Carlo on images that are noise of mean square .3; any other linear denoiser is worse."""
    mean_square = 0.3
    level = process.scoring_levels(3, 0.9)[1].double()
    at = process.at(level[None])
    best = (at.alpha * mean_square / (at.alpha**2 * mean_square + at.s**2)).item()
    shape = 1, 1, 400, 1000
    z, eps = (normal(generator(0, name), *shape).double() for name in ("z", "eps"))
    z = z * math.sqrt(mean_square / z.square().mean().item())
    eps = eps - (eps * z).mean() / mean_square * z

    def linear(factor: float) -> Callable[..., Tensor]:
        def denoiser(noisy: Tensor, level: Tensor, condition: Condition = NO_CONDITION) -> Tensor:
            return factor * noisy

        return denoiser

    def loss(factor: float) -> float:
        return denoising_loss(process, linear(factor), z, eps / eps.square().mean().sqrt(), level[None]).item()

    assert loss(best) == pytest.approx(linear_bound(at, mean_square).item(), rel=1e-6)
    assert loss(best) < min(loss(0.99 * best), loss(1.01 * best))


def test_the_loss_of_an_output_of_0_is_above_the_linear_bound_between_the_ends():
    """For EDM on images of mean square .577, by hand at sigma^2 = .25; they differ by 18.5 % at most."""
    process, v = EDM(), 0.577
    at = torch.tensor([1e-4, 0.5, 1e4], dtype=torch.float64)
    zero, linear = process.zero_output_bound(at, v), process.linear_bound(at, v)
    assert zero.tolist() == pytest.approx([1, 4 * (0.25 * v + 0.0625) / 0.5, v / 0.25], rel=1e-6)
    assert linear.tolist() == pytest.approx([1, 4 * 0.5 * v / (0.25 + v), v / 0.25], rel=1e-6)
    level = torch.logspace(-3, 2, 1001, dtype=torch.float64)
    more = process.zero_output_bound(level, v) / process.linear_bound(level, v)
    assert more.min() >= 1 and more.max().item() == pytest.approx(1.185, abs=1e-3)


def test_the_bound_of_edm_is_one_to_the_last_bit_at_the_variance_of_the_data():
    """So that the epsilon of the skew is what it always was (spec/models 2.4)."""
    level = torch.cat([EDM().scoring_levels(100, 0.7), EDM().training_levels(generator(1, "levels"), 1000)])
    assert torch.equal(EDM().linear_bound(level, EDM().second_moment), torch.ones(1100))


def test_the_bound_of_edm_is_the_general_one():
    """Written so that nothing is rounded at v = .25; the coefficients say the same at every other v."""
    level = EDM().scoring_levels(100, 0.7).double()
    found = EDM().linear_bound(level, 0.58)
    torch.testing.assert_close(found, linear_bound(EDM().at(level), 0.58), rtol=1e-9, atol=0)


@pytest.mark.parametrize("process", [VP(), SD, COSINE], ids=str)
def test_the_mean_over_training_levels_is_the_null_loss(process: VP):
    at, mean_square = table(process, 0.25)
    assert process.null_loss(0.25) == pytest.approx(linear_bound(at, mean_square).mean().item(), rel=0.03)
    zero = zero_output_loss(at, mean_square).mean().item()
    assert process.zero_output_loss(0.25) == pytest.approx(zero, rel=0.03)
