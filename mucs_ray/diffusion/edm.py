"""EDM: sigma_data = 0.5 unless a model says otherwise, a level is sigma (spec 3.1).

D(x_n, sigma) = c_skip x_n + c_out F(c_in x_n, c_noise), and the loss is omega (D - x)^2 = (F - F*)^2. The formulas are
the paper's, in its order of operations, where the general ones of process.py would differ in the last bits.
Axes: b rows, n levels, *shape of an image.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mucs_ray.diffusion.process import Coefficients, Process
from mucs_ray.diffusion.rows import per_row
from mucs_ray.diffusion.schedule import (
    LOG_SIGMA_MEAN,
    LOG_SIGMA_STD,
    random_schedule_sigmas,
    rho_schedule,
    scoring_sigmas,
    training_sigmas,
)

SIGMA_DATA = 0.5
"""The paper's sd, which is about the root mean square of CIFAR-10."""


def c_skip(sigma: Tensor, sigma_data: float = SIGMA_DATA) -> Tensor:
    """Return the share of the noisy image in the denoised one."""
    return sigma_data**2 / (sigma**2 + sigma_data**2)


def c_out(sigma: Tensor, sigma_data: float = SIGMA_DATA) -> Tensor:
    """Return the scale of the network's output."""
    return sigma * sigma_data / (sigma**2 + sigma_data**2).sqrt()


def c_in(sigma: Tensor, sigma_data: float = SIGMA_DATA) -> Tensor:
    """Return the factor that brings the noisy image to unit variance."""
    return 1 / (sigma**2 + sigma_data**2).sqrt()


def c_noise(sigma: Tensor) -> Tensor:
    """Return what the network receives as the noise level."""
    return (sigma + 1e-6).log() / 4


class EDM(Process):
    """The process of EDM: x_n = x + sigma eps, and F* = c_in (sigma x / sd - sd eps)."""

    def __init__(self, sigma_data: float = SIGMA_DATA) -> None:
        """Set sd, the standard deviation that the images are taken to have."""
        self.sigma_data = sigma_data
        self.second_moment = sigma_data**2

    def at(self, level: Float[Tensor, " n"]) -> Coefficients:
        """Return p = sigma c_in / sd and q = -sd c_in; the loss of the raw output has no weight."""
        one, scale = torch.ones_like(level), c_in(level, self.sigma_data)
        return Coefficients(
            time=c_noise(level),
            alpha=one,
            s=level,
            p=level / self.sigma_data * scale,
            q=-self.sigma_data * scale,
            weight=one,
            c_in=scale,
        )

    def training_levels(self, stream: np.random.Generator, num: int) -> Float[Tensor, " n"]:
        """Draw ln sigma ~ N(-1.2, 1.2^2)."""
        return training_sigmas(stream, num)

    def scoring_levels(self, num: int, keep: float, stream: np.random.Generator | None = None) -> Float[Tensor, " n"]:
        """Return levels on the rho-schedule (spec 7.3, 8)."""
        return scoring_sigmas(num, keep) if stream is None else random_schedule_sigmas(stream, num, keep)

    def sampling_levels(self, steps: int) -> Float[Tensor, " m"]:
        """Return the rho-schedule in float64."""
        return rho_schedule(steps)

    def noised(
        self, image: Float[Tensor, "b *shape"], noise: Float[Tensor, "b *shape"], level: Float[Tensor, " b"]
    ) -> Float[Tensor, "b *shape"]:
        """Return x + sigma eps."""
        return image + per_row(level, noise) * noise

    def target(
        self, image: Float[Tensor, "b *shape"], noise: Float[Tensor, "b *shape"], level: Float[Tensor, " b"]
    ) -> Float[Tensor, "b *shape"]:
        """Return F* = (x - c_skip x_n) / c_out, written so that nothing cancels in it at a small sigma."""
        sigma = per_row(level, noise)
        return c_in(sigma, self.sigma_data) * (sigma / self.sigma_data * image - self.sigma_data * noise)

    def denoised(
        self, raw: Float[Tensor, "b *shape"], noisy: Float[Tensor, "b *shape"], level: Float[Tensor, " b"]
    ) -> Float[Tensor, "b *shape"]:
        """Return c_skip x_n + c_out F."""
        skip, out = c_skip(level, self.sigma_data), c_out(level, self.sigma_data)
        return per_row(skip, noisy) * noisy + per_row(out, noisy) * raw

    def loss_weight(self, level: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return omega = (sigma^2 + sd^2) / (sigma sd)^2 = 1 / c_out^2."""
        return (level**2 + self.sigma_data**2) / (level * self.sigma_data) ** 2

    def linear_bound(self, level: Float[Tensor, " n"], mean_square: float) -> Float[Tensor, " n"]:
        """(sigma^2 + sd^2) v / (sd^2 (sigma^2 + v)), which is 1 to the last bit where v = sd^2 = .25."""
        variance, expected = level**2, self.sigma_data**2
        return (variance + expected) / expected * mean_square / (variance + mean_square)

    def zero_output_loss(self, mean_square: float) -> float:
        """That of the network which the paper starts from (spec 7.1), by quadrature."""
        return analytic_null_loss(mean_square, sigma_data=self.sigma_data)


def zero_network_loss(
    sigma: Float[Tensor, " n"], mean_square: float, sigma_data: float = SIGMA_DATA
) -> Float[Tensor, " n"]:
    """Return the expected loss when F = 0: (sigma^2 v + sd^4) / (sd^2 (sigma^2 + sd^2)), v = E[x^2] (spec 7.1)."""
    return (sigma**2 * mean_square + sigma_data**4) / (sigma_data**2 * (sigma**2 + sigma_data**2))


def analytic_null_loss(mean_square: float, *, sigma_data: float = SIGMA_DATA, num_nodes: int = 201) -> float:
    """Average zero_network_loss over the training distribution of sigma, by the trapezoidal rule on ln sigma."""
    z = torch.linspace(-8, 8, num_nodes, dtype=torch.float64)
    density = torch.exp(-0.5 * z**2)
    losses = zero_network_loss(torch.exp(LOG_SIGMA_MEAN + LOG_SIGMA_STD * z), mean_square, sigma_data)
    return float((density * losses).sum() / density.sum())
