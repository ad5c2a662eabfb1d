"""Deterministic Heun sampling of an EDM denoiser (spec 6)."""

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from mucs_ray.diffusion.condition import NO_CONDITION, Condition
from mucs_ray.diffusion.denoiser import Denoiser
from mucs_ray.diffusion.schedule import sampling_sigmas


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    unit_noise: Float[Tensor, "b *shape"],
    condition: Condition = NO_CONDITION,
    *,
    num_steps: int = 32,
) -> Float[Tensor, "b *shape"]:
    """Unclamped images from unit noise: 2 num_steps - 1 network evaluations, fp32."""
    sigmas = sampling_sigmas(num_steps).float().to(unit_noise.device)
    x = sigmas[0] * unit_noise

    def slope(x: Tensor, sigma: Tensor) -> Tensor:
        return (x - denoiser(x, sigma.expand(len(x)), condition)) / sigma

    for sigma, next_sigma in pairwise(sigmas):
        here = slope(x, sigma)
        euler = x + (next_sigma - sigma) * here
        last = next_sigma == 0
        x = euler if last else x + (next_sigma - sigma) * (here + slope(euler, next_sigma)) / 2
    return x
