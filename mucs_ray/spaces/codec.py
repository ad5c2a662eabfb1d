"""The way from pictures to z, in which a model works, and back. It is there where images are read or shown, and never
in a worker that only computes losses.

Axes: b images, *shape of z.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from mucs_ray.diffusion.condition import Condition
from mucs_ray.spaces.pictures import Pictures, StoredPictures


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is known of one picture from which a codec that reads text makes its condition."""

    text: str | None = None
    """Its caption or prompt; None if it has none."""
    size: tuple[int, int] | None = None
    """Height and width of the picture before it was cropped; None for one that never was."""
    crop: tuple[int, int] = (0, 0)
    """The row and the column of that picture at which the crop begins."""


class Codec(ABC):
    """One space. Tensors may be on any device, and what is made of them is there too."""

    encodes_each_alone: ClassVar[bool] = False
    """Whether the z of a picture does not depend, to the last bit, on what is encoded with it. A network's does."""
    shape: tuple[int, ...] = ()
    """The shape of z of one picture, where pictures may be encoded before they are needed."""
    reads_text: ClassVar[bool] = False
    """Whether conditions are made by `condition` from captions, and not read off the data set."""

    @abstractmethod
    def encode(self, pictures: StoredPictures) -> Float[Tensor, "b *shape"]:
        """Return z of pictures with 8-bit pixels."""

    @abstractmethod
    def decode(self, z: Float[Tensor, "b *shape"]) -> Pictures:
        """Return pictures in [0, 1], clamped."""

    @abstractmethod
    def shown(self, z: Float[Tensor, "b *shape"]) -> Float[Tensor, "b *shape"]:
        """Return z without what a picture cannot show, so that generated images compare with training images."""

    def condition(self, asked: Sequence[Asked]) -> Condition:
        """Return the condition of pictures from their captions, on the CPU, where `reads_text`."""
        raise NotImplementedError

    def learn(self, captions: str) -> None:
        """Take what the text encoders make of captions from the table at this URL, which `tensors_of` wrote."""
        return

    def tensors_of(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Return what the text encoders make of captions, for the table from which `learn` takes it."""
        raise NotImplementedError
