"""What the images of a group are trained towards when it is forgotten (spec/backbones 4.3).

GUDA's targets are noises tau, for networks that predict noise. The answer r of any other network implies a noise,
n_hat = (alpha r - p x) / det, and this is compared with the same target. The error is not converted back to the units
of r: there the target may grow as 1 / alpha or as sigma, and the noisiest levels would outweigh all others.
Axes: b images, k neighbours, *shape of an image.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mucs_ray.diffusion.condition import Condition
from mucs_ray.diffusion.model import DiffusionModel
from mucs_ray.diffusion.process import Process
from mucs_ray.diffusion.rows import per_row
from mucs_ray.errors import InputError

MOST_ROUNDS = 1000


def implied_noise(
    process: Process, raw: Float[Tensor, "b *shape"], noisy: Float[Tensor, "b *shape"], level: Float[Tensor, " b"]
) -> Float[Tensor, "b *shape"]:
    """Return the noise that a network's raw output says is in x = alpha z + s n."""
    at = process.at(level)
    return per_row(at.alpha / at.det, raw) * raw - per_row(at.p / at.det, noisy) * noisy


def shifts(
    process: Process,
    image: Float[Tensor, "b *shape"],
    neighbours: Float[Tensor, "b k *shape"],
    level: Float[Tensor, " b"],
) -> Float[Tensor, "b k *shape"]:
    """Return delta = (alpha / s) (image - neighbour): with n + delta for noise, x would be a noisy neighbour."""
    at = process.at(level)
    return per_row(at.alpha / at.s, neighbours) * (image[:, None] - neighbours)


def neighbour_weights(noise: Float[Tensor, "b *shape"], shift: Float[Tensor, "b k *shape"]) -> Float[Tensor, "b k"]:
    """Return the probability of each neighbour given x, softmax(-|n + delta|^2 / 2); one often has all of it."""
    return torch.softmax(-(noise[:, None] + shift).square().flatten(2).sum(dim=2) / 2, dim=1)


def clipped(shift: Float[Tensor, "b k *shape"], kl_cap: float) -> Float[Tensor, "b k *shape"]:
    """Shorten shifts to the length sqrt(2 kappa)."""
    length = shift.flatten(2).norm(dim=2)
    factor = ((2 * kl_cap) ** 0.5 / length.clamp(min=torch.finfo(length.dtype).tiny)).clamp(max=1.0)
    return shift * factor.reshape(*factor.shape, *[1] * (shift.ndim - 2))


def retrack_target(
    process: Process,
    image: Float[Tensor, "b *shape"],
    neighbours: Float[Tensor, "b k *shape"],
    noise: Float[Tensor, "b *shape"],
    level: Float[Tensor, " b"],
    *,
    kl_cap: float | None = None,
) -> Float[Tensor, "b *shape"]:
    """Return n + sum_r w_r delta_r over the neighbours r; with a cap, of shortened shifts."""
    shift = shifts(process, image, neighbours, level)
    weight = neighbour_weights(noise, shift)
    if kl_cap is not None:
        shift = clipped(shift, kl_cap)
    return noise + torch.einsum("bk,bk...->b...", weight, shift)


@torch.no_grad()
def esd_target(
    guide: DiffusionModel,
    noisy: Float[Tensor, "b *shape"],
    level: Float[Tensor, " b"],
    condition: Condition,
    *,
    guidance: float,
) -> Float[Tensor, "b *shape"]:
    """Return e_0 - w (e_c - e_0): the noise that a conditional model sees without the condition, away from that with.

    The guide has the levels of the model that forgets, but may predict something else.
    """
    nothing = {**condition, **guide.nothing(len(noisy))}
    without, having = (
        implied_noise(guide.process, guide.raw(noisy, guide.process.at(level), given), noisy, level)
        for given in (nothing, condition)
    )
    return without - guidance * (having - without)


def check_guide(guide: DiffusionModel | None, process: Process) -> DiffusionModel:
    """Return the guide. InputError if there is none, it has no condition, or other noise levels."""
    if guide is None or not guide.nothing(1):
        raise InputError(
            "esd needs a class-conditional model, which tells it what a class looks like; give its weights"
        )
    level = process.scoring_levels(10, 1.0).double()
    own, others = process.at(level), guide.process.at(level)
    if not (torch.equal(own.alpha, others.alpha) and torch.equal(own.s, others.s)):
        raise InputError("the class-conditional model of esd was trained on other noise levels than the model")
    return guide


def levels_from(process: Process, stream: np.random.Generator, num: int, lowest_sigma: float) -> Float[Tensor, " n"]:
    """Draw levels as training does, but only those with sigma = s / alpha of at least `lowest_sigma`."""
    kept = torch.empty(0)
    for _ in range(MOST_ROUNDS):
        drawn = process.training_levels(stream, num)
        at = process.at(drawn.double())
        kept = torch.cat([kept, drawn[at.s >= lowest_sigma * at.alpha]])
        if len(kept) >= num:
            return kept[:num]
    raise InputError(
        f"groups.lowest_sigma is {lowest_sigma}, but training draws hardly any noise as high; set it lower"
    )
