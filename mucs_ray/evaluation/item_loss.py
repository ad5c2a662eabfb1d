"""The loss of a picture under a model, by which pictures are compared that cannot be made again (spec/models 5).

The noises have a name and are drawn at the levels of training; they are the same for every model and every picture.
Axes: q pictures, n noises, *shape of a picture.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mucs_ray.attribution.skew import epsilon_at, noise_losses, normalized_skew
from mucs_ray.diffusion.batch import Batch, Item
from mucs_ray.diffusion.condition import stacked
from mucs_ray.diffusion.model import DiffusionModel
from mucs_ray.diffusion.noise import NoiseSet, generator

NOISES_PER_FORWARD = 50


class LossChanges(NamedTuple):
    """How a retraining changed the loss of each picture."""

    before: Float[Tensor, " q"]
    """The mean loss under the model that was trained on all images."""
    after: Float[Tensor, " q"]
    """The mean loss under the model that was trained without some."""
    skew: Float[Tensor, " q"]
    """The mean of (after - before) / (after + before + epsilon) over the noises, in (-1, 1)."""


def evaluation_noises(model: DiffusionModel, num: int, seed: int) -> NoiseSet:
    """Return the noises on which pictures are compared."""
    levels = model.process.training_levels(generator(seed, "evaluate/levels"), num)
    return NoiseSet.draw(seed, "evaluate/noise", levels, model.shape)


def as_batch(items: Sequence[Item]) -> Batch:
    """Return items as a batch."""
    return Batch(
        idx=torch.tensor([item.idx for item in items]),
        z=torch.stack([item.z for item in items]),
        condition=stacked([item.condition for item in items]),
    )


def item_losses(model: DiffusionModel, items: Sequence[Item], noises: NoiseSet) -> Float[Tensor, "q n"]:
    """Return the loss of each picture, with its condition, at each noise, on the CPU."""
    return batch_losses(model, as_batch(items), noises)


def batch_losses(model: DiffusionModel, batch: Batch, noises: NoiseSet) -> Float[Tensor, "q n"]:
    """Return the loss of each picture of a batch at each noise, on the CPU.

    A forward holds a single picture, so that a loss does not depend, to the last bit, on the other pictures.
    """
    device = next(model.parameters()).device
    batch = batch.to(device)
    cuts = range(0, len(noises.level), NOISES_PER_FORWARD)
    parts = [noise_losses(model, batch, noises[slice(at, at + NOISES_PER_FORWARD)].to(device)) for at in cuts]
    return torch.cat(parts, dim=1).cpu()


def loss_changes(
    model: DiffusionModel, before: Float[Tensor, "q n"], after: Float[Tensor, "q n"], noises: NoiseSet, epsilon: float
) -> LossChanges:
    """Return the means of the losses and of their skew; `epsilon` is relative to the bound at each level."""
    at_levels = epsilon_at(model.process, noises.level, epsilon)
    return LossChanges(before.mean(dim=1), after.mean(dim=1), normalized_skew(before, after, epsilon=at_levels))
