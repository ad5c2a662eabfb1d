"""What every attribution method speaks of: generated items, and the contract of a method.

Axes: b training images, c h w image, d condition.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from mucs_ray.diffusion.batch import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One generated image to explain; `idx` is the test image that lent its condition and names its noise (spec 6)."""

    number: int
    idx: int
    condition: Float[Tensor, " d"] | None
    image: Float[Tensor, "c h w"]
    """Unclamped."""


@runtime_checkable
class Attributor(Protocol):
    """A method, once prepared and adapted to its items: scores a batch. Higher = more influential."""

    def score(self, batch: Batch) -> Float[Tensor, "b items"]:
        """Influence of each image of the batch on each item."""
        ...
