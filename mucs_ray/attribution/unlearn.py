"""Unlearning one generated item: descent on the training set, bounded ascent on the item (spec 7.1, 7.2).

Axes: b draws, c h w image, d condition.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mucs_ray.attribution.base import Item
from mucs_ray.attribution.config import UnlearnConfig
from mucs_ray.diffusion.batch import Batch
from mucs_ray.diffusion.denoiser import EDMDenoiser
from mucs_ray.diffusion.loss import denoising_loss
from mucs_ray.diffusion.noise import generator, normal
from mucs_ray.diffusion.schedule import training_sigmas
from mucs_ray.errors import RunFailed
from mucs_ray.models.dit import unlearned_names
from mucs_ray.training.ema import frozen_copy

Outcome = Literal["reached", "bound hit"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unlearned:
    """F2, as the tensors in which it differs from F1, and how it got there."""

    tensors: dict[str, Tensor]
    """By their names in the network."""
    outcome: Outcome
    updates: int
    item_loss: tuple[float, ...]
    """Clamped mean loss of the item before each update, and at the end."""
    train_loss: tuple[float, ...]
    """Mean loss of the training batch at the same moments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """The two losses before an update, and whether the item counts as unlearned."""

    item_loss: Float[Tensor, ""]
    train_loss: Float[Tensor, ""]
    reached: bool


def draw_losses(
    denoiser: EDMDenoiser,
    image: Float[Tensor, "b c h w"],
    condition: Float[Tensor, "b d"] | None,
    *,
    seed: int,
    name: str,
) -> Float[Tensor, " b"]:
    """Losses at noise levels and noise of the training distribution, drawn from a name."""
    stream = generator(seed, name)
    sigma, noise = training_sigmas(stream, len(image)), normal(stream, *image.shape)
    return denoising_loss(denoiser, image, noise.to(image.device), sigma.to(image.device), condition)


@torch.no_grad()
def null_loss(untrained: EDMDenoiser, batches: Callable[[int], Batch], *, num_batches: int, seed: int) -> float:
    """Mean loss of an untrained network over batches of images: the most an item can be unlearned (spec 7.1)."""
    untrained = frozen_copy(untrained)
    means = []
    for step in range(num_batches):
        batch = batches(step)
        losses = draw_losses(untrained, batch.image, batch.condition, seed=seed, name=f"null/step={step}")
        means.append(losses.mean().item())
    return sum(means) / len(means)


def unlearn(
    denoiser: EDMDenoiser,
    item: Item,
    batches: Callable[[int], Batch],
    *,
    bound: float,
    config: UnlearnConfig,
    learning_rate: float,
    seed: int,
    on_update: Callable[[int, float], None] = lambda step, loss: None,
) -> Unlearned:
    """F2 for one item; `denoiser` (F1) is copied. `bound` is the null loss, `batches(step)` training images.

    The test comes before the update, on the current batch: an item whose loss is high enough already is not touched.
    RunFailed if a loss is not finite.
    """
    changed = frozen_copy(denoiser)  # eval mode on purpose: no dropout, no condition drop
    parameters = dict(changed.network.named_parameters())
    names = unlearned_names(changed.network)
    trainable = [parameters[name].requires_grad_(True) for name in names]
    optimizer = torch.optim.AdamW(trainable, lr=learning_rate, weight_decay=config.weight_decay, fused=True)
    item_loss: list[float] = []
    train_loss: list[float] = []
    reached = False
    for moment in measure(changed, item, batches, bound=bound, config=config, seed=seed):
        item_loss.append(moment.item_loss.item())
        train_loss.append(moment.train_loss.item())
        on_update(len(item_loss) - 1, item_loss[-1])
        reached = moment.reached
        if reached or len(item_loss) > config.max_updates:
            break
        optimizer.zero_grad(set_to_none=True)
        (moment.train_loss - config.ascent_weight * moment.item_loss).backward()
        optimizer.step()
    return Unlearned(
        tensors={name: parameters[name].detach() for name in names},
        outcome="reached" if reached else "bound hit",
        updates=len(item_loss) - 1,
        item_loss=tuple(item_loss),
        train_loss=tuple(train_loss),
    )


def measure(
    changed: EDMDenoiser,
    item: Item,
    batches: Callable[[int], Batch],
    *,
    bound: float,
    config: UnlearnConfig,
    seed: int,
) -> Iterator[Moment]:
    """The losses at step 0, 1, 2, ...: independent named draws for the training batch and for the item."""
    step = 0
    while True:
        name = f"unlearn/item={item.idx}/step={step}"
        batch = batches(step)
        image = item.image.to(batch.image.device).expand(len(batch), -1, -1, -1)
        condition = None if item.condition is None else item.condition.to(image.device).expand(len(batch), -1)
        train_loss = draw_losses(changed, batch.image, batch.condition, seed=seed, name=f"{name}/train").mean()
        item_losses = draw_losses(changed, image, condition, seed=seed, name=f"{name}/item")
        item_loss = item_losses.clamp(max=bound).mean()
        if not (train_loss.isfinite() and item_losses.isfinite().all()):  # before the clamp, which hides an infinity
            raise RunFailed(f"unlearning item {item.number} (idx={item.idx}): the loss is not finite at update {step}")
        reached = item_loss.item() >= (1 - config.tolerance) * bound
        yield Moment(item_loss=item_loss, train_loss=train_loss, reached=reached)
        step += 1
