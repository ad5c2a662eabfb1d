"""This module unlearns one generated item: descent on the training set, bounded ascent on the item (spec 7.1, 7.2).

Axes: b draws, *shape of an image.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mucs_ray.attribution.cards.mucs import MUCSConfig
from mucs_ray.attribution.finite import require_finite
from mucs_ray.attribution.trajectory import Trajectory
from mucs_ray.diffusion.batch import Batch, Item
from mucs_ray.diffusion.condition import Condition, for_each, moved
from mucs_ray.diffusion.loss import denoising_loss
from mucs_ray.diffusion.model import DiffusionModel
from mucs_ray.diffusion.noise import generator, normal
from mucs_ray.diffusion.process import Process
from mucs_ray.diffusion.rows import copies
from mucs_ray.training.ema import frozen_copy

Outcome = Literal["reached", "bound hit", "fixed"]
"""How unlearning ended: the loss was high enough, it was not, or a fixed number of updates was made."""
Levels = Literal["training", "schedule"]
EXPECTED_UPDATES = 109
"""The updates that the paper reports for an item of COCO (spec 7.2)."""
COMMON = "unlearn"
"""The name of draws that all items have in common."""
WARM_GRADIENTS = 20
"""The gradients from which the moments of AdamW are made, where it does not start fresh."""
BESIDE = ":"
"""This is in the names of tensors that are beside those of an item's F2."""
UPDATES = f"number{BESIDE}updates"
"""The number of an item's updates, where a control needs it."""
MINUS = f"minus{BESIDE}"
"""The prefix of the tensors of a model that was changed the other way."""
LevelBound = Callable[[Float[Tensor, " n"]], Float[Tensor, " n"]]
"""How far a loss may rise at each level."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unlearned:
    """This is F2, as the tensors in which it differs from F1, and the trace of how it was reached."""

    tensors: dict[str, Tensor]
    """The changed tensors by their names in the network."""
    outcome: Outcome
    updates: int
    item_loss: tuple[float, ...]
    """The mean loss of the item before each update and at the end, clamped if the ascent is."""
    train_loss: tuple[float, ...]
    """The mean loss of the training batch, before each update and at the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossPair:
    """This holds the two losses before an update, and whether the item counts as unlearned."""

    item_loss: Float[Tensor, ""]
    train_loss: Float[Tensor, ""]
    told: float
    """The item's loss as a share of the bound at the levels of its draws, times the mean bound. The bound of a network
    that predicts noise differs so much from level to level that draws are compared with nothing but their own."""
    reached: bool


def draw_losses(
    denoiser: DiffusionModel,
    image: Float[Tensor, "b *shape"],
    condition: Condition,
    *,
    seed: int,
    name: str,
    sigmas: Levels = "training",
    mask: Float[Tensor, "b *shape"] | None = None,
    trajectory: Trajectory | None = None,
) -> Float[Tensor, " b"]:
    """Return losses at a noise level and noise for each row, drawn from a name.

    With a mask the loss is that of the part of an image that the mask leaves; with the trajectory of an image, some
    draws are from there.
    """
    stream = generator(seed, name)
    level, noise = noise_levels(denoiser.process, stream, len(image), sigmas), normal(stream, *image.shape)
    if trajectory is not None:
        level, noise = trajectory.replace(level, noise, stream)
    device = image.device
    return denoising_loss(denoiser.process, denoiser, image, noise.to(device), level.to(device), condition, mask)


def noise_levels(process: Process, stream: np.random.Generator, num: int, sigmas: Levels) -> Float[Tensor, " n"]:
    """Return levels of the training distribution, or at random positions of the whole schedule (U-C2, spec 8).

    The latter descend. That ties no level to an image: rows are one item, or training images in shuffled order.
    """
    return process.training_levels(stream, num) if sigmas == "training" else process.scoring_levels(num, 1.0, stream)


def item_losses(
    denoiser: DiffusionModel,
    item: Item,
    num: int,
    *,
    seed: int,
    name: str,
    sigmas: Levels = "training",
    trajectory: Trajectory | None = None,
) -> Float[Tensor, " n"]:
    """Return the losses of one item, with its condition, at `num` named draws."""
    device = next(denoiser.parameters()).device
    image = copies(item.z.to(device), num)
    condition = for_each(moved(item.condition, device), num)
    return draw_losses(denoiser, image, condition, seed=seed, name=name, sigmas=sigmas, trajectory=trajectory)


def drawn_levels(
    denoiser: DiffusionModel, num: int, *, seed: int, name: str, sigmas: Levels, trajectory: Trajectory | None
) -> Float[Tensor, " n"]:
    """Return once more, by their name, the levels of the draws of `item_losses`."""
    stream = generator(seed, name)
    level = noise_levels(denoiser.process, stream, num, sigmas)
    if trajectory is None:
        return level
    return trajectory.replace(level, normal(stream, num, *denoiser.shape), stream)[0]


def require_finite_loss(losses: Float[Tensor, "..."], item: Item, step: int) -> None:
    """Raise RunFailed, naming the item and the update, if a loss is not finite."""
    what = f"unlearning item {item.number}, update {step}: the loss of the generated image"
    require_finite(losses.reshape(1, -1), [item.idx], what)


def draws_name(item: Item, config: MUCSConfig) -> str:
    """Return the name of the draws of an item's updates."""
    return COMMON if config.draws == "common" else f"unlearn/item={item.idx}"


def model_tensors(tensors: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """Return the tensors of F2, or those of the model with this prefix, by their names in the network."""
    rest = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return {name: tensor for name, tensor in rest.items() if BESIDE not in name}


def changed_names(model: DiffusionModel, config: MUCSConfig) -> list[str]:
    """Return the names of the tensors that unlearning changes."""
    if config.parameters == "weights":
        return [name for name, _ in model.network.named_parameters() if not name.endswith("bias")]
    return model.names("blocks" if config.parameters == "block" else "mlp")


def tensor_bytes(model: DiffusionModel, names: Iterable[str]) -> int:
    """Return the size of a network's tensors of these names, in bytes of fp32."""
    return sum(4 * model.network.get_parameter(name).numel() for name in names)


@torch.no_grad()
def null_loss(untrained: DiffusionModel, batches: Callable[[int], Batch], *, num_batches: int, seed: int) -> float:
    """Return the mean loss of an untrained network over batches of images, the most an item can be unlearned (spec
    7.1).
    """
    untrained = frozen_copy(untrained)
    means = []
    for step in range(num_batches):
        batch = batches(step)
        losses = draw_losses(untrained, batch.z, batch.condition, seed=seed, name=f"null/step={step}")
        means.append(losses.mean().item())
    return sum(means) / len(means)


def unlearn(
    denoiser: DiffusionModel,
    item: Item,
    batches: Callable[[int], Batch],
    *,
    bound: float,
    level_bound: LevelBound | None = None,
    trajectory: Trajectory | None = None,
    config: MUCSConfig,
    learning_rate: float,
    seed: int,
    on_update: Callable[[int, float], None] = lambda step, loss: None,
) -> Unlearned:
    """Return F2 for one item; `denoiser` (F1) is copied, and `batches(step)` are training images.

    `bound` is how far the item's loss may rise: in every draw, or, with a `level_bound`, on average, each draw being
    bound at its own level (spec/models 2.5).

    The test comes before the update, on the current batch: an item whose loss is high enough already is not touched.
    With `fixed_updates` there is no test. It raises RunFailed, naming the item, if a loss is not finite.
    """
    changed = frozen_copy(denoiser)  # eval mode on purpose: no dropout, no condition drop
    parameters = dict(changed.network.named_parameters())
    names = changed_names(changed, config)
    trainable = [parameters[name].requires_grad_(True) for name in names]
    optimizer = torch.optim.AdamW(trainable, lr=learning_rate, weight_decay=config.weight_decay, fused=True)
    item_loss: list[float] = []
    train_loss: list[float] = []
    reached = False
    bounds = {"bound": bound, "level_bound": level_bound}
    losses_at = partial(measure, changed, item, batches, **bounds, trajectory=trajectory, config=config, seed=seed)
    if config.moments == "warm":
        warm_up(optimizer, islice(losses_at(stream="warm"), WARM_GRADIENTS), config)
    for losses in losses_at():
        item_loss.append(losses.told)
        train_loss.append(losses.train_loss.item())
        on_update(len(item_loss) - 1, item_loss[-1])
        reached = losses.reached and not config.fixed_updates
        if reached or len(item_loss) > (config.fixed_updates or config.max_updates):
            break
        make_update(optimizer, losses, config)
    return Unlearned(
        tensors={name: parameters[name].detach() for name in names},
        outcome="fixed" if config.fixed_updates else "reached" if reached else "bound hit",
        updates=len(item_loss) - 1,
        item_loss=tuple(item_loss),
        train_loss=tuple(train_loss),
    )


def make_update(optimizer: torch.optim.Optimizer, losses: LossPair, config: MUCSConfig) -> None:
    """Make one update: descent on the training batch, ascent on the item."""
    optimizer.zero_grad(set_to_none=True)
    (losses.train_loss - config.ascent_weight * losses.item_loss).backward()
    optimizer.step()


def warm_up(optimizer: torch.optim.Optimizer, pairs: Iterable[LossPair], config: MUCSConfig) -> None:
    """Fill the optimizer's moments with gradients, without moving a weight."""
    (group,) = optimizer.param_groups
    rate, group["lr"] = group["lr"], 0.0
    for losses in pairs:
        make_update(optimizer, losses, config)
    group["lr"] = rate


def measure(
    changed: DiffusionModel,
    item: Item,
    batches: Callable[[int], Batch],
    *,
    bound: float,
    level_bound: LevelBound | None = None,
    trajectory: Trajectory | None = None,
    config: MUCSConfig,
    seed: int,
    stream: str = "step",
) -> Iterator[LossPair]:
    """Yield the losses at step 0, 1, 2, ..., with independent named draws for the training batch and for the item."""
    for step in count():
        name = f"{draws_name(item, config)}/{stream}={step}"
        batch = batches(step)
        train_loss = draw_losses(
            changed, batch.z, batch.condition, seed=seed, name=f"{name}/train", sigmas=config.sigmas, mask=batch.mask
        ).mean()
        at_draws = {"seed": seed, "name": f"{name}/item", "sigmas": config.sigmas, "trajectory": trajectory}
        losses = item_losses(changed, item, len(batch), **at_draws)
        # before the clamp, which hides an infinity
        require_finite_loss(torch.cat([train_loss[None], losses]), item, step)
        bound_of_draws = bound
        if config.clamp and level_bound is None:
            losses = losses.clamp(max=bound)
        elif config.clamp and level_bound is not None:
            level = drawn_levels(changed, len(losses), **at_draws)
            bounds = level_bound(level).to(losses)
            losses, bound_of_draws = losses.minimum(bounds), bounds.mean().item()
        item_loss = losses.mean()
        told = item_loss.item() * (bound / bound_of_draws)
        reached = told >= (1 - config.tolerance) * bound
        yield LossPair(item_loss=item_loss, train_loss=train_loss, told=told, reached=reached)
