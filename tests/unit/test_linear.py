"""MUCS to first order: on a toy model the product is the skew itself, and K^-alpha is found another way."""

import pytest
import torch
from torch import Tensor

from linear_model import SIZE, LinearModel
from mucs_ray.attribution.base import MethodContext
from mucs_ray.attribution.linear import LinearMUCS
from mucs_ray.attribution.projection import Sketch
from mucs_ray.diffusion.batch import Batch
from mucs_ray.diffusion.loss import denoising_loss
from mucs_ray.diffusion.noise import NoiseSet, generator, normal
from mucs_ray.errors import RunFailed
from mucs_ray.training.ema import frozen_copy
from tiny import lively, tiny_recipe

CPU = torch.device("cpu")
NOISES, DIM = 6, 4096


def method(model: LinearModel, *, dim: int = DIM, power: float = 0.0) -> LinearMUCS:
    settings = {"noises": NOISES, "dim": dim, "power": power}
    recipe = tiny_recipe("nowhere", method={"mucs/linear": settings})
    return LinearMUCS(MethodContext(settings=recipe, device=CPU, num_images=9, denoiser=model))


@pytest.fixture
def model() -> LinearModel:
    return LinearModel()


def images(count: int) -> Batch:
    return Batch(idx=torch.arange(count), z=normal(generator(2, "images"), count, SIZE), condition={})


def true_skew(before: LinearModel, after: LinearModel, batch: Batch, noises: NoiseSet) -> Tensor:
    """Return the mean over the noises of (l' - l) / (l' + l) in float64, from the package's own loss."""
    skews = []
    for z in batch.z.double():
        copied = z.expand(NOISES, *z.shape)
        pair = [
            denoising_loss(each.process, each.double(), copied, noises.unit.double(), noises.level.double())
            for each in (before, after)
        ]
        skews.append(((pair[1] - pair[0]) / (pair[1] + pair[0])).mean())
    return torch.stack(skews)


def mean_log_gradients(model: LinearModel, batch: Batch, noises: NoiseSet) -> Tensor:
    """Return mean_j grad log l_ij by a plain loop in float64, [b, p]."""
    weight = model.double().network.weight.detach().requires_grad_(True)
    rows = []
    for z in batch.z.double():
        total = torch.zeros_like(weight)
        for level, unit in zip(noises.level.double(), noises.unit.double(), strict=True):
            noisy = model.process.noised(z[None], unit[None], level[None])
            target = model.process.target(z[None], unit[None], level[None])
            raw = (noisy * model.process.at(level[None]).c_in) @ weight.T
            (gradient,) = torch.autograd.grad((raw - target).square().mean().log(), weight)
            total += gradient / NOISES
        rows.append(total.flatten())
    return torch.stack(rows)


def test_without_whitening_the_score_is_the_skew_of_a_small_step(model: LinearModel):
    """The score times the length of the gradient is twice the skew; a step of another sign turns it around."""
    batch, delta = images(12), 1e-4 * normal(generator(5, "delta"), *model.network.weight.shape)
    measured = method(model)
    features = measured.features(batch)
    sketch = Sketch({"weight": delta.numel()}, dim=DIM, signs=1, seed=measured.context.settings.seed, device=CPU)
    assert len((sketch.places[0][0] % DIM).unique()) == delta.numel()  # no two weights share a place
    moved = frozen_copy(model)
    with torch.no_grad():
        moved.network.weight += delta
    measured.load({}, [{"weight": moved.network.weight}, {"weight": model.network.weight - delta}])
    scores = measured.score(features)
    noises = measured.gradients.gradient.noises
    lengths = mean_log_gradients(frozen_copy(model), batch, noises).norm(dim=1)
    skew = true_skew(frozen_copy(model), moved, batch, noises)
    assert torch.corrcoef(torch.stack([scores[:, 0] * lengths, skew]))[0, 1] > 0.999
    torch.testing.assert_close(scores[:, 0] * lengths, 2 * skew, rtol=0.02, atol=0.02 * skew.abs().max().item())
    torch.testing.assert_close(scores[:, 1], -scores[:, 0], rtol=1e-3, atol=1e-8)
    assert skew.min() < 0 < skew.max()


def test_features_are_the_mean_gradient_of_the_log_loss_at_length_1(model: LinearModel):
    batch, measured = images(4), method(model)
    features = measured.features(batch)["feature"]
    expected = mean_log_gradients(frozen_copy(model), batch, measured.gradients.gradient.noises)
    sketch = Sketch({"weight": expected.shape[1]}, dim=DIM, signs=1, seed=1, device=CPU)
    for feature, gradient in zip(features, expected, strict=True):
        torch.testing.assert_close(feature, sketch([(gradient / gradient.norm()).float()]), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_vectors_are_k_to_the_minus_alpha_of_what_moved(model: LinearModel, power: float):
    """K^-1/2 twice is K^-1, by an inverse and an SVD of the features instead of an eigenbasis of K."""
    dim, delta = 16, normal(generator(6, "delta"), *model.network.weight.shape)
    measured = method(model, dim=dim, power=power)
    features = measured.features(images(9))
    fitted = measured.fit({}, iter([features]))
    measured.load(fitted, [{"weight": model.network.weight + delta}])
    phi = features["feature"].double()
    _, singular, right = torch.linalg.svd(phi, full_matrices=True)
    spectrum = torch.zeros(dim, dtype=torch.float64)
    spectrum[: len(singular)] = singular.square()
    damping = measured.config.damping * spectrum.sum() / dim
    inverse_power = right.T @ torch.diag((spectrum + damping) ** -power) @ right
    sketch = Sketch({"weight": delta.numel()}, dim=dim, signs=1, seed=1, device=CPU)
    expected = phi @ inverse_power @ sketch([delta]).double()
    torch.testing.assert_close(measured.score(features)[:, 0], expected, rtol=1e-3, atol=1e-4)


def test_the_gradients_are_those_of_what_unlearning_changes():
    """Weights that stay as they are have no part in an image's feature."""
    recipe = tiny_recipe("nowhere", method={"mucs": {"parameters": "block"}, "mucs/linear": {"noises": 2, "dim": 8}})
    denoiser = lively(recipe.model)
    made = LinearMUCS(MethodContext(settings=recipe, device=CPU, num_images=9, denoiser=denoiser))
    assert made.parameter_names() == denoiser.names("blocks") != denoiser.names("mlp")
    assert [*made.gradients.gradient.trainable] == denoiser.names("blocks")


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_features_without_any_direction_are_told(model: LinearModel, power: float):
    with pytest.raises(RunFailed, match=r"raise method.mucs/linear.damping"):
        method(model, dim=4, power=power).fit({}, iter([{"feature": torch.zeros(3, 4)}]))
