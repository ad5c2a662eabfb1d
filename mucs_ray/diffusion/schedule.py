"""Noise levels: the EDM rho-schedule, the training distribution, and the grid that scoring uses (spec 3.1, 6, 7.3)."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

SIGMA_MIN, SIGMA_MAX, RHO = 0.002, 80.0, 7.0
LOG_SIGMA_MEAN, LOG_SIGMA_STD = -1.2, 1.2


def rho_schedule(
    num_levels: int, *, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX, rho: float = RHO
) -> Float[Tensor, " n"]:
    """Return sigma(u) = (max^(1/rho) + u (min^(1/rho) - max^(1/rho)))^rho on an even grid of u,
    descending, in float64.
    """
    return sigma_at(torch.linspace(0, 1, num_levels, dtype=torch.float64), sigma_min, sigma_max, rho)


def sigma_at(
    u: Float[Tensor, " n"], sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX, rho: float = RHO
) -> Float[Tensor, " n"]:
    """Return the schedule at positions u in [0, 1], from sigma_max down."""
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return (high + u * (low - high)) ** rho


def scoring_sigmas(num_noises: int, keep: float) -> Float[Tensor, " n"]:
    """Return the `num_noises` largest of floor(num_noises / keep) levels, in float32, descending (spec 7.3).

    With 100 and 0.7, these are the levels from 80 down to 0.3102 out of 142. `keep` is in (0, 1].
    """
    num_levels = int(round(num_noises / keep, 9))  # 14 / 0.56 is 24.999999999999996 in floats
    return rho_schedule(num_levels)[:num_noises].float()


def random_schedule_sigmas(stream: np.random.Generator, num: int, keep: float) -> Float[Tensor, " n"]:
    """Return the `num` largest levels at floor(num / keep) random positions of the schedule (spec 8).

    They are in float32, descending.
    """
    num_levels = int(round(num / keep, 9))
    u = torch.from_numpy(np.sort(stream.random(num_levels)))
    return sigma_at(u)[:num].float()


def sampling_sigmas(num_steps: int) -> Float[Tensor, " n_plus_1"]:
    """Return the levels of the sampler, ending in an exact 0, in float64 (spec 6)."""
    return torch.cat([rho_schedule(num_steps), torch.zeros(1, dtype=torch.float64)])


def training_sigmas(stream: np.random.Generator, num: int) -> Float[Tensor, " n"]:
    """Draw ln sigma ~ N(-1.2, 1.2^2) (spec 3.1)."""
    log_sigma = LOG_SIGMA_MEAN + LOG_SIGMA_STD * stream.standard_normal(num)
    return torch.from_numpy(np.exp(log_sigma).astype(np.float32))
