"""Training images as a model sees them.

Axes: b images, *shape of an image.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mucs_ray.diffusion.condition import Condition, mapped, moved


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Training images in [-1, 1], each with its number for life and its condition."""

    idx: Int64[Tensor, " b"]
    image: Float[Tensor, "b *shape"]
    condition: Condition
    """The tensors of the condition by name; empty if there is none."""

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.idx)

    def __getitem__(self, rows: slice | Int64[Tensor, " r"]) -> "Batch":
        """Return a slice or a selection of the batch."""
        condition = mapped(self.condition, lambda tensor: tensor[rows])
        return Batch(idx=self.idx[rows], image=self.image[rows], condition=condition)

    def to(self, device: torch.device | str) -> "Batch":
        """Move image and condition to another device; `idx` stays on the CPU."""
        condition = moved(self.condition, device)
        return Batch(idx=self.idx, image=self.image.to(device), condition=condition)
