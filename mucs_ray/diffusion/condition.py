"""The condition of a sample: tensors by name, such as a class vector, or tokens and a pooled vector.

Each tensor has a row for each image of a batch; the condition of one image has no such axis. A model knows the names
that it reads and leaves the others alone; the empty mapping is the condition of an unconditional model.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from mucs_ray.diffusion.rows import copies

Condition = Mapping[str, Tensor]
NO_CONDITION: Condition = MappingProxyType({})
LOSS_INPUTS = ("z", "noise", "level", "stem")
"""The names of the other inputs of a loss, which no tensor of a condition may have."""


def mapped(condition: Condition, change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """Apply `change` to every tensor and keep the names."""
    return {name: change(tensor) for name, tensor in condition.items()}


def moved(condition: Condition, device: torch.device | str) -> dict[str, Tensor]:
    """Move the condition to another device."""
    return mapped(condition, lambda tensor: tensor.to(device))


def for_each(condition: Condition, num: int) -> dict[str, Tensor]:
    """Repeat the condition of one image for each of `num` images."""
    return mapped(condition, lambda tensor: copies(tensor, num))


def one_by_one(condition: Condition, num: int) -> list[dict[str, Tensor]]:
    """Split a batch's condition into those of its `num` images."""
    return [{name: tensor[row] for name, tensor in condition.items()} for row in range(num)]


def stacked(conditions: Sequence[Condition]) -> dict[str, Tensor]:
    """Stack conditions of single images to that of a batch, with the names that all of them have."""
    shared = [name for name in conditions[0] if all(name in other for other in conditions)]
    return {name: torch.stack([condition[name] for condition in conditions]) for name in shared}


def joined(conditions: Sequence[Condition]) -> dict[str, Tensor]:
    """Concatenate the conditions of batches."""
    return {name: torch.cat([condition[name] for condition in conditions]) for name in conditions[0]}


def of_loss_inputs(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the condition among the inputs of a loss."""
    return {name: tensor for name, tensor in inputs.items() if name not in LOSS_INPUTS}
