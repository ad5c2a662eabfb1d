"""Training images and generated items as a model sees them.

Axes: b images, *shape of z.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mucs_ray.diffusion.condition import Condition, mapped, moved


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Training images, each with its number for life and its condition."""

    idx: Int64[Tensor, " b"]
    z: Float[Tensor, "b *shape"]
    """The images in the space of the model (mucs_ray.spaces)."""
    condition: Condition
    """The tensors of the condition by name; empty if there is none."""
    mask: Float[Tensor, "b *shape"] | None = None
    """1 where z counts when a model unlearns and 0 where it is padding; None where all of it counts."""

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.idx)

    def __getitem__(self, rows: slice | Int64[Tensor, " r"]) -> "Batch":
        """Return a slice or a selection of the batch."""
        condition = mapped(self.condition, lambda tensor: tensor[rows])
        mask = None if self.mask is None else self.mask[rows]
        return Batch(idx=self.idx[rows], z=self.z[rows], condition=condition, mask=mask)

    def to(self, device: torch.device | str) -> "Batch":
        """Move image and condition to another device; `idx` stays on the CPU."""
        mask = None if self.mask is None else self.mask.to(device)
        return Batch(idx=self.idx, z=self.z.to(device), condition=moved(self.condition, device), mask=mask)


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One generated image to explain; `idx` is the test image that supplied its condition and names
    its noise (spec 6).
    """

    number: int
    idx: int
    condition: Condition
    """The condition has no batch axis and is empty if there is none."""
    z: Float[Tensor, "*shape"]
    """The sampler's output in the space of the model; in pixel space it is not clamped."""
