"""From unit noise to an image, step by step; Heun's method is in sampler.py.

    D the clean image expected, E = (x - alpha D) / s the noise expected
    ddim        x' = alpha' D + s' E                        for every process; the same image each time
    ancestral   x' ~ N(mean, variance) of x' given x and D  for every process; new noise in each step
    euler       x' = x + (t' - t) dx/dt                     along the flow of the continuous VP process

Primed is the next level. Coefficients are numbers in Python, so that no step waits for a device.
Axes: b images, m levels, *shape of an image.
"""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from mucs_ray.diffusion.condition import NO_CONDITION, Condition
from mucs_ray.diffusion.model import Denoiser
from mucs_ray.diffusion.process import Process
from mucs_ray.diffusion.vp_continuous import ContinuousVP

Levels = tuple[Float[Tensor, " m"], Float[Tensor, " m"]]
"""The level of each step, and the level to which it leads."""
Mixing = tuple[float, float]
"""The numbers alpha and s of a level."""


def towards(levels: Float[Tensor, " m"], end: float) -> Levels:
    """Pair each level with the next one of the list, and the last with `end`, the process's level of no noise."""
    return levels, torch.cat([levels[1:], levels.new_full((1,), end)])


@torch.no_grad()
def ddim(
    process: Process,
    denoiser: Denoiser,
    unit_noise: Float[Tensor, "b *shape"],
    condition: Condition = NO_CONDITION,
    *,
    levels: Levels,
    clip: float | None = None,
) -> Iterator[Float[Tensor, "b *shape"]]:
    """Yield the state after each step; the first starts from unit noise as it is.

    `clip` limits D to +-clip, which a start at a very high noise needs; E is that of the unclipped D.
    """
    x = unit_noise
    for level, (alpha, s), (next_alpha, next_s) in _steps(process, levels):
        denoised = denoiser(x, _for_all(level, x), condition)
        noise = (x - alpha * denoised) / s
        x = next_alpha * _clipped(denoised, clip) + next_s * noise
        yield x


@torch.no_grad()
def ancestral(
    process: Process,
    denoiser: Denoiser,
    unit_noise: Float[Tensor, "b *shape"],
    condition: Condition = NO_CONDITION,
    *,
    levels: Levels,
    step_noise: Callable[[int], Float[Tensor, "b *shape"]],
    clip: float | None = None,
) -> Iterator[Float[Tensor, "b *shape"]]:
    """Yield the state after each step; `step_noise` returns the noise of a step by its number, starting at 0."""
    x = unit_noise
    for step, (level, (alpha, s), (next_alpha, next_s)) in enumerate(_steps(process, levels)):
        denoised = _clipped(denoiser(x, _for_all(level, x), condition), clip)
        alpha_ratio = alpha / next_alpha
        added = s**2 - (alpha_ratio * next_s) ** 2
        x = (alpha_ratio * next_s**2 * x + next_alpha * added * denoised) / s**2
        if next_s:
            x = x + added**0.5 * next_s / s * step_noise(step)
        yield x


@torch.no_grad()
def euler(
    process: ContinuousVP,
    denoiser: Denoiser,
    unit_noise: Float[Tensor, "b *shape"],
    condition: Condition = NO_CONDITION,
    *,
    levels: Levels,
) -> Iterator[Float[Tensor, "b *shape"]]:
    """Yield the state after each step. The official loop omits the step to t = 0 and leaves some
    noise in its images.
    """
    x = unit_noise * process.at(levels[0][:1].double()).s.item()
    for start, end in zip(levels[0].tolist(), levels[1].tolist(), strict=True):
        of_x, of_denoised = process.flow(start)
        x = x + (end - start) * (of_x * x + of_denoised * denoiser(x, _for_all(start, x), condition))
        yield x


def _steps(process: Process, levels: Levels) -> Iterator[tuple[float, Mixing, Mixing]]:
    mixings, next_mixings = (_mixings(process, side) for side in levels)
    return zip(levels[0].tolist(), mixings, next_mixings, strict=True)


def _mixings(process: Process, levels: Float[Tensor, " m"]) -> list[Mixing]:
    at = process.at(levels.double().cpu())
    return list(zip(at.alpha.tolist(), at.s.tolist(), strict=True))


def _for_all(level: float, x: Float[Tensor, "b *shape"]) -> Float[Tensor, " b"]:
    return torch.full((len(x),), level, dtype=x.dtype, device=x.device)


def _clipped(denoised: Float[Tensor, "b *shape"], clip: float | None) -> Float[Tensor, "b *shape"]:
    return denoised if clip is None else denoised.clamp(-clip, clip)
