"""The closed-form ELBO against the reference values and against the KL terms computed directly."""

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from families import COSINE, FAMILIES, UNET2D, classes, family
from fixture_files import tensors
from mucs_ray.diffusion.betas import alpha_bar, betas
from mucs_ray.diffusion.condition import mapped
from mucs_ray.diffusion.edm import EDM
from mucs_ray.diffusion.elbo import (
    ElboGrid,
    elbo_difference,
    elbo_grid,
    kl_terms,
    loss_difference,
    query_noise,
    raw_errors,
)
from mucs_ray.diffusion.loss import denoising_loss
from mucs_ray.diffusion.noise import NoiseSet, generator, normal
from mucs_ray.diffusion.vp import VP
from mucs_ray.diffusion.vp_config import Betas
from mucs_ray.errors import InputError
from mucs_ray.models.ddpm import DDPM
from mucs_ray.models.unet2d import UNet2DModel

REFERENCE = tensors("guda_u/elbo")
GUDA = VP(betas=Betas(schedule="squaredcos_cap_v2", steps=4000))


@cache
def reference_model(name: str) -> DDPM:
    """The full model (base), or one with the tensors of an "unlearned" one (u0, u3)."""
    network = UNet2DModel(UNET2D)
    content = tensors("guda_u/unet2d_tiny_weights", "base.")
    changed = {} if name == "base" else tensors("guda_u/unet2d_tiny_weights", f"{name}.")
    network.load_state_dict(content | changed)
    return DDPM(network.eval().requires_grad_(False), GUDA)


@cache
def reference_errors(name: str) -> tuple[ElboGrid, Tensor]:
    """The errors of the four images on the reference noise, whose levels descend."""
    grid = elbo_grid(GUDA, skip=100)
    level = REFERENCE["timesteps"].float()
    assert level.flip(0).tolist() == grid.level.tolist()
    errors = [
        raw_errors(reference_model(name), z, NoiseSet(level=level, unit=unit)).flip(0)
        for z, unit in zip(REFERENCE["x0"], REFERENCE["noise"], strict=True)
    ]
    return grid, torch.stack(errors)


def test_tables_are_the_reference_ones():
    torch.testing.assert_close(betas(GUDA.betas), REFERENCE["betas_f32"], rtol=0, atol=0)
    torch.testing.assert_close(alpha_bar(GUDA.betas), REFERENCE["alphas_cumprod_f32"], rtol=2e-7, atol=0)


def test_factors_are_the_reference_ones():
    grid = elbo_grid(GUDA, skip=10)
    assert grid.level.tolist() == REFERENCE["coef_t"].tolist() == list(range(10, 4000, 10))
    torch.testing.assert_close(grid.kl, REFERENCE["coef_from_f32_tables"], rtol=1e-9, atol=0)
    assert (grid.kl / REFERENCE["coef_exact_f64"] - 1).abs().max() < 4e-4


@pytest.mark.parametrize("name", ["base", "u0", "u3"])
def test_kl_terms_are_the_reference_ones(name: str):
    """The reference network is another program in fp32; its direct KL terms are of fp32 means."""
    grid, errors = reference_errors(name)
    kl = kl_terms(grid, errors).flip(1)
    torch.testing.assert_close(kl, REFERENCE[f"kl_closed_form_{name}"], rtol=5e-6, atol=0)
    torch.testing.assert_close(kl, REFERENCE[f"kl_{name}"], rtol=5e-5, atol=0)


@pytest.mark.parametrize("name", ["base", "u0", "u3"])
def test_the_closed_form_is_exact_for_the_reference_predictions(name: str):
    grid, first = elbo_grid(GUDA, skip=100), slice(0, 8)
    error = (
        (REFERENCE[f"eps_{name}_at_first8"].double() - REFERENCE["noise"][:, first].double()).square().sum((2, 3, 4))
    )
    kl = grid.kl.flip(0)[first] * error
    torch.testing.assert_close(kl, REFERENCE[f"kl_closed_form_{name}"][:, first], rtol=1e-9, atol=0)


def test_score_differences_are_the_reference_ones():
    """The groups without a model have the score 0 in the reference."""
    expected = REFERENCE["delta_script_skip100_batch4"]
    assert (expected[:, [1, 2, *range(4, 10)]] == 0).all()
    grid, full = reference_errors("base")
    for column, name in ((0, "u0"), (3, "u3")):
        delta = elbo_difference(grid, full, reference_errors(name)[1])
        tolerance = torch.maximum(5e-4 * expected[:, column].abs(), 1e-4 * kl_terms(grid, full).sum(1))
        assert ((delta - expected[:, column]).abs() <= tolerance).all()


def test_the_same_model_makes_no_difference():
    grid, full = reference_errors("base")
    assert (elbo_difference(grid, full, full) == 0).all() and (loss_difference(grid, full, full, 192) == 0).all()


def direct_kl(process: VP, z: Tensor, noise: Tensor, raw: Tensor, step: int) -> float:
    """KL(q(x_(t-1) | x_t, z) || p(x_(t-1) | x_t)) by the means of the posterior, all in float64 (methods 13.4)."""
    beta, left = (table(process.betas).double() for table in (betas, alpha_bar))
    alpha, before = 1 - beta[step], left[step - 1]
    now = before * alpha  # alpha_bar_t without the rounding of the table, for which the identity is exact
    x = now.sqrt() * z + (1 - now).sqrt() * noise
    match process.prediction:
        case "epsilon":
            predicted = (x - (1 - now).sqrt() * raw) / now.sqrt()
        case "v_prediction":
            predicted = now.sqrt() * x - (1 - now).sqrt() * raw
        case _:
            predicted = raw
    means = [(before.sqrt() * beta[step] * of + alpha.sqrt() * (1 - before) * x) / (1 - now) for of in (z, predicted)]
    variance = beta[step] * (1 - before) / (1 - now)
    return ((means[0] - means[1]) ** 2).sum().item() / (2 * variance.item())


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_the_closed_form_is_the_direct_one(prediction: Any):
    """On a table of few steps, so that fp32 products are nearly exact; the network's answer may be anything."""
    process = VP(betas=Betas(schedule="linear", first=0.01, last=0.3, steps=20), prediction=prediction)
    grid = elbo_grid(process, skip=3)
    assert grid.level.tolist() == [3, 6, 9, 12, 15, 18]
    z, noise, raw = (normal(generator(1, name), 6, 2, 5).double() for name in ("z", "noise", "raw"))
    target = process.target(z, noise, grid.level.double())
    found = kl_terms(grid, (raw - target).square().flatten(1).sum(1))
    for row, step in enumerate(grid.level.int().tolist()):
        assert direct_kl(process, z[row], noise[row], raw[row], step) == pytest.approx(found[row].item(), rel=2e-6)


def test_the_direct_terms_agree_to_nine_digits_where_the_tables_are_exact():
    """Betas of 1/4, whose products are exact in fp32."""
    process = VP(betas=Betas(schedule="trained", trained=(0.25,) * 6, steps=6))
    grid = elbo_grid(process, skip=1)
    z, noise, raw = (normal(generator(1, name), 4, 2, 5).double() for name in ("z", "noise", "raw"))
    found = kl_terms(grid, (raw - noise).square().flatten(1).sum(1))
    for row, step in enumerate(grid.level.int().tolist()):
        assert direct_kl(process, z[row], noise[row], raw[row], step) == pytest.approx(found[row].item(), rel=1e-9)


def test_the_terms_of_a_continuous_schedule_by_hand():
    """KL_j = (1 / sigma_(j+1)^2 - 1 / sigma_j^2) |z - D|^2 / 2, with D computed by the process itself."""
    process = EDM()
    grid = elbo_grid(process, num=128)
    schedule = process.sampling_levels(129)
    assert len(grid.level) == 128 and grid.level[0] == 80 and schedule[-1].item() == pytest.approx(0.002)
    z, noise, raw = (normal(generator(1, name), 128, 2, 5).double() for name in ("z", "noise", "raw"))
    level = schedule[:-1]
    denoised = process.denoised(raw, process.noised(z, noise, level), level)
    expected = (1 / schedule[1:] ** 2 - 1 / level**2) * (z - denoised).square().flatten(1).sum(1) / 2
    found = kl_terms(grid, (raw - process.target(z, noise, level)).square().flatten(1).sum(1))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_terms_and_losses(name: str):
    """The factor of the loss makes of the errors the loss that the model was trained with."""
    model = family(name)
    grid = elbo_grid(model.process, skip=90, num=11)
    z, condition = normal(generator(2, "z"), *model.shape) / 2, mapped(classes(model, 1), lambda c: c[0])
    noises = query_noise(grid, model.shape, seed=1, idx=5)
    errors = raw_errors(model, z, noises, condition, levels_per_forward=4)
    assert len(errors) == 11 and (kl_terms(grid, errors) > 0).all() and errors.dtype == torch.float64
    conditions = mapped(condition, lambda tensor: tensor.expand(11, *tensor.shape))
    losses = denoising_loss(model.process, model, z.expand(11, *z.shape), noises.unit, noises.level, conditions)
    num = z.numel()
    torch.testing.assert_close((grid.loss * errors / num).float(), losses, rtol=2e-3, atol=1e-6)
    zero = torch.zeros_like(errors)
    assert loss_difference(grid, zero, errors, num).item() == pytest.approx((grid.loss * errors).sum().item() / num)


def test_the_noise_of_a_query_is_named_by_it_alone():
    grid = elbo_grid(EDM(), num=8)
    first = query_noise(grid, (2, 3), seed=1, idx=4)
    expected = normal(generator(1, "guda/score/query=4"), 8, 2, 3)
    assert torch.equal(first.unit, expected) and torch.equal(first.level, grid.level)
    others = (query_noise(grid, (2, 3), seed=1, idx=5), query_noise(grid, (2, 3), seed=1, idx=4, draw=1))
    assert not any(torch.equal(first.unit, other.unit) for other in others)


def test_the_last_step_is_left_out_and_a_skip_that_leaves_none_is_told():
    assert elbo_grid(VP(betas=COSINE), skip=20).level.tolist() == list(range(20, 1000, 20))
    assert elbo_grid(VP(betas=COSINE), skip=27).level[-1] == 36 * 27  # 37 times 27 is 999, the last step
    with pytest.raises(InputError, match=r"groups.skip is 1000, and the model has only 1000 steps"):
        elbo_grid(VP(betas=COSINE), skip=1000)
