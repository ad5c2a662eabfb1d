"""z is the picture itself, with pixels in [-1, 1] (spec 2)."""

from jaxtyping import Float, UInt8
from torch import Tensor

from mucs_ray.spaces.codec import Codec


class Pixels(Codec):
    """Pixels from 0..255 to [-1, 1] and back, whatever the number of channels."""

    def encode(self, pictures: UInt8[Tensor, "b *shape"]) -> Float[Tensor, "b *shape"]:
        """0 becomes -1, and 255 becomes 1."""
        return pictures.float() / 127.5 - 1

    def decode(self, z: Float[Tensor, "b *shape"]) -> Float[Tensor, "b *shape"]:
        """-1 becomes 0, and 1 becomes 1; what is beyond is cut off."""
        return (z * 0.5 + 0.5).clamp(0, 1)

    def shown(self, z: Float[Tensor, "b *shape"]) -> Float[Tensor, "b *shape"]:
        """Cut off at -1 and 1."""
        return z.clamp(-1, 1)


PIXELS = Pixels()
