"""Pixel space: z is the picture itself, scaled from the 256 stored values to [-1, 1].

All pictures of the project are scaled here, so that training, scoring, reports and metrics agree on every bit.
"""

from jaxtyping import Float, Float32, UInt8
from torch import Tensor


def encode(pixels: UInt8[Tensor, "*shape"]) -> Float32[Tensor, "*shape"]:
    """Map a stored 0 to -1 and a stored 255 to 1."""
    return pixels.float() / 127.5 - 1


def decode(z: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Map -1 to 0 (black) and 1 to 1 (white); a generated value beyond them is clamped."""
    return (z * 0.5 + 0.5).clamp(0, 1)
