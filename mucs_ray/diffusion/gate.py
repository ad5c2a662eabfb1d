"""Whether a network is read as it was trained: its loss on training images against that of knowing nothing of them.

R = sum of losses / sum of b, where b is the loss of the best linear denoiser at each level. The right reading of a
trained network has about .3; another type of prediction, scale, sign or direction of time has more than 1
(spec/models 2.6).
Axes: b images, n levels, *shape of an image.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mucs_ray.diffusion.batch import Batch
from mucs_ray.diffusion.condition import NO_CONDITION, Condition, for_each
from mucs_ray.diffusion.edm import EDM
from mucs_ray.diffusion.loss import denoising_loss
from mucs_ray.diffusion.model import DiffusionModel
from mucs_ray.diffusion.noise import NoiseSet, generator
from mucs_ray.diffusion.process import Process
from mucs_ray.diffusion.vp import VP
from mucs_ray.diffusion.vp_config import Prediction
from mucs_ray.diffusion.vp_continuous import TIME_SCALE, ContinuousVP

NUM_LEVELS = 32
DOUBTFUL, REFUSED = 0.6, 0.9
SD_SCALE = 0.18215
"""The factor of Stable Diffusion's latents, which is easily applied twice, or not at all."""
PREDICTED: dict[Prediction, str] = {"epsilon": "the noise", "v_prediction": "the velocity", "sample": "the image"}

Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A way to read a network, and R of it."""

    name: str
    """What differs, as a phrase that follows "read"."""
    setting: str
    """The recipe's setting for it; "" if there is none."""
    ratio: float


class Reread:
    """A model whose network is taken to predict something else, or to be told the time otherwise."""

    def __init__(
        self,
        model: DiffusionModel,
        process: Process | None = None,
        *,
        sign: float = 1.0,
        time: Change = lambda time: time,
    ) -> None:
        """Wrap `model`, which is not copied."""
        self.model, self.process, self.sign, self.time = model, process or model.process, sign, time

    def __call__(
        self, noisy: Float[Tensor, "b *shape"], level: Float[Tensor, " b"], condition: Condition = NO_CONDITION
    ) -> Float[Tensor, "b *shape"]:
        """Return the denoised image."""
        at = self.process.at(level)
        raw = self.sign * self.model.raw(noisy, replace(at, time=self.time(at.time)), condition)
        return self.process.denoised(raw, noisy, level)


@torch.no_grad()
def ratio(model: DiffusionModel | Reread, batch: Batch, *, seed: int) -> float:
    """Return R over the images of a batch, each at the same training levels with the same named noise."""
    process, total = model.process, 0.0
    levels = process.training_levels(generator(seed, "check/levels"), NUM_LEVELS)
    noises = NoiseSet.draw(seed, "check/noise", levels, batch.z.shape[1:]).to(batch.z.device)
    for row in range(len(batch)):
        image = batch.z[row].expand_as(noises.unit)
        condition = for_each({name: rows[row] for name, rows in batch.condition.items()}, NUM_LEVELS)
        losses = denoising_loss(process, model, image, noises.unit, noises.level, condition)
        total += losses.double().sum().item()
    mean_square = batch.z.double().square().mean().item()
    return total / (len(batch) * process.linear_bound(levels.double(), mean_square).sum().item())


def other_readings(model: DiffusionModel, batch: Batch, *, seed: int) -> Iterator[Reading]:
    """Yield R of what a network that is read wrongly may have been trained as."""

    def reading(name: str, other: Any, setting: str = "", images: Batch = batch) -> Reading:  # noqa: ANN401
        return Reading(name=name, setting=setting, ratio=ratio(other, images, seed=seed))

    process = model.process
    if isinstance(process, VP):
        for prediction, predicted in PREDICTED.items():
            if prediction != process.prediction:
                other = replace(process, prediction=prediction)
                yield reading(f"as a prediction of {predicted}", Reread(model, other), f"model.prediction={prediction}")
        last = process.betas.steps - 1
        yield reading("with time reversed", Reread(model, time=lambda time: last - time))
    elif isinstance(process, EDM):
        yield reading("on the VP process", Reread(model, ContinuousVP()), "model.kind=unet-vp, or dit-vp for a DiT")
    elif isinstance(process, ContinuousVP):
        yield reading("on the EDM process", Reread(model, EDM()), "model.kind=unet-edm, or dit-edm for a DiT")
        yield reading("with time reversed", Reread(model, time=lambda time: TIME_SCALE - time))
    yield reading("with its output negated", Reread(model, sign=-1.0))
    if model.limit == 1.0:
        yield reading("with pixels in [0, 1]", model, images=replace(batch, z=(batch.z + 1) / 2))
        return
    for name, factor in {"with z not scaled": 1 / SD_SCALE, "with z scaled twice": SD_SCALE}.items():
        yield reading(f"{name} ({factor:.3g} times)", model, images=replace(batch, z=factor * batch.z))
