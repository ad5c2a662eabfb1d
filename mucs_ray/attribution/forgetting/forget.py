"""A group of training images is unlearned: the other images are kept, those of the group are trained towards a target.

    loss = retain + lambda forget, over all parameters, by a fixed number of updates

Every random number of an update is drawn from the names guda/unlearn/group=G/step=S/retain, .../forget, .../dropout,
and of anchors from .../forget/anchor.
Axes: b images.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mucs_ray.attribution.finite import require_finite
from mucs_ray.attribution.forgetting.config import ANCHORED, GroupsConfig, Unlearner, learning_rate, rates
from mucs_ray.attribution.forgetting.losses import Help, check_help, draw, forget_losses, retained_losses
from mucs_ray.attribution.forgetting.redirect import redirected_losses
from mucs_ray.diffusion.batch import Batch
from mucs_ray.diffusion.model import DiffusionModel
from mucs_ray.diffusion.noise import generator, name_torch_stream
from mucs_ray.training.ema import frozen_copy

Batches = Callable[[int], Batch]
"""A function that returns the images of an update."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forgotten:
    """The model without the group, and the trace of how it was reached."""

    tensors: dict[str, Tensor]
    """All tensors of the network by name, as a file of weights has them."""
    outcome: Literal["fixed", "bound hit"]
    """All updates were made; or, by ascent, all images of the last update were at the bound, so that it was reached."""
    updates: int
    retain_loss: tuple[float, ...]
    """The loss on other images before each update."""
    forget_loss: tuple[float, ...]
    """The distance of the group's images from their target before each update; for ascent, their bounded loss."""
    group_loss: tuple[float, ...]
    """The training loss on the group's images before each update; empty for retain-only, which does not see them."""
    moved: float
    """How far all parameters went, relative to their norm."""


def rows_of_step(name: str, num_images: int, batch_size: int, seed: int) -> Int64[np.ndarray, " b"]:
    """Return the rows of an update from its name: none twice, unless there are fewer images than a batch takes."""
    stream = generator(seed, f"{name}/rows")
    orders = [stream.permutation(num_images) for _ in range(-(-batch_size // num_images))]
    return np.concatenate(orders)[:batch_size]


def step_name(group: int, step: int, part: Literal["retain", "forget", "dropout"]) -> str:
    """Return the name of the random streams of an update."""
    return f"guda/unlearn/group={group}/step={step}/{part}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLosses:
    """The mean losses of an update; those on the group are 0 for an unlearner that does not see it."""

    retain: Float[Tensor, ""]
    forget: Float[Tensor, ""]
    group: Float[Tensor, ""]
    at_bound: bool = False


def forget_group(
    model: DiffusionModel,
    group: int,
    unlearner: Unlearner,
    *,
    retain: Batches,
    forget: Batches,
    config: GroupsConfig,
    seed: int,
    helped: Help | None = None,
    on_update: Callable[[int, float], None] = lambda step, loss: None,
) -> Forgotten:
    """Return the model without one group; `model` is copied, and the batches are other images and images of the group.

    RunFailed, naming the image and the update, if a loss is not finite.
    """
    helped, own = helped or Help(), rates(config, unlearner)
    check_help(unlearner, helped, model.process)
    teacher = frozen_copy(model) if config.retain == "distil" or unlearner in ANCHORED else None
    changed = copy.deepcopy(model).requires_grad_(True).train(config.dropout)
    parameters = list(changed.network.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=own.learning_rate, weight_decay=own.weight_decay)
    sign = -1 if unlearner == "ascent" else 1
    trace: list[tuple[float, float, float]] = []
    at_bound = False
    for step in range(config.updates):
        for settings in optimizer.param_groups:
            settings["lr"] = learning_rate(own, step, config.updates)
        name_torch_stream(seed, step_name(group, step, "dropout"))
        losses = losses_of_step(
            changed, teacher, group, step, unlearner,
            retain=retain, forget=forget, config=config, seed=seed, helped=helped,
        )  # fmt: skip
        loss = losses.retain + sign * own.forget_weight * losses.forget
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if own.largest_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, own.largest_norm)
        optimizer.step()
        trace.append((losses.retain.item(), losses.forget.item(), losses.group.item()))
        at_bound = losses.at_bound
        on_update(step, loss.item())
    retain_trace, forget_trace, group_trace = zip(*trace, strict=True)
    sees_group = unlearner != "retain-only"
    return Forgotten(
        tensors={name: tensor.detach() for name, tensor in changed.network.state_dict().items()},
        outcome="bound hit" if at_bound else "fixed",
        updates=len(trace),
        retain_loss=retain_trace,
        forget_loss=forget_trace if sees_group else (),
        group_loss=group_trace if sees_group else (),
        moved=distance(model, changed),
    )


def losses_of_step(
    changed: DiffusionModel,
    teacher: DiffusionModel | None,
    group: int,
    step: int,
    unlearner: Unlearner,
    *,
    retain: Batches,
    forget: Batches,
    config: GroupsConfig,
    seed: int,
    helped: Help,
) -> StepLosses:
    """Return the losses before an update, on images and noise of its name."""
    process, told = changed.process, f"unlearning group {group}, update {step}: the loss of"
    kept = draw(process, retain(step), step_name(group, step, "retain"), config, seed, helped)
    retained = retained_losses(changed, kept, teacher)
    require_finite(retained, kept.batch.idx, f"{told} training image")
    if unlearner == "retain-only":
        return StepLosses(retain=retained.mean(), forget=retained.new_zeros(()), group=retained.new_zeros(()))
    name, lowest = step_name(group, step, "forget"), config.lowest_sigma if unlearner == "retrack" else None
    drawn = draw(process, forget(step), name, config, seed, helped, lowest_sigma=lowest)
    if unlearner in ANCHORED:
        assert teacher is not None
        losses = redirected_losses(changed, teacher, drawn, helped, generator(seed, f"{name}/anchor"))
    else:
        losses = forget_losses(changed, drawn, unlearner, config, seed, name, helped)
    require_finite(torch.stack([losses.target, losses.training], dim=1), drawn.batch.idx, f"{told} the group's image")
    return StepLosses(
        retain=retained.mean(), forget=losses.target.mean(), group=losses.training.mean(), at_bound=losses.at_bound
    )


@torch.no_grad()
def distance(model: DiffusionModel, changed: DiffusionModel) -> float:
    """Return how far the parameters of two models are apart, relative to the norm of the first."""
    first, second = (
        torch.cat([parameter.double().flatten() for parameter in each.network.parameters()])
        for each in (model, changed)
    )
    return ((second - first).norm() / first.norm()).item()
