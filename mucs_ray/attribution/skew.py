"""The noise-consistent skew says how far unlearning moved the loss of a training image, on the same noise (spec 7.3).

Axes: b training images, n noises shared by all of them, *shape of an image.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from mucs_ray.diffusion.batch import Batch
from mucs_ray.diffusion.condition import Condition, mapped
from mucs_ray.diffusion.loss import denoising_loss
from mucs_ray.diffusion.model import DiffusionModel
from mucs_ray.diffusion.noise import NoiseSet
from mucs_ray.diffusion.process import Process
from mucs_ray.diffusion.rows import repeated
from mucs_ray.training.config import Precision
from mucs_ray.training.step import autocast


def normalized_skew(
    before: Float[Tensor, "b n"],
    after: Float[Tensor, "b n"],
    *,
    epsilon: float | Float[Tensor, "..."] = 1e-3,
    weights: Float[Tensor, " n"] | None = None,
) -> Float[Tensor, " b"]:
    """Return mean_j (after - before) / (after + before + epsilon), in (-1, 1); higher means more influential.

    Losses are >= 0 (spec 7.3). With weights, whose sum is 1, the mean is weighted.
    """
    by_noise = skews(before, after, epsilon=epsilon)
    return by_noise.mean(dim=1) if weights is None else (by_noise * weights).sum(dim=1)


def skews(
    before: Float[Tensor, "..."], after: Float[Tensor, "..."], *, epsilon: float | Float[Tensor, "..."]
) -> Float[Tensor, "..."]:
    """Return (after - before) / (after + before + epsilon), noise by noise."""
    return (after - before) / (after + before + epsilon)


def epsilon_at(process: Process, level: Float[Tensor, " n"], epsilon: float) -> Float[Tensor, " n"]:
    """Return epsilon in the units of the loss at each level, which is the loss of the best linear denoiser there.

    So it damps no level more than another, whatever the network predicts (spec/models 2.4).
    """
    return epsilon * process.linear_bound(level, process.second_moment)


@torch.inference_mode()
def noise_losses(
    model: DiffusionModel,
    batch: Batch,
    noises: NoiseSet,
    *,
    images_per_forward: int = 1,
    precision: Precision = "fp32",
) -> Float[Tensor, "b n"]:
    """Return the fp32 loss of every image at every noise.

    With one image a forward every forward has the same shape and holds one image only, so a loss does not depend, to
    the last bit, on which other images are in the batch.
    """
    cuts = range(0, len(batch), images_per_forward)
    with autocast(precision, batch.z.device):
        return torch.cat([_losses(model, batch[slice(at, at + images_per_forward)], noises) for at in cuts])


def pairs(
    batch: Batch, noises: NoiseSet
) -> tuple[Float[Tensor, "p *shape"], Float[Tensor, "p *shape"], Float[Tensor, " p"], Condition]:
    """Return image, noise, level and condition of every image with every noise, image by image: p = b n rows."""
    num, count = len(batch), len(noises.level)
    condition = mapped(batch.condition, lambda tensor: tensor.repeat_interleave(count, dim=0))
    image = batch.z.repeat_interleave(count, dim=0)
    return image, repeated(noises.unit, num), noises.level.repeat(num), condition


def _losses(model: DiffusionModel, batch: Batch, noises: NoiseSet) -> Float[Tensor, "b n"]:
    return denoising_loss(model.process, model, *pairs(batch, noises)).view(len(batch), len(noises.level))
