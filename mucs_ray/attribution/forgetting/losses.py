"""The losses of an update that forgets a group: on other images, and on the group's images by each unlearner.

Axes: b images, k neighbours, *shape of an image.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from mucs_ray.attribution.forgetting.config import ANCHORED, GroupsConfig, Unlearner
from mucs_ray.attribution.forgetting.targets import (
    check_guide,
    esd_target,
    implied_noise,
    levels_from,
    retrack_target,
)
from mucs_ray.diffusion.batch import Batch
from mucs_ray.diffusion.condition import Condition
from mucs_ray.diffusion.model import DiffusionModel
from mucs_ray.diffusion.noise import generator, normal
from mucs_ray.diffusion.process import Process
from mucs_ray.diffusion.rows import per_row, row_means
from mucs_ray.errors import InputError

NeighboursOf = Callable[[Int64[Tensor, " b"]], Float[Tensor, "b k *shape"]]
"""A function that returns the neighbours of images of the group by their idx."""
Mirror = Callable[[Float[Tensor, "b *shape"]], Float[Tensor, "b *shape"]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchors:
    """What the full model sees in place of images of the group."""

    condition: Condition
    z: Float[Tensor, "b *shape"] | None = None
    """Images of other groups; None: the images themselves."""


AnchorsOf = Callable[[Int64[Tensor, " b"], np.random.Generator], Anchors]
"""A function that draws the anchors of images of the group, given their idx."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draws:
    """Images with the levels and the noise drawn for them."""

    batch: Batch
    noise: Float[Tensor, "b *shape"]
    level: Float[Tensor, " b"]
    mirrored: Bool[Tensor, " b"]
    """Which images are mirrored."""

    def noisy(self, process: Process) -> Float[Tensor, "b *shape"]:
        """Return the input of the network."""
        return process.noised(self.batch.z, self.noise, self.level)


@dataclass(frozen=True, slots=True, kw_only=True)
class Help:
    """What some of the unlearners need beside the images."""

    neighbours: NeighboursOf | None = None
    """retrack: the nearest images outside the group."""
    guide: DiffusionModel | None = None
    """esd: a frozen class-conditional model."""
    anchors: AnchorsOf | None = None
    """awss, uniform, style-removed, matched: what the full model sees in place of the group's images."""
    second_moment: float | None = None
    """ascent: the mean square of the images, for the bound; None: that of the process."""
    mirror: Mirror | None = None
    """A mirrored image, where images are pictures and models were trained with mirrored ones."""


def check_help(unlearner: Unlearner, helped: Help, process: Process) -> None:
    """Raise InputError if an unlearner lacks what it needs."""
    if unlearner == "esd":
        check_guide(helped.guide, process)
    if unlearner.startswith("retrack") and helped.neighbours is None:
        raise InputError(f"{unlearner} needs the neighbours of the group's images")
    if unlearner in ANCHORED and helped.anchors is None:
        raise InputError(f"{unlearner} needs anchors, which are what is seen in place of the group's images")


def draw(
    process: Process,
    batch: Batch,
    name: str,
    config: GroupsConfig,
    seed: int,
    helped: Help,
    *,
    lowest_sigma: float | None = None,
) -> Draws:
    """Return the images of an update with levels and noise, mirrored by chance; all of it from one name."""
    stream, num = generator(seed, name), len(batch)
    level = levels_from(process, stream, num, lowest_sigma) if lowest_sigma else process.training_levels(stream, num)
    noise, coins = normal(stream, *batch.z.shape), torch.from_numpy(stream.random(num) < 0.5)
    mirrored = coins.to(batch.z.device) & bool(helped.mirror and config.flip)
    z = by_chance(batch.z, mirrored, helped.mirror)
    mask = None if batch.mask is None else by_chance(batch.mask, mirrored, helped.mirror)
    seen = Batch(idx=batch.idx, z=z, condition=batch.condition, mask=mask)
    return Draws(batch=seen, noise=noise.to(z.device), level=level.to(z.device), mirrored=mirrored)


def by_chance(images: Float[Tensor, "b *shape"], mirrored: Tensor, mirror: Mirror | None) -> Float[Tensor, "b *shape"]:
    """Mirror the images that are marked."""
    return images if mirror is None else torch.where(per_row(mirrored, images), mirror(images), images)


def answer(model: DiffusionModel, drawn: Draws, noisy: Float[Tensor, "b *shape"]) -> Float[Tensor, "b *shape"]:
    """Return the network's raw output."""
    return model.raw(noisy, model.process.at(drawn.level), drawn.batch.condition)


def weighted(
    process: Process, drawn: Draws, raw: Float[Tensor, "b *shape"], target: Float[Tensor, "b *shape"]
) -> Float[Tensor, " b"]:
    """Return the loss with which the network was trained, for another target."""
    return process.at(drawn.level).weight * row_means((raw - target).square(), drawn.batch.mask)


def retained_losses(changed: DiffusionModel, drawn: Draws, teacher: DiffusionModel | None) -> Float[Tensor, " b"]:
    """Return the losses of other images: as in training, or as distances from the answers of the full model."""
    process = changed.process
    noisy = drawn.noisy(process)
    if teacher is None:
        target = process.target(drawn.batch.z, drawn.noise, drawn.level)
    else:
        with torch.no_grad():
            target = answer(teacher, drawn, noisy)
    return weighted(process, drawn, answer(changed, drawn, noisy), target)


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgetLosses:
    """The losses of the group's images in an update."""

    target: Float[Tensor, " b"]
    """The distances from the targets; for ascent, the training losses up to their bounds."""
    training: Float[Tensor, " b"]
    at_bound: bool = False


def forget_losses(
    changed: DiffusionModel,
    drawn: Draws,
    unlearner: Unlearner,
    config: GroupsConfig,
    seed: int,
    name: str,
    helped: Help,
) -> ForgetLosses:
    """Return the losses of the group's images by an unlearner."""
    process, batch = changed.process, drawn.batch
    noisy = drawn.noisy(process)
    raw = answer(changed, drawn, noisy)
    training = weighted(process, drawn, raw, process.target(batch.z, drawn.noise, drawn.level))
    if unlearner == "ascent":
        moment = process.second_moment if helped.second_moment is None else helped.second_moment
        bound = process.linear_bound(drawn.level, moment).to(training)
        at_bound = bool((training >= bound).all())
        return ForgetLosses(target=training.minimum(bound), training=training.detach(), at_bound=at_bound)
    target = noise_target(process, drawn, noisy, unlearner, config, seed, name, helped)
    error = (implied_noise(process, raw, noisy, drawn.level) - target).square()
    return ForgetLosses(target=row_means(error, batch.mask), training=training.detach())


def noise_target(
    process: Process,
    drawn: Draws,
    noisy: Float[Tensor, "b *shape"],
    unlearner: Unlearner,
    config: GroupsConfig,
    seed: int,
    name: str,
    helped: Help,
) -> Float[Tensor, "b *shape"]:
    """Return the noise that the network is to see in the group's images."""
    batch, noise = drawn.batch, drawn.noise
    match unlearner:
        case "zero":
            return torch.zeros_like(noise)
        case "noise":
            return normal(generator(seed, f"{name}/target"), *noise.shape).to(noise)
        case "esd":
            assert helped.guide is not None
            return esd_target(helped.guide, noisy, drawn.level, batch.condition, guidance=config.guidance)
        case "retrack" | "retrack-clipped":
            assert helped.neighbours is not None
            near = helped.neighbours(batch.idx).to(noise)
            near = by_chance(near.flatten(0, 1), drawn.mirrored.repeat_interleave(near.shape[1]), helped.mirror)
            near = near.view(len(batch), -1, *noise.shape[1:])
            cap = config.kl_cap if unlearner == "retrack-clipped" else None
            return retrack_target(process, batch.z, near, noise, drawn.level, kl_cap=cap)
        case _:
            raise ValueError(f"{unlearner} has no target")
