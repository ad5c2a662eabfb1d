"""The pixel space, where z is the picture itself, with pixels in [-1, 1] (spec 2)."""

from jaxtyping import Float, UInt8
from torch import Tensor

from mucs_ray.spaces.codec import Codec

MEAN_SQUARE = 0.25
"""The mean square of a pixel, about, where the data set at hand does not say."""


class Pixels(Codec):
    """A codec between 0..255 and [-1, 1], for any number of channels."""

    encodes_each_alone = True

    def encode(self, pictures: UInt8[Tensor, "b *shape"]) -> Float[Tensor, "b *shape"]:
        """Map 0 to -1 and 255 to 1."""
        return pictures.float().div_(127.5).sub_(1)  # in place on the copy that `float` makes

    def decode(self, z: Float[Tensor, "b *shape"]) -> Float[Tensor, "b *shape"]:
        """Map -1 to 0 and 1 to 1, and clamp values beyond them."""
        return (z * 0.5 + 0.5).clamp(0, 1)

    def shown(self, z: Float[Tensor, "b *shape"]) -> Float[Tensor, "b *shape"]:
        """Clamp to [-1, 1]."""
        return z.clamp(-1, 1)


PIXELS = Pixels()
