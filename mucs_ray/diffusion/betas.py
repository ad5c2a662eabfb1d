"""The noise that each step of a discrete diffusion adds: tables of beta by the names in scheduler_config.json.

A model was trained with fp32 tables and must be scored with the same numbers. They are computed here in fp32, in the
trainers' order of operations; further computations with them are in float64.

Axes: t steps, 0 the least noisy.
"""

import math
from collections.abc import Callable
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from mucs_ray.diffusion.vp_config import Betas

MOST_BETA = 0.999


@cache
def betas(of: Betas) -> Float[Tensor, " t"]:
    """Return the table in fp32."""
    table = _stretched(_unstretched(of)) if of.zero_snr else _unstretched(of)
    return table


@cache
def alpha_bar(of: Betas) -> Float[Tensor, " t"]:
    """Return the share of the image's variance that is left, the cumulative product of 1 - beta, in fp32."""
    return torch.cumprod(1 - betas(of), dim=0)


def _unstretched(of: Betas) -> Float[Tensor, " t"]:
    match of.schedule:
        case "linear":
            return torch.linspace(of.first, of.last, of.steps, dtype=torch.float32)
        case "scaled_linear":
            return torch.linspace(of.first**0.5, of.last**0.5, of.steps, dtype=torch.float32) ** 2
        case "sigmoid":
            rise = torch.sigmoid(torch.linspace(-6, 6, of.steps, dtype=torch.float32))
            return rise * (of.last - of.first) + of.first
        case "squaredcos_cap_v2":
            return _from_alpha_bar(lambda u: math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2, of.steps)
        case "laplace":
            return _from_alpha_bar(_laplace, of.steps)
        case "trained":
            return torch.tensor(of.trained, dtype=torch.float32)


def _from_alpha_bar(left: Callable[[float], float], steps: int) -> Float[Tensor, " t"]:
    """Return betas that leave `left(u)` of the image's variance at u in [0, 1], none above 0.999."""
    shares = [left((step + 1) / steps) / left(step / steps) for step in range(steps)]
    return torch.tensor([min(1 - share, MOST_BETA) for share in shares], dtype=torch.float32)


def _laplace(u: float) -> float:
    """Return the share that is left when the log of the signal-to-noise ratio is Laplace distributed."""
    from_the_middle = 0.5 - u
    log_snr = -0.5 * math.copysign(1, from_the_middle) * math.log(1 - 2 * abs(from_the_middle) + 1e-6)
    snr = math.exp(log_snr)
    return math.sqrt(snr / (1 + snr))


def _stretched(table: Float[Tensor, " t"]) -> Float[Tensor, " t"]:
    """Shift and scale sqrt(alpha_bar) so that it ends in an exact 0 and starts where it did."""
    root = torch.cumprod(1 - table, dim=0).sqrt()
    stretched = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    left = stretched**2
    return 1 - torch.cat([left[:1], left[1:] / left[:-1]])
