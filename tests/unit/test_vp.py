"""VP processes: identities in float64 (spec/models 2.2); schedules, targets and levels of the reference values."""

import numpy as np
import pytest
import torch
from torch import Tensor

from fixture_files import document, tensors
from mucs_ray.diffusion.betas import alpha_bar, betas
from mucs_ray.diffusion.condition import NO_CONDITION, Condition
from mucs_ray.diffusion.loss import denoising_loss
from mucs_ray.diffusion.noise import generator, normal
from mucs_ray.diffusion.process import Process
from mucs_ray.diffusion.rows import row_means
from mucs_ray.diffusion.vp import VP
from mucs_ray.diffusion.vp_config import Betas, Prediction
from mucs_ray.diffusion.vp_continuous import ContinuousVP, sigma_of, time_of

SD = Betas(schedule="scaled_linear", first=0.00085, last=0.012)
COSINE = Betas(schedule="squaredcos_cap_v2")
PREDICTIONS: tuple[Prediction, ...] = ("epsilon", "v_prediction", "sample")
FIXTURE = tensors("eps_contract/eps_contract")
META = document("eps_contract/meta")


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close_by_row(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Relative to the largest value of each row."""
    assert found.shape == expected.shape
    scale = expected.flatten(1).abs().amax(dim=1)
    error = (found - expected).flatten(1).abs().amax(dim=1)
    assert (error <= tolerance * scale).all(), (error / scale).tolist()


# --- schedules ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("of", "name"), [(Betas(), "linear"), (SD, "scaled_linear_sd15"), (COSINE, "squaredcos_cap_v2")]
)
def test_the_tables_are_the_reference_ones(of: Betas, name: str):
    torch.testing.assert_close(alpha_bar(of), FIXTURE[f"alphas_cumprod_{name}_T1000"], rtol=1e-6, atol=0)


def test_other_tables_by_hand():
    table = betas(Betas(schedule="sigmoid", steps=3, first=0.1, last=0.3)).double()
    torch.testing.assert_close(table, numbers(0.1 + 0.2 * 0.00247262, 0.2, 0.1 + 0.2 * 0.99752738), rtol=1e-6, atol=0)
    table = betas(Betas(schedule="trained", trained=(0.5, 0.25)))
    torch.testing.assert_close(table, torch.tensor([0.5, 0.25]))
    torch.testing.assert_close(alpha_bar(Betas(schedule="trained", trained=(0.5, 0.25))), torch.tensor([0.5, 0.375]))
    # laplace, T = 4: left(u)^2 = snr / (1 + snr) where snr = 1 / sqrt(2 u), u <= 1/2, and then sqrt(2 (1 - u))
    left = [1 / (1 + 0.5**0.5), 0.5, 0.5**0.5 / (1 + 0.5**0.5)]
    found = betas(Betas(schedule="laplace", steps=4)).double()
    torch.testing.assert_close(found[1], numbers(1 - (left[1] / left[0]) ** 0.5)[0], rtol=1e-4, atol=0)
    torch.testing.assert_close(found[2], numbers(1 - (left[2] / left[1]) ** 0.5)[0], rtol=1e-4, atol=0)
    assert found[3] == pytest.approx(1 - (0.001 / 1.001 / left[2]) ** 0.5, rel=1e-3)


def test_a_stretched_table_ends_without_any_image_and_starts_as_before():
    for of in (Betas(), SD):
        stretched = Betas(schedule=of.schedule, first=of.first, last=of.last, zero_snr=True)
        found, before = alpha_bar(stretched), alpha_bar(of)
        assert found[-1] == 0
        root = before.double().sqrt()
        expected = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
        torch.testing.assert_close(found.double(), expected, rtol=2e-4, atol=1e-9)


# --- coefficients ---------------------------------------------------------------------------------------------------


def all_processes() -> list[Process]:
    tables = [VP(betas=of, prediction=each) for of in (Betas(), SD, COSINE) for each in PREDICTIONS]
    return [*tables, ContinuousVP()]


@pytest.mark.parametrize("process", all_processes(), ids=str)
def test_identities(process: Process):
    """Of a network that is right: D = z and E = eps; (D - z) det = -s (r - target); alpha^2 + s^2 = 1 (2e-15)."""
    level = numbers(0, 1, 250, 600, 998) if isinstance(process, VP) else numbers(1e-5, 1e-3, 0.1, 0.7, 1)
    at = process.at(level)
    z, eps, raw = (normal(generator(0, name), 5, 3, 4).double() for name in ("z", "eps", "raw"))
    x, target = process.noised(z, eps, level), process.target(z, eps, level)
    alpha, s, p, q, det = (number[:, None, None] for number in (at.alpha, at.s, at.p, at.q, at.det))
    right = process.denoised(target, x, level)
    size = 1 + s.abs() / det.abs()
    assert ((right - z).abs() / size).max() < 4e-15
    assert (((alpha * target - p * x) / det - eps).abs() / (1 + alpha / det.abs())).max() < 4e-15
    wrong = process.denoised(raw, x, level)
    assert (((wrong - z) * det + s * (raw - target)).abs()).max() < 1e-14
    torch.testing.assert_close(at.alpha**2 + at.s**2, torch.ones(5, dtype=torch.float64), rtol=0, atol=4e-16)
    assert at.c_in.eq(1).all()
    torch.testing.assert_close(q * alpha - p * s, det)


def test_det_by_hand():
    level = numbers(0, 500, 999)
    alpha = FIXTURE["alphas_cumprod_linear_T1000"].double()[level.long()].sqrt()
    torch.testing.assert_close(VP().at(level).det, alpha)
    torch.testing.assert_close(VP(prediction="v_prediction").at(level).det, numbers(1, 1, 1))
    found = VP(prediction="sample").at(level)
    torch.testing.assert_close(found.det, -((1 - alpha**2).sqrt()))
    torch.testing.assert_close(found.weight, alpha**2 / (1 - alpha**2))
    torch.testing.assert_close(VP().at(numbers(7)).time, numbers(7))


def test_minus_one_is_no_noise():
    at = VP().at(numbers(-1))
    assert (at.alpha.item(), at.s.item()) == (1, 0)


def test_noisy_image_and_velocity_are_the_reference_ones():
    level = FIXTURE["t"].float()
    found = VP().noised(FIXTURE["x"], FIXTURE["noise"], level)
    close_by_row(found, FIXTURE["noisy"], 1e-6)
    found = VP(prediction="v_prediction").target(FIXTURE["x"], FIXTURE["noise"], level)
    close_by_row(found, FIXTURE["velocity_target"], 1e-6)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_clean_image_is_the_reference_one(prediction: Prediction):
    level = torch.tensor(META["ddim_step_timesteps"]).float()
    found = VP(prediction=prediction).denoised(FIXTURE["model_output"], FIXTURE["noisy"], level)
    close_by_row(found, FIXTURE[f"ddim_x0_{prediction}"], 1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_loss_of_the_clean_image_is_that_of_the_raw_output(
    prediction: Prediction, dtype: torch.dtype, tolerance: float
):
    process, level = VP(prediction=prediction), torch.tensor([1, 120, 600, 990], dtype=dtype)
    z, eps, raw = (FIXTURE[name].to(dtype) for name in ("x", "noise", "model_output"))

    def denoiser(noisy: Tensor, level: Tensor, condition: Condition = NO_CONDITION) -> Tensor:
        return process.denoised(raw, noisy, level)

    direct = process.at(level).weight * row_means((raw - process.target(z, eps, level)).square())
    torch.testing.assert_close(denoising_loss(process, denoiser, z, eps, level), direct, rtol=tolerance, atol=0)


def test_all_three_predictions_of_the_same_clean_image_lose_alike_by_weight():
    """(D - z)^2 times 1/sigma^2, (1 + sigma^2)/sigma^2, and, with the weight alpha^2/s^2, 1/sigma^2."""
    level, sigma = numbers(10, 500, 990), VP().at(numbers(10, 500, 990))
    sigma = sigma.s / sigma.alpha
    weights = [VP(prediction=each).loss_weight(level) for each in PREDICTIONS]
    for found, expected in zip(weights, (1 / sigma**2, 1 + 1 / sigma**2, 1 / sigma**2), strict=True):
        torch.testing.assert_close(found, expected)


# --- levels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1000, 4000])
def test_scoring_levels_are_the_reference_grid(steps: int):
    found = VP(betas=Betas(steps=steps, last=0.02 * 1000 / steps)).scoring_levels(100, 0.7)
    assert found.dtype == torch.float32
    assert found.tolist() == META["scoring_grid"][f"T{steps}"]


def test_scoring_levels_leave_out_what_says_nothing_of_the_image():
    """alpha is 4.9e-5 at the last step of the cosine table, and 0 at that of a stretched one."""
    assert VP(betas=COSINE).scoring_levels(3, 1.0).tolist() == [998, 500, 0]
    stretched = VP(betas=Betas(schedule="scaled_linear", first=0.00085, last=0.012, zero_snr=True))
    assert stretched.scoring_levels(3, 1.0).tolist() == [998, 500, 0]
    assert VP(betas=COSINE, prediction="v_prediction").scoring_levels(3, 1.0).tolist() == [999, 500, 0]


def test_random_scoring_levels_are_noisiest_first():
    found = VP().scoring_levels(100, 0.7, generator(0, "scoring"))
    u = np.sort(generator(0, "scoring").random(142))
    assert found.tolist() == [float(round(999 * (1 - each))) for each in u[:100]]


def test_training_levels_are_even_over_the_steps():
    found = VP().training_levels(generator(0, "train"), 20_000)
    assert found.dtype == torch.float32
    assert (found.min(), found.max()) == (0, 999)
    assert found.mean().item() == pytest.approx(499.5, abs=6)
    stretched = VP(betas=Betas(zero_snr=True))
    assert stretched.training_levels(generator(0, "train"), 20_000).max() == 998


@pytest.mark.parametrize("key", sorted(META["timesteps"]))
def test_sampling_levels_are_the_reference_ones(key: str):
    spacing, steps, offset = key.split("_")
    process = VP(spacing=spacing, offset=int(offset.removeprefix("offset")))  # type: ignore[arg-type]
    assert process.sampling_levels(int(steps.removeprefix("n"))).tolist() == META["timesteps"][key]


def test_a_rho_schedule_picks_the_nearest_steps():
    process = VP(betas=SD, spacing="rho")
    levels = process.sampling_levels(20)
    assert levels[0] == 999
    assert levels[-1] == 0
    assert (levels.diff() < 0).all()
    at = process.at(torch.arange(1000.0).double())
    sigma = at.s / at.alpha
    middle = ((sigma[0] ** (1 / 7) + sigma[-1] ** (1 / 7)) / 2) ** 7
    assert process.sampling_levels(3)[1] == (sigma - middle).abs().argmin()


# --- the continuous process -----------------------------------------------------------------------------------------


def test_sigma_and_time_are_the_reference_ones():
    table = tensors("mucs_backbones/unet_vp_tiny", "table_")
    time = table["t"].double()
    torch.testing.assert_close(sigma_of(time), table["sigma_exact_f64"], rtol=1e-12, atol=0)
    torch.testing.assert_close(time_of(sigma_of(time)), time, rtol=1e-12, atol=0)
    at = ContinuousVP().at(time)
    torch.testing.assert_close(at.s / at.alpha, sigma_of(time), rtol=1e-12, atol=0)
    torch.testing.assert_close(at.time, 999 * time)
    in_fp32 = ContinuousVP().at(table["t"])
    torch.testing.assert_close((in_fp32.s / in_fp32.alpha).double(), sigma_of(time), rtol=3e-7, atol=0)
    torch.testing.assert_close(
        sigma_of(numbers(1e-5, 1e-3, 0.1, 0.5, 1)),
        numbers(0.0010005, 0.010486, 0.34018, 3.4129, 152.167),
        rtol=1e-4,
        atol=0,
    )


def test_levels_of_the_continuous_process():
    process = ContinuousVP()
    expected = torch.tensor(META["vp_scoring_grid_t"])
    torch.testing.assert_close(process.scoring_levels(100, 0.7), expected, rtol=1e-7, atol=0)
    torch.testing.assert_close(process.sampling_levels(3), numbers(1, 0.5005, 0.001))
    drawn = process.training_levels(generator(0, "train"), 20_000)
    assert drawn.dtype == torch.float32
    assert 1e-5 < drawn.min() < drawn.max() <= 1
    assert drawn.mean().item() == pytest.approx(0.5, abs=0.006)
