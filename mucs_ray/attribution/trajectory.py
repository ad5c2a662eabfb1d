"""The item's own trajectory: the noisy images that the network was asked about when the item was generated.

A regeneration from the same noise asks about nearly the same ones, so that the network's answers there decide whether
the item comes back. With x_t such an image at level t and z the item, the draw is the level t with the noise
n_t = (x_t - alpha_t z) / s_t, from which the loss makes x_t again.

Axes: m visited images, b draws, *shape of an image.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mucs_ray.attribution.base import MethodSettings
from mucs_ray.diffusion.batch import Item
from mucs_ray.diffusion.condition import for_each, moved
from mucs_ray.diffusion.model import DiffusionModel
from mucs_ray.diffusion.rows import per_row
from mucs_ray.diffusion.samplers import draw_named
from mucs_ray.errors import InputError

FAR = 0.1
"""The share of the item's mean square by which an item may differ when it is generated again, on another machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """The levels that the sampler visited, and the noise there, relative to the item."""

    level: Float[Tensor, " m"]
    noise: Float[Tensor, "m *shape"]
    share: float
    """The share of draws that are taken from here."""

    def replace(
        self, level: Float[Tensor, " b"], noise: Float[Tensor, "b *shape"], stream: np.random.Generator
    ) -> tuple[Float[Tensor, " b"], Float[Tensor, "b *shape"]]:
        """Return draws of which the last ones, of this share, are visited images, chosen by `stream`."""
        count = round(self.share * len(level))
        rows = torch.from_numpy(stream.integers(len(self.level), size=count))
        kept = len(level) - count
        return torch.cat([level[:kept], self.level[rows]]), torch.cat([noise[:kept], self.noise[rows]])


def trajectory_of(model: DiffusionModel, item: Item, settings: MethodSettings, share: float) -> Trajectory:
    """Generate the item again and return what the network was asked, on the CPU.

    InputError if that gives another image: the item was not generated with these settings, or by somebody else.
    """
    device = next(model.parameters()).device
    asked: list[tuple[Tensor, Tensor]] = []

    def record(_: object, arguments: tuple[Tensor, ...]) -> None:
        noisy, level = arguments[:2]
        asked.append((noisy[:1].cpu(), level[:1].cpu()))  # guidance asks twice about each image

    recorder = model.register_forward_pre_hook(record)
    try:
        condition = for_each(moved(item.condition, device), 1)
        again = draw_named(model, condition, [item.idx], settings.generate, settings.seed)[0].cpu()
    finally:
        recorder.remove()
    z = item.z.cpu()
    if (again - z).square().mean() > FAR * z.square().mean():
        raise InputError(
            f"method.mucs.trajectory needs items that this run generated, and item {item.number} is none: generated"
            " again it is another image; set it to 0"
        )
    level = torch.cat([level for _, level in asked])
    noisy = torch.cat([noisy for noisy, _ in asked])
    at = model.process.at(level)
    noise = (noisy - per_row(at.alpha, noisy) * z) / per_row(at.s, noisy)
    return Trajectory(level=level, noise=noise, share=share)
