"""Non-leaking geometric augmentation of training images (spec 2): flip, scale, rotation, stretch, translation.

Each distortion is applied to each image with probability p; all of them compose into one affine map per image.
The network is told whether an image was distorted; a flip does not count.
Axes: b images, c h w image.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import affine_grid, avg_pool2d, grid_sample, interpolate

from mucs_ray.diffusion.condition import Condition

Augment = Callable[..., tuple[Tensor, Condition]]
"""augment(z, stream, probability=..., flip=...): z as training sees it, and what the network is told of the change."""
SCALE_STD, ANISOTROPY_STD, TRANSLATION_STD = 0.2, 0.2, 0.125


def augment(
    image: Float[Tensor, "b c h w"], stream: np.random.Generator, *, probability: float, flip: bool
) -> tuple[Float[Tensor, "b c h w"], Int64[Tensor, " b"]]:
    """Return (images, 1 where distorted). Every random number comes from `stream`, drawn for the whole batch."""
    flipped = torch.from_numpy(stream.random(len(image)) < 0.5)
    if flip:
        image = torch.where(flipped[:, None, None, None], image.flip(3), image)
    matrix, distorted = distortions(stream, len(image), probability)
    if distorted.any():
        image = image.clone()
        image[distorted] = warp(image[distorted], matrix[distorted])
    return image, distorted.long()


def distorted(
    z: Float[Tensor, "b c h w"], stream: np.random.Generator, *, probability: float, flip: bool
) -> tuple[Float[Tensor, "b c h w"], Condition]:
    """Apply `augment` and return its flag under the name "augmented", by which a model reads it."""
    images, flag = augment(z, stream, probability=probability, flip=flip)
    return images, {"augmented": flag}


def distorted_and_told_of_flips(
    z: Float[Tensor, "b c h w"], stream: np.random.Generator, *, probability: float, flip: bool
) -> tuple[Float[Tensor, "b c h w"], Condition]:
    """Apply `augment`, but mirror an image as rarely as it is distorted, and flag that too (spec/backbones 1.4)."""
    flipped = torch.from_numpy(stream.random(len(z)) < probability) & flip
    images, flag = augment(z, stream, probability=probability, flip=False)
    images = torch.where(flipped[:, None, None, None], images.flip(3), images)
    return images, {"augmented": flag | flipped.long()}


def flipped_only(
    z: Float[Tensor, "b c h w"], stream: np.random.Generator, *, probability: float, flip: bool
) -> tuple[Float[Tensor, "b c h w"], Condition]:
    """Mirror images but distort none, for a network that cannot be told of it."""
    images, _ = augment(z, stream, probability=0.0, flip=flip)
    return images, {}


def distortions(stream: np.random.Generator, num: int, probability: float) -> tuple[Float[Tensor, "b 2 3"], Tensor]:
    """Return maps from output to input coordinates in [-1, 1], and which of them are not the identity."""
    applied = stream.random((4, num)) < probability
    isotropic = np.where(applied[0], 2.0 ** (SCALE_STD * stream.standard_normal(num)), 1.0)
    angle = np.where(applied[1], stream.uniform(-math.pi, math.pi, num), 0.0)
    stretch = np.where(applied[2], 2.0 ** (ANISOTROPY_STD * stream.standard_normal(num)), 1.0)
    tilted = stream.random(num) < 0.5
    axis = np.where(tilted, stream.uniform(-math.pi, math.pi, num), 0.0)
    # a shift by a share of the width is twice that in coordinates that run from -1 to 1
    shift = np.where(applied[3], 2 * TRANSLATION_STD * stream.standard_normal((2, num)), 0.0)
    linear = rotation(angle) @ rotation(axis) @ scaling(stretch, 1 / stretch) @ rotation(-axis)
    inverse = np.linalg.inv(linear * isotropic[:, None, None])
    offset = -inverse @ shift.T[:, :, None]
    matrix = torch.from_numpy(np.concatenate([inverse, offset], axis=2)).float()
    return matrix, torch.from_numpy(applied.any(axis=0))


def rotation(angle: np.ndarray) -> np.ndarray:
    """Return rotations, [b, 2, 2], from x (right) towards y (down)."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([np.stack([cos, -sin], axis=1), np.stack([sin, cos], axis=1)], axis=1)


def scaling(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return diagonal matrices, [b, 2, 2]."""
    zero = np.zeros_like(x)
    return np.stack([np.stack([x, zero], axis=1), np.stack([zero, y], axis=1)], axis=1)


def warp(image: Float[Tensor, "b c h w"], matrix: Float[Tensor, "b 2 3"]) -> Float[Tensor, "b c h w"]:
    """Warp images with reflecting borders, sampled at twice the resolution and averaged, against aliasing."""
    batch, channels, height, width = image.shape
    fine = interpolate(image, scale_factor=2, mode="bilinear", align_corners=False)
    grid = affine_grid(matrix.to(image.device), [batch, channels, 2 * height, 2 * width], align_corners=False)
    return avg_pool2d(grid_sample(fine, grid, padding_mode="reflection", align_corners=False), 2)
