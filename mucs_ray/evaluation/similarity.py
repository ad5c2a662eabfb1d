"""Similarity of a generated image and its regeneration: the metrics there are, and which this machine can compute.

Axes: n pairs of images, h w pixels. Images are in [0, 1], fp32; higher = more similar (spec 11.1).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from mucs_ray.errors import InputError, MachineError
from mucs_ray.evaluation.batches import in_batches
from mucs_ray.evaluation.encoders import Encoder, load_clip, load_dino, load_sscd
from mucs_ray.evaluation.perceptual import load_lpips
from mucs_ray.evaluation.pretrained import (
    ALEXNET_WEIGHTS,
    CLIP_WEIGHTS,
    DINO_WEIGHTS,
    SQUEEZENET_WEIGHTS,
    SSCD_WEIGHTS,
    VGG_WEIGHTS,
    Weights,
    find_weights,
    fingerprint,
    weights_folder,
)

Similarity = Callable[[Float[Tensor, "n 3 h w"], Float[Tensor, "n 3 h w"]], Float[Tensor, " n"]]

SSIM_SIGMA = 1.5
SSIM_WINDOW_PX = 11
SSIM_LEAST_PX = SSIM_WINDOW_PX + 1
SSIM_C1 = 0.01**2
SSIM_C2 = 0.03**2


def mse(first: Float[Tensor, "n 3 h w"], second: Float[Tensor, "n 3 h w"]) -> Float[Tensor, " n"]:
    """Mean squared difference of pixels, negated: in [-1, 0]."""
    return -(first - second).square().mean(dim=(1, 2, 3))


def ssim(first: Float[Tensor, "n 3 h w"], second: Float[Tensor, "n 3 h w"]) -> Float[Tensor, " n"]:
    """Structural similarity in [-1, 1]: the mean over channels and over the pixels whose whole window is inside.

    To pad by reflection and crop the 5-pixel border afterwards, as the paper's code does, is the same. In fp64: a
    variance is a difference of nearly equal numbers, and fp32 is up to 3e-4 off where both images are flat.
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
    return (luminance * structure).mean(dim=(1, 2, 3)).float()


def blurred(images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 smaller_h smaller_w"]:
    """The Gaussian window's mean around each pixel at least 5 pixels from the border."""
    offsets = range(-(SSIM_WINDOW_PX // 2), SSIM_WINDOW_PX // 2 + 1)
    bell = [math.exp(-(offset**2) / (2 * SSIM_SIGMA**2)) for offset in offsets]
    for dim in (-2, -1):
        size = images.shape[dim] - SSIM_WINDOW_PX + 1
        shifted = (images.narrow(dim, start, size) * (weight / sum(bell)) for start, weight in enumerate(bell))
        images = sum(shifted, start=torch.zeros((), dtype=images.dtype, device=images.device))
    return images


def cosine(load: Callable[[str, torch.device], Encoder], path: str, device: torch.device) -> Similarity:
    """Cosine of the embeddings of an encoder's file."""
    encoder = load(path, device)
    return lambda first, second: (encoder.embed(first) * encoder.embed(second)).sum(dim=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One row of the registry."""

    name: str
    label: str
    in_paper: bool
    """Counts in the mean of SSIM, SSCD, LPIPS and CLIP."""
    weights: Weights | None
    """What it needs on the machine."""
    load: Callable[[str, torch.device], Similarity]
    """From the weights' path ("" without) and a device, for images that are there."""


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(name="ssim", label="SSIM", in_paper=True, weights=None, load=lambda path, device: ssim),
        Metric(name="sscd", label="SSCD", in_paper=True, weights=SSCD_WEIGHTS, load=partial(cosine, load_sscd)),
        Metric(
            name="lpips",
            label="1 - LPIPS (VGG)",
            in_paper=True,
            weights=VGG_WEIGHTS,
            load=partial(load_lpips, trunk="vgg"),
        ),
        Metric(name="clip", label="CLIP", in_paper=True, weights=CLIP_WEIGHTS, load=partial(cosine, load_clip)),
        Metric(name="dino", label="DINO", in_paper=False, weights=DINO_WEIGHTS, load=partial(cosine, load_dino)),
        Metric(name="mse", label="-MSE", in_paper=False, weights=None, load=lambda path, device: mse),
        Metric(
            name="lpips-alex",
            label="1 - LPIPS (AlexNet)",
            in_paper=False,
            weights=ALEXNET_WEIGHTS,
            load=partial(load_lpips, trunk="alex"),
        ),
        Metric(
            name="lpips-squeeze",
            label="1 - LPIPS (SqueezeNet)",
            in_paper=False,
            weights=SQUEEZENET_WEIGHTS,
            load=partial(load_lpips, trunk="squeeze"),
        ),
    )
}
"""By name, in the order of reports."""
DEFAULT = ("ssim", "sscd", "lpips", "clip", "dino", "mse")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadyMetric:
    """A metric that this machine has what it needs for; small and picklable, so that it can go to a worker."""

    name: str
    path: str | None
    """Its weights' file; none without weights."""
    digest: str
    """Changes when the file is replaced: its name and size; "" without weights."""

    def checked_path(self) -> str:
        """Its weights' file, "" without weights. MachineError if it is not here, InputError if it has changed."""
        if self.path is None:
            return ""
        if not Path(self.path).is_file():
            raise MachineError(f"{self.name}: its weights {self.path} are not on this machine")
        if (found := fingerprint(self.path)) != self.digest:
            raise InputError(f"{self.path} has changed: it was {self.digest}, it is {found} (name:bytes)")
        return self.path

    def load(self, device: torch.device) -> Similarity:
        """The similarity of pairs of images, which may be anywhere and stay there, computed on `device`.

        Reads the file: InputError if it is broken, of another architecture, or not the one that was looked up.
        """
        compare = METRICS[self.name].load(self.checked_path(), device)

        def similarity(first: Float[Tensor, "n 3 h w"], second: Float[Tensor, "n 3 h w"]) -> Float[Tensor, " n"]:
            if first.shape != second.shape or first.ndim != 4 or first.shape[1] != 3:
                shapes = f"{tuple(first.shape)} and {tuple(second.shape)}"
                raise InputError(f"similarity is of pairs of colour images of one size (n 3 h w), found {shapes}")
            if not len(first):
                return torch.zeros(0, device=first.device)
            return in_batches(compare, first, second, device=device)

        return similarity


def ready_metrics(names: Sequence[str], weights_dir: str | None) -> tuple[list[ReadyMetric], dict[str, str]]:
    """The metrics asked for; with no names the default ones whose weights are here, and by name a line on each other.

    InputError for an unknown name, MachineError for weights that are not here: the line says where which file goes.
    """
    unknown = [name for name in names if name not in METRICS]
    if unknown:
        raise InputError(f"unknown metric {', '.join(unknown)}; there are {', '.join(METRICS)}")
    weights_folder(weights_dir)
    ready, left_out = [], {}
    for name in dict.fromkeys(names or DEFAULT):
        try:
            ready.append(_ready(METRICS[name], weights_dir))
        except MachineError as error:
            if names:
                raise
            left_out[name] = str(error)
    return ready, left_out


def _ready(metric: Metric, weights_dir: str | None) -> ReadyMetric:
    if metric.weights is None:
        return ReadyMetric(name=metric.name, path=None, digest="")
    try:
        path = find_weights(metric.weights, weights_dir)
    except MachineError as error:
        raise MachineError(f"{metric.name}: {error}") from None
    return ReadyMetric(name=metric.name, path=path, digest=fingerprint(path))
