"""The continuous variance-preserving process of DiT-VP and UNet-VP, whose networks predict noise.

    B(t) = beta_d t^2 / 2 + beta_min t,  alpha = exp(-B / 2),  s = sqrt(1 - exp(-B)),  sigma = s / alpha

A level is the time t in [0, 1], 1 the noisiest and 0 no noise. The paper's loss, (D - x)^2 / sigma^2, is (F - eps)^2.
Axes: n levels.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mucs_ray.diffusion.process import Coefficients, Process

BETA_D, BETA_MIN = 19.9, 0.1
TRAINING_END, SAMPLING_END = 1e-5, 1e-3
"""The least noisy times to which training and sampling go."""
TIME_SCALE = 999.0


def rise(time: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Return B(t) = ln(1 + sigma^2)."""
    return BETA_D / 2 * time**2 + BETA_MIN * time


def sigma_of(time: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Return sqrt(e^B - 1), without the cancellation that costs 2 % at t = 1e-5 in fp32."""
    return torch.expm1(rise(time)).sqrt()


def time_of(sigma: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Return the time at which the noise is sigma, the positive root of B(t) = ln(1 + sigma^2)."""
    log = torch.log1p(sigma**2)
    return 2 * log / ((BETA_MIN**2 + 2 * BETA_D * log).sqrt() + BETA_MIN)


class ContinuousVP(Process):
    """The process, with alpha and s in float64 whatever the levels come in, because s is a small difference."""

    second_moment = 0.25
    """That of pixels, which both networks on this process read."""

    def at(self, level: Float[Tensor, " n"]) -> Coefficients:
        """Return the coefficients; the network receives 999 t and predicts eps."""
        log = rise(level.double())
        one, none = torch.ones_like(level), torch.zeros_like(level)
        return Coefficients(
            time=TIME_SCALE * level,
            alpha=torch.exp(-log / 2).to(level.dtype),
            s=(-torch.expm1(-log)).sqrt().to(level.dtype),
            p=none,
            q=one,
            weight=one,
            c_in=one,
        )

    def training_levels(self, stream: np.random.Generator, num: int) -> Float[Tensor, " n"]:
        """Draw times evenly between 1 and 1e-5."""
        return torch.from_numpy(1 + stream.random(num) * (TRAINING_END - 1)).float()

    def scoring_levels(self, num: int, keep: float, stream: np.random.Generator | None = None) -> Float[Tensor, " n"]:
        """Return times of an even grid from 1 to 1e-3, or random ones between them."""
        count = int(round(num / keep, 9))
        where = np.arange(count) / max(count - 1, 1) if stream is None else np.sort(stream.random(count))
        return torch.from_numpy(1 + where * (SAMPLING_END - 1))[:num].float()

    def sampling_levels(self, steps: int) -> Float[Tensor, " m"]:
        """Return an even grid of times in float64."""
        return torch.linspace(1, SAMPLING_END, steps, dtype=torch.float64)

    def flow(self, time: float) -> tuple[float, float]:
        """Return the slope of the probability flow, dx/dt = a x + b D, at a time above 0.

        a = beta alpha^2 / (2 s^2) and b = -beta alpha / (2 s^2), where beta = dB/dt.
        """
        at = self.at(torch.tensor([time], dtype=torch.float64))
        alpha, s = at.alpha.item(), at.s.item()
        half_beta = (BETA_D * time + BETA_MIN) / 2
        return half_beta * (alpha / s) ** 2, -half_beta * alpha / s**2
