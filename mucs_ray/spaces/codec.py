"""The way from pictures to z, in which a model works, and back. It is there where images are read or shown, and never
in a worker that only computes losses.

Axes: b images, *shape of z.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from mucs_ray.spaces.pictures import Pictures, StoredPictures


class Codec(ABC):
    """One space. Tensors may be on any device, and what is made of them is there too."""

    encodes_each_alone: ClassVar[bool] = False
    """Whether the z of a picture does not depend, to the last bit, on what is encoded with it. A network's does."""

    @abstractmethod
    def encode(self, pictures: StoredPictures) -> Float[Tensor, "b *shape"]:
        """Return z of pictures with 8-bit pixels."""

    @abstractmethod
    def decode(self, z: Float[Tensor, "b *shape"]) -> Pictures:
        """Return pictures in [0, 1], clamped."""

    @abstractmethod
    def shown(self, z: Float[Tensor, "b *shape"]) -> Float[Tensor, "b *shape"]:
        """Return z without what a picture cannot show, so that generated images compare with training images."""
