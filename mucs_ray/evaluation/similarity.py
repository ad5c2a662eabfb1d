"""Similarity of a generated image and its regeneration, by each of the metrics (mucs_ray.evaluation.metrics).

Axes: n pairs of images. Images are in [0, 1], fp32; higher = more similar (spec 11.1).
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from mucs_ray.diffusion.rows import row_means
from mucs_ray.encoders.batches import in_batches
from mucs_ray.encoders.lpips import load_lpips
from mucs_ray.encoders.networks import Encoder, load_clip, load_dino, load_sscd
from mucs_ray.errors import InputError
from mucs_ray.evaluation.metrics import SSIM_LEAST_PX, SSIM_WINDOW_PX
from mucs_ray.spaces.pictures import Pictures, are_pictures

Similarity = Callable[[Pictures, Pictures], Float[Tensor, " n"]]

SSIM_SIGMA = 1.5
SSIM_C1 = 0.01**2
SSIM_C2 = 0.03**2


def mse(first: Pictures, second: Pictures) -> Float[Tensor, " n"]:
    """Return the mean squared difference of pixels, negated: in [-1, 0]."""
    return -row_means((first - second).square())


def ssim(first: Pictures, second: Pictures) -> Float[Tensor, " n"]:
    """Return the structural similarity in [-1, 1]: the mean over channels and all pixels whose whole window is inside.

    Padding by reflection and cropping the 5-pixel border afterwards, as the paper's code does, gives the same. It is
    computed in fp64: a variance is a difference of nearly equal numbers, and fp32 is up to 3e-4 off where both images
    are flat. InputError if the images are smaller than 12 x 12.
    """
    if min(first.shape[-2:]) < SSIM_LEAST_PX:
        height, width = first.shape[-2:]
        raise InputError(f"SSIM needs images of at least {SSIM_LEAST_PX} x {SSIM_LEAST_PX}, found {height} x {width}")
    x, y = first.double(), second.double()
    mean_x, mean_y = blurred(x), blurred(y)
    variance_x, variance_y = blurred(x * x) - mean_x**2, blurred(y * y) - mean_y**2
    covariance = blurred(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + SSIM_C1) / (mean_x**2 + mean_y**2 + SSIM_C1)
    structure = (2 * covariance + SSIM_C2) / (variance_x + variance_y + SSIM_C2)
    return row_means(luminance * structure).float()


def blurred(images: Pictures) -> Pictures:
    """Return the Gaussian window's mean around each pixel at least 5 pixels from the border."""
    offsets = range(-(SSIM_WINDOW_PX // 2), SSIM_WINDOW_PX // 2 + 1)
    bell = [math.exp(-(offset**2) / (2 * SSIM_SIGMA**2)) for offset in offsets]
    for dim in (-2, -1):
        size = images.shape[dim] - SSIM_WINDOW_PX + 1
        shifted = (images.narrow(dim, start, size) * (weight / sum(bell)) for start, weight in enumerate(bell))
        images = sum(shifted, start=torch.zeros((), dtype=images.dtype, device=images.device))
    return images


def cosine(load: Callable[[str, torch.device], Encoder], path: str, device: torch.device) -> Similarity:
    """Return the similarity that is the cosine of an encoder's embeddings; `load` reads the encoder's file."""
    encoder = load(path, device)
    return lambda first, second: (encoder.embed(first) * encoder.embed(second)).sum(dim=1)


LOADERS: dict[str, Callable[[str, torch.device], Similarity]] = {
    "ssim": lambda path, device: ssim,
    "sscd": partial(cosine, load_sscd),
    "lpips": partial(load_lpips, trunk="vgg"),
    "clip": partial(cosine, load_clip),
    "dino": partial(cosine, load_dino),
    "mse": lambda path, device: mse,
    "lpips-alex": partial(load_lpips, trunk="alex"),
    "lpips-squeeze": partial(load_lpips, trunk="squeeze"),
}
"""By metric, a function from the path of its weights ("" without) and a device to the similarity of images there."""


def load_similarity(name: str, path: str, device: torch.device) -> Similarity:
    """Return the similarity of pairs of images, computed on `device`; the images may be anywhere and stay there."""
    compare = LOADERS[name](path, device)

    def similarity(first: Pictures, second: Pictures) -> Float[Tensor, " n"]:
        if first.shape != second.shape or not are_pictures(first):
            shapes = f"{tuple(first.shape)} and {tuple(second.shape)}"
            raise InputError(f"similarity is of pairs of colour images of one size, found {shapes}")
        if not len(first):
            return torch.zeros(0, device=first.device)
        return in_batches(compare, first, second, device=device)

    return similarity
