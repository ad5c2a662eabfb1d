"""Pixel space: z is the picture itself, scaled from the 256 stored values to [-1, 1].

All pictures of the project are scaled here, so that training, scoring, reports and metrics agree on every bit.
"""

from jaxtyping import Float, Float32, UInt8
from torch import Tensor


def encode(pixels: UInt8[Tensor, "*shape"]) -> Float32[Tensor, "*shape"]:
    """Stored 0 becomes -1 and stored 255 becomes 1."""
    return pixels.float().div_(127.5).sub_(1)


def decode(z: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """-1 becomes 0 (black) and 1 becomes 1 (white); a generated value beyond them is clamped."""
    return (z * 0.5 + 0.5).clamp(0, 1)
