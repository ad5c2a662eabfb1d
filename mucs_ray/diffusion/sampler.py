"""Deterministic Heun sampling (spec 6), for every process: x / alpha as a function of sigma = s / alpha.

Axes: b images, *shape of an image.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from mucs_ray.diffusion.condition import NO_CONDITION, Condition
from mucs_ray.diffusion.model import Denoiser
from mucs_ray.diffusion.process import Process


@torch.no_grad()
def sample(
    process: Process,
    denoiser: Denoiser,
    unit_noise: Float[Tensor, "b *shape"],
    condition: Condition = NO_CONDITION,
    *,
    num_steps: int = 32,
) -> Float[Tensor, "b *shape"]:
    """Sample unclamped images from unit noise with at most 2 num_steps - 1 network evaluations, in fp32."""
    levels = process.sampling_levels(num_steps).float().to(unit_noise.device)
    at = process.at(levels)
    sigmas = at.s / at.alpha
    x = sigmas[0] * unit_noise

    def slope(x: Tensor, step: int) -> Tensor:
        return (x - denoiser(at.alpha[step] * x, levels[step].expand(len(x)), condition)) / sigmas[step]

    last = len(levels) - 1  # a table has no more levels than steps
    for step in range(last):
        stride = sigmas[step + 1] - sigmas[step]
        here = slope(x, step)
        x = x + stride * (here + slope(x + stride * here, step + 1)) / 2
    return x - sigmas[-1] * slope(x, last)
