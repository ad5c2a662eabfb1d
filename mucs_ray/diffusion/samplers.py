"""Which sampler draws images on which process.

    heun        on every process
    ddim        on variance-preserving ones; the same image each time
    ancestral   on variance-preserving ones; new noise in each step
    euler       on the continuous one, as the official code does

Axes: b images, *shape of an image.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from mucs_ray.diffusion.condition import NO_CONDITION, Condition, moved
from mucs_ray.diffusion.generation import Levels, ancestral, ddim, euler, towards
from mucs_ray.diffusion.model import Denoiser, DiffusionModel, guided
from mucs_ray.diffusion.noise import generator, normal
from mucs_ray.diffusion.process import Process
from mucs_ray.diffusion.sampler import sample
from mucs_ray.diffusion.vp import VP
from mucs_ray.diffusion.vp_continuous import ContinuousVP
from mucs_ray.errors import InputError

Sampler = Literal["heun", "ddim", "ancestral", "euler"]
MOST_SIGMA = 1000.0
"""From a higher noise, such as the 20 000 of a cosine table, ddim keeps D within the range of z: there it is the error
of the network times sigma (spec/backbones 2.6).
"""


def sampler_for(process: Process, asked: Literal["auto"] | Sampler) -> Sampler:
    """Return the sampler that is meant. InputError if it does not go with the process."""
    known: dict[str, tuple[Sampler, ...]] = {
        "VP": ("ddim", "ancestral", "heun"),
        "ContinuousVP": ("euler", "ddim", "ancestral", "heun"),
    }
    usable = known.get("VP" if isinstance(process, VP) else type(process).__name__, ("heun",))
    if asked == "auto":
        return usable[0]
    if asked not in usable:
        raise InputError(
            f"generate.sampler is {asked}, but for the process of this model ({type(process).__name__}) there is only"
            f" {', '.join(usable)}"
        )
    return asked


def evaluations(process: Process, asked: Literal["auto"] | Sampler, steps: int) -> int:
    """Return how often the network is called for an image, without guidance."""
    return 2 * steps - 1 if sampler_for(process, asked) == "heun" else steps


@torch.no_grad()
def draw(
    model: DiffusionModel,
    unit_noise: Float[Tensor, "b *shape"],
    condition: Condition = NO_CONDITION,
    *,
    sampler: Literal["auto"] | Sampler = "auto",
    steps: int,
    guidance: float = 1.0,
    compat: bool = False,
    clip: Literal["auto", "on", "off"] = "auto",
    step_noise: Callable[[int], Float[Tensor, "b *shape"]],
) -> Float[Tensor, "b *shape"]:
    """Draw images from unit noise.

    `step_noise` returns the noise of a step by its number, for the ancestral sampler. `compat` leaves out the last step
    of euler, as the official code does. `clip` keeps D within the range of z in every step; "auto": for ancestral, and
    for ddim from a very high noise.
    """
    process, denoiser = model.process, guided(model, guidance)
    chosen = sampler_for(process, sampler)
    if clip == "on" and chosen in ("heun", "euler"):
        denoiser = within(denoiser, model.limit)
    if chosen == "heun":
        spaced = replace(process, spacing="rho") if isinstance(process, VP) else process
        return sample(spaced, denoiser, unit_noise, condition, num_steps=steps)
    levels = steps_of(process, steps)
    match chosen:
        case "euler":
            assert isinstance(process, ContinuousVP)
            if compat:
                levels = levels[0][:-1], levels[1][:-1]
            states = euler(process, denoiser, unit_noise, condition, levels=levels)
        case "ddim":
            first = process.at(levels[0][:1].double())
            high = (first.s / first.alpha).item() > MOST_SIGMA
            limit = model.limit if clip == "on" or (clip == "auto" and high) else None
            states = ddim(process, denoiser, unit_noise, condition, levels=levels, clip=limit)
        case "ancestral":
            limit = None if clip == "off" else model.limit
            states = ancestral(
                process, denoiser, unit_noise, condition, levels=levels, step_noise=step_noise, clip=limit
            )
    *_, last = states
    return last


class GenerationSettings(Protocol):
    """What says how images are generated; `mucs_ray.config.recipe.GenerateConfig` does."""

    @property
    def sampler(self) -> Literal["auto"] | Sampler:
        """Return the sampler's name."""
        ...

    @property
    def steps(self) -> int:
        """Return the number of steps."""
        ...

    @property
    def guidance(self) -> float:
        """Return the weight of the condition."""
        ...

    @property
    def compat(self) -> bool:
        """Return whether euler's last step is left out."""
        ...

    @property
    def clip(self) -> Literal["auto", "on", "off"]:
        """Return whether D is kept within the range of z."""
        ...


def draw_named(
    model: DiffusionModel, condition: Condition, names: Sequence[int], settings: GenerationSettings, seed: int
) -> Float[Tensor, "b *shape"]:
    """Draw images from their conditions, on the model's device, each from the noise that its idx names (spec 6)."""
    device = next(model.parameters()).device
    noise = torch.cat([normal(generator(seed, f"generate/idx={idx}"), 1, *model.shape) for idx in names]).to(device)

    def step_noise(step: int) -> Tensor:
        streams = [generator(seed, f"generate/idx={idx}/step={step}") for idx in names]
        return torch.cat([normal(stream, 1, *model.shape) for stream in streams]).to(device)

    return draw(
        model,
        noise,
        moved(condition, device),
        sampler=settings.sampler,
        steps=settings.steps,
        guidance=settings.guidance,
        compat=settings.compat,
        clip=settings.clip,
        step_noise=step_noise,
    )


def within(denoiser: Denoiser, limit: float | None) -> Denoiser:
    """Keep the denoised images within the range of z, if it has one."""

    def clamped(noisy: Tensor, level: Tensor, condition: Condition = NO_CONDITION) -> Tensor:
        denoised = denoiser(noisy, level, condition)
        return denoised if limit is None else denoised.clamp(-limit, limit)

    return clamped


def steps_of(process: Process, steps: int) -> Levels:
    """Return the level of each step, and the one to which it leads."""
    levels = process.sampling_levels(steps)
    return (levels, process.following(levels)) if isinstance(process, VP) else towards(levels, 0.0)
