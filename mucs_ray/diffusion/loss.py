"""The weighted denoising loss, one number for each (image, noise) (spec 3.1).

Axes: b images (each with its own level and noise), *shape of an image.
"""

from jaxtyping import Float
from torch import Tensor

from mucs_ray.diffusion.condition import NO_CONDITION, Condition
from mucs_ray.diffusion.model import Denoiser
from mucs_ray.diffusion.process import Process
from mucs_ray.diffusion.rows import row_means


def denoising_loss(
    process: Process,
    denoiser: Denoiser,
    image: Float[Tensor, "b *shape"],
    noise: Float[Tensor, "b *shape"],
    level: Float[Tensor, " b"],
    condition: Condition = NO_CONDITION,
) -> Float[Tensor, " b"]:
    """Return the mean over all elements of an image of omega (D(x) - z)^2 = weight (r - target)^2, >= 0."""
    denoised = denoiser(process.noised(image, noise, level), level, condition)
    return process.loss_weight(level) * row_means((denoised - image).square())
