"""The weighted denoising loss, one number for each (image, noise) (spec 3.1), and its value for an untrained network.

Axes: b images (each with its own sigma and noise), *shape of an image.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from mucs_ray.diffusion.condition import NO_CONDITION, Condition
from mucs_ray.diffusion.denoiser import SIGMA_DATA, Denoiser
from mucs_ray.diffusion.rows import per_row, row_means
from mucs_ray.diffusion.schedule import LOG_SIGMA_MEAN, LOG_SIGMA_STD


def loss_weight(sigma: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """omega = (sigma^2 + sd^2) / (sigma sd)^2 = 1 / c_out^2."""
    return (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2


def noised(
    image: Float[Tensor, "b *shape"], noise: Float[Tensor, "b *shape"], sigma: Float[Tensor, " b"]
) -> Float[Tensor, "b *shape"]:
    """x + sigma eps."""
    return image + per_row(sigma, noise) * noise


def denoising_loss(
    denoiser: Denoiser,
    image: Float[Tensor, "b *shape"],
    noise: Float[Tensor, "b *shape"],
    sigma: Float[Tensor, " b"],
    condition: Condition = NO_CONDITION,
) -> Float[Tensor, " b"]:
    """Mean over all of an image of omega (D(x + sigma eps) - x)^2, >= 0."""
    denoised = denoiser(noised(image, noise, sigma), sigma, condition)
    return loss_weight(sigma) * row_means((denoised - image).square())


def zero_network_loss(sigma: Float[Tensor, " n"], mean_square: float) -> Float[Tensor, " n"]:
    """Expected loss when F = 0: (sigma^2 v + sd^4) / (sd^2 (sigma^2 + sd^2)), v = E[x^2] per pixel (spec 7.1)."""
    return (sigma**2 * mean_square + SIGMA_DATA**4) / (SIGMA_DATA**2 * (sigma**2 + SIGMA_DATA**2))


def analytic_null_loss(mean_square: float, *, num_nodes: int = 201) -> float:
    """zero_network_loss averaged over the training distribution of sigma, by the trapezoidal rule on ln sigma."""
    z = torch.linspace(-8, 8, num_nodes, dtype=torch.float64)
    density = torch.exp(-0.5 * z**2)
    losses = zero_network_loss(torch.exp(LOG_SIGMA_MEAN + LOG_SIGMA_STD * z), mean_square)
    return float((density * losses).sum() / density.sum())
