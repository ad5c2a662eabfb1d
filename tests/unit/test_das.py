"""DAS equals hand-computed values on a linear model, with and without square and leverage, and finds a duplicate."""

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mucs_ray.attribution.base import Columns, MethodContext
from mucs_ray.attribution.cards.das import DASConfig
from mucs_ray.attribution.das import DAS
from mucs_ray.attribution.projection import Sketch
from mucs_ray.diffusion.batch import Batch, Item
from mucs_ray.diffusion.condition import for_each, one_by_one
from mucs_ray.diffusion.edm import EDM
from mucs_ray.diffusion.loss import denoising_loss
from mucs_ray.diffusion.noise import generator, normal
from mucs_ray.errors import RunFailed
from mucs_ray.models.dit_edm import DiTEDM
from tiny import lively, rows, tiny_recipe

CPU = torch.device("cpu")
NOISES, DIM = 5, 64


class Linear(nn.Module):
    """This network computes F = scale x + shift, channel by channel."""

    shape = 3, 8, 8

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([0.5, -1.0, 2.0]))
        self.shift = nn.Parameter(torch.tensor([0.1, 0.2, -0.3]))

    def forward(self, x: Tensor, level: Tensor, condition: Tensor | None, augmented: Tensor | None) -> Tensor:
        return self.scale[:, None, None] * x + self.shift[:, None, None]


LINEAR = DiTEDM(Linear()).eval().requires_grad_(False)


DENOISER = lively(tiny_recipe("nowhere").model)


def some_images(count: int, *, seed: int) -> Batch:
    made = rows(count, first_idx=100, seed=seed)
    return Batch(
        idx=torch.tensor([row.idx for row in made]),
        z=torch.from_numpy(np.stack([row.image for row in made])).float() / 127.5 - 1,
        condition={"condition": torch.eye(3)[[row.label for row in made]]},
    )


IMAGES = some_images(9, seed=5)


def method(denoiser: DiTEDM | None, **knobs: Any) -> DAS:
    recipe = tiny_recipe("nowhere", seed=1, method={"das": {"noises": NOISES, "dim": DIM, **knobs}})
    return DAS(MethodContext(settings=recipe, device=CPU, num_images=9, denoiser=denoiser))


# --- features by hand -------------------------------------------------------------------------------------------------


def noisy_pixels(image: Tensor) -> Iterator[tuple[float, Tensor, Tensor]]:
    """Return sigma, x_n and c_in x_n of each noise, in float64."""
    sigmas = np.exp(-1.2 + 1.2 * generator(1, "das/sigma").standard_normal(NOISES))
    units = normal(generator(1, "das/noise"), NOISES, 3, 8, 8).double()
    for sigma, unit in zip(sigmas, units, strict=True):
        noisy = image.double() + sigma * unit
        yield sigma, noisy, noisy / np.sqrt(sigma**2 + 0.25)


def hand_gradient(scaled: Tensor) -> Tensor:
    """Return the gradient of mean F: each pixel's x for its channel's scale, 1 for its shift, over 3 channels."""
    return torch.cat([scaled.mean(dim=(1, 2)) / 3, torch.full((3,), 1 / 3, dtype=torch.float64)])


def projected(vector: Tensor) -> Tensor:
    sketch = Sketch({"scale": 3, "shift": 3}, dim=DIM, signs=1, seed=1, device=CPU)
    return sketch(vector.float().split(3))


def test_each_gradient_has_length_one_before_the_average():
    actual = method(LINEAR, gradients="per_noise").features(IMAGES)["feature"]
    for image, feature in zip(IMAGES.z, actual, strict=True):
        gradients = [hand_gradient(scaled) for _, _, scaled in noisy_pixels(image)]
        lengths = torch.stack([gradient.norm() for gradient in gradients])
        assert lengths.std() > 0.01 * lengths.mean()  # else the average would not tell
        average = torch.stack([g / (g.norm() + 1e-8) for g in gradients]).mean(0)
        torch.testing.assert_close(feature, projected(average), rtol=1e-4, atol=1e-6)


def test_or_the_average_has_length_one():
    actual = method(LINEAR, gradients="of_average").features(IMAGES)["feature"]
    for image, feature in zip(IMAGES.z, actual, strict=True):
        average = torch.stack([hand_gradient(scaled) for _, _, scaled in noisy_pixels(image)]).mean(0)
        torch.testing.assert_close(feature, projected(average / average.norm()), rtol=1e-4, atol=1e-6)


def test_fewer_noises_in_a_pass_give_the_same_features():
    """The average over all noises is scaled, not that of each pass."""
    whole, cut = (method(DENOISER, noises_per_forward=at_once).features(IMAGES)["feature"] for at_once in (100, 3))
    torch.testing.assert_close(cut, whole, rtol=1e-4, atol=1e-6)


def test_the_two_ways_differ():
    actual = [method(DENOISER, gradients=way).features(IMAGES)["feature"] for way in ("of_average", "per_noise")]
    assert (actual[0] - actual[1]).norm() > 0.01 * actual[0].norm()  # rounding is 1e-6


@pytest.mark.parametrize("gradients", ["of_average", "per_noise"])
def test_residuals_by_hand(gradients: str):
    """The residual is the mean of r_j = sqrt(mean (F - F*)^2), scaled to length 1 over the noises."""
    actual = method(LINEAR, gradients=gradients).features(IMAGES)["residual"]
    scale, shift = (each.double()[:, None, None] for each in LINEAR.network.parameters())
    for image, residual in zip(IMAGES.z, actual, strict=True):
        errors = []
        for sigma, noisy, scaled in noisy_pixels(image):
            skip, out = 0.25 / (sigma**2 + 0.25), 0.5 * sigma / np.sqrt(sigma**2 + 0.25)
            target = (image.double() - skip * noisy) / out
            errors.append((scale * scaled + shift - target).square().mean().sqrt())
        vector = torch.stack(errors)
        expected = (vector / vector.square().sum().sqrt()).mean()
        torch.testing.assert_close(residual.double(), expected, rtol=1e-4, atol=0)


def test_losses_of_the_raw_output_are_the_denoising_losses():
    """By the identity of spec 3.1, mean (F - F*)^2 = omega (D - x)^2."""
    made = method(DENOISER)
    noises = made.gradients.gradient.noises
    (condition,) = one_by_one(IMAGES[2:3].condition, 1)
    expected = denoising_loss(
        EDM(),
        DENOISER,
        IMAGES.z[2].expand(NOISES, -1, -1, -1),
        noises.unit,
        noises.level,
        for_each(condition, NOISES),
    )
    actual = made.measure(IMAGES.z[2], condition).losses
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)
    assert not actual.requires_grad


@pytest.mark.parametrize("gradients", ["of_average", "per_noise"])
def test_features_do_not_depend_on_cut_bit_for_bit(gradients: str):
    made = method(DENOISER, gradients=gradients)
    whole, cuts = made.features(IMAGES), [made.features(IMAGES[slice(a, b)]) for a, b in [(0, 1), (1, 6), (6, 9)]]
    for name in ("feature", "residual"):
        assert torch.equal(torch.cat([cut[name] for cut in cuts]), whole[name])


# --- scores -----------------------------------------------------------------------------------------------------------

TABLE: Columns = {
    "idx": IMAGES.idx,
    "feature": normal(generator(1, "feature"), 9, DIM),
    "residual": torch.linspace(0.2, 0.9, 9),
}
VECTORS = [{"vector": 0.01 * normal(generator(1, f"item={number}"), DIM)} for number in range(3)]
PREPARED = method(None, damping=0.5).fit({}, iter([TABLE]))


def scored(**knobs: Any) -> Tensor:
    scorer = method(None, **knobs)
    scorer.load(PREPARED, VECTORS)
    return scorer.columns(TABLE)["score"].double()


def test_scores_by_hand():
    """The score is [phi(item)^T K^-1 phi_i r_i]^2, or the same without the square."""
    product = torch.stack([TABLE["feature"].double() @ each["vector"].double() for each in VECTORS], dim=1)
    expected = product * TABLE["residual"].double()[:, None]
    torch.testing.assert_close(scored(square=False), expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(scored(), expected.square(), rtol=1e-5, atol=1e-10)
    assert (scored(square=False) < 0).any()
    assert (scored() >= 0).all()


def test_leverage_by_hand():
    """The leverage is h_i = phi_i^T K^-1 phi_i, of each training image."""
    phi = TABLE["feature"].double()
    kernel = phi.T @ phi + 0.5 * phi.square().sum() / DIM * torch.eye(DIM)
    leverage = torch.stack([each @ torch.linalg.inv(kernel) @ each for each in phi])
    assert 0.1 < leverage.min() < leverage.max() < 1
    expected = scored(square=False) / (1 - leverage)[:, None]
    torch.testing.assert_close(scored(square=False, leverage=True), expected, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(scored(leverage=True), expected.square(), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("leverage", [False, True])
@pytest.mark.parametrize("gradients", ["of_average", "per_noise"])
def test_a_planted_duplicate_ranks_first(gradients: str, leverage: bool):
    """The generated item is a training image (spec 18); all stages run in order, each in a worker of its own."""
    images, knobs = some_images(30, seed=9), {"gradients": gradients, "leverage": leverage}
    table = method(DENOISER, **knobs).features(images)
    prepared = method(None, **knobs).fit({}, iter([table]))
    planted = [3, 17]
    adapted = []
    for number, at in enumerate(planted):
        item = Item(
            number=number, idx=900 + at, condition=one_by_one(images.condition, len(images))[at], z=images.z[at]
        )
        adapted.append(method(DENOISER, **knobs).fit_item(item, prepared, lambda step, loss: None).tensors)
    scorer = method(None, **knobs)
    scorer.load(prepared, adapted)
    assert scorer.columns(table)["score"].argmax(dim=0).tolist() == planted


# --- failing, and what the engine reads ------------------------------------------------------------------------------


def test_an_image_with_nan_is_named():
    broken = replace(IMAGES, z=IMAGES.z.clone())
    broken.z[4, 1, 2, 3] = float("nan")
    with pytest.raises(RunFailed, match="DAS: the feature of training image idx=104 is not finite"):
        method(DENOISER).features(broken)


def test_a_residual_that_overflows_is_named():
    """The gradient of a linear model does not depend on its shift; the loss does."""
    huge = DiTEDM(Linear()).eval().requires_grad_(False)
    huge.network.get_parameter("shift").fill_(1e30)
    with pytest.raises(RunFailed, match="DAS: the residual of training image idx=100 is not finite"):
        method(huge).features(IMAGES)


def test_parts_read_knobs_that_exist():
    """Every knob of its own section is read by one stage."""
    read = [name for part in DAS.card.stages for name in part.reads]
    assert sorted(read) == sorted(f"method.das.{each.name}" for each in fields(DASConfig))
    assert DAS.card.stages[-1].reads == ("method.das.square", "method.das.leverage")
