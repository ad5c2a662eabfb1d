"""The evidence lower bound (ELBO) of an image level by level, in closed form and float64 (spec/backbones 4.4).

    KL_t = (SNR_t' - SNR_t) |z - D|^2 / 2      SNR = (alpha / s)^2, t' the next level with less noise, in nats

Two models are compared on the same noise: the difference of their bounds says how much better one explains an image.
On a table of steps this is beta_t / (2 alpha_t (1 - alpha_bar_(t-1))) |eps - eps_hat|^2, whatever the network predicts.
Axes: n levels, *shape of an image.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mucs_ray.diffusion.betas import alpha_bar, betas
from mucs_ray.diffusion.condition import NO_CONDITION, Condition, for_each
from mucs_ray.diffusion.model import DiffusionModel
from mucs_ray.diffusion.noise import NoiseSet
from mucs_ray.diffusion.process import Process
from mucs_ray.diffusion.rows import copies
from mucs_ray.diffusion.vp import VP
from mucs_ray.errors import InputError

CONTINUOUS_LEVELS = 128
"""The number of levels on a process without a table of steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ElboGrid:
    """The levels at which a bound is summed."""

    level: Float[Tensor, " n"]
    """The levels in fp32, as the network receives them."""
    kl: Float[Tensor, " n"]
    """The factor of the sum of (r - target)^2 over an image in KL_t, where r is the network's raw output."""
    loss: Float[Tensor, " n"]
    """The factor of its mean in the loss that the network was trained with."""


def elbo_grid(process: Process, *, skip: int = 10, num: int = CONTINUOUS_LEVELS) -> ElboGrid:
    """Return the levels skip, 2 skip, ... below T of a table of T steps, or `num` levels of the sampler's schedule.

    The last step of a table is never among them: that of a cosine table alone would be nearly all of the sum.
    InputError if no level is left.
    """
    if isinstance(process, VP):
        end = min(process.num_levels(0.0), process.betas.steps - 1)
        level = torch.arange(skip, max(skip, end), skip, dtype=torch.float64)
        if not len(level):
            raise InputError(f"groups.skip is {skip}, and the model has only {process.betas.steps} steps")
        share = eps_factor(process, level)
    else:
        schedule = process.sampling_levels(num + 1).double()
        at = process.at(schedule)
        snr, level = (at.alpha / at.s) ** 2, schedule[:-1]
        share = (snr[1:] - snr[:-1]) / 2 * ((at.s / at.alpha) ** 2)[:-1]
    at = process.at(level)
    # eps - eps_hat = (alpha / det) (r - target), up to the sign
    return ElboGrid(level=level.float(), kl=share * (at.alpha / at.det) ** 2, loss=at.weight)


def eps_factor(process: VP, step: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Return the factor of |eps - eps_hat|^2 in KL_t at steps above 0, from the fp32 tables of the model's training.

    An exact schedule would be 4e-4 off at step 10 of 4000.
    """
    at = step.long()
    beta, left = betas(process.betas).double(), alpha_bar(process.betas).double()
    return beta[at] / (2 * (1 - beta[at]) * (1 - left[at - 1]))


def query_noise(grid: ElboGrid, shape: tuple[int, ...], *, seed: int, idx: int, draw: int = 0) -> NoiseSet:
    """Return the noise of a query, one for each level, which all models share.

    It depends on the number of the query alone. Another `draw` is other noise, to see how much a score depends on it.
    """
    name = f"guda/score/query={idx}" + (f"/draw={draw}" if draw else "")
    return NoiseSet.draw(seed, name, grid.level, shape)


@torch.inference_mode()
def raw_errors(
    model: DiffusionModel,
    z: Float[Tensor, "*shape"],
    noises: NoiseSet,
    condition: Condition = NO_CONDITION,
    *,
    levels_per_forward: int = 50,
) -> Float[Tensor, " n"]:
    """Return the sum of (r - target)^2 over one image at each level, in float64, on the CPU.

    A forward holds one image only, so that its numbers do not depend on the others. `condition` is that of one image.
    """
    errors = []
    for start in range(0, len(noises.level), levels_per_forward):
        some = noises[slice(start, start + levels_per_forward)]
        image = copies(z, len(some.level))
        at = model.process.at(some.level)
        raw = model.raw(model.process.noised(image, some.unit, some.level), at, for_each(condition, len(image)))
        target = model.process.target(image.double(), some.unit.double(), some.level.double())
        errors.append((raw.double() - target).square().flatten(1).sum(dim=1).cpu())
    return torch.cat(errors)


def kl_terms(grid: ElboGrid, errors: Float[Tensor, "... n"]) -> Float[Tensor, "... n"]:
    """Return KL_t in nats."""
    return grid.kl * errors


def elbo_difference(
    grid: ElboGrid, full: Float[Tensor, "... n"], without: Float[Tensor, "... n"]
) -> Float[Tensor, "..."]:
    """Return ELBO(full) - ELBO(without the group), in nats, from the errors of both models on the same noise.

    Positive means that the group mattered. It is a sum over the levels of the grid, not scaled by how many there are.
    """
    return (kl_terms(grid, without) - kl_terms(grid, full)).sum(dim=-1)


def loss_difference(
    grid: ElboGrid, full: Float[Tensor, "... n"], without: Float[Tensor, "... n"], num_elements: int
) -> Float[Tensor, "..."]:
    """Return the sum over the levels of how much the training loss is higher without the group ("unweighted")."""
    return (grid.loss * (without - full)).sum(dim=-1) / num_elements
