"""A group is unlearned by redirection (GUDA-C): its images are seen as the full model sees anchors in their place.

    loss = mean (r(x, c) - r_full(x_anchor, c_anchor))^2    at the same level, with the same noise

An anchor is the image itself with another condition, or an image of another group. The difference is measured in the
units and with the weight of training, as that of the other images is.
Axes: b images.
"""

import numpy as np
import torch
from torch import Tensor

from mucs_ray.attribution.forgetting.losses import Anchors, Draws, ForgetLosses, Help, answer, by_chance, weighted
from mucs_ray.diffusion.condition import moved
from mucs_ray.diffusion.model import DiffusionModel


def redirected_losses(
    changed: DiffusionModel, full: DiffusionModel, drawn: Draws, helped: Help, stream: np.random.Generator
) -> ForgetLosses:
    """Return the losses of the group's images towards their anchors, which are drawn from the stream."""
    assert helped.anchors is not None
    process, batch = changed.process, drawn.batch
    raw = answer(changed, drawn, drawn.noisy(process))
    target = anchor_answer(full, drawn, helped.anchors(batch.idx, stream), helped)
    training = weighted(process, drawn, raw, process.target(batch.z, drawn.noise, drawn.level))
    return ForgetLosses(target=weighted(process, drawn, raw, target), training=training.detach())


@torch.no_grad()
def anchor_answer(full: DiffusionModel, drawn: Draws, anchors: Anchors, helped: Help) -> Tensor:
    """Return the full model's answer to anchors; images of other groups are mirrored where those of the group are."""
    process = full.process
    z = drawn.batch.z if anchors.z is None else by_chance(anchors.z.to(drawn.noise), drawn.mirrored, helped.mirror)
    condition = {**drawn.batch.condition, **moved(anchors.condition, z.device)}
    return full.raw(process.noised(z, drawn.noise, drawn.level), process.at(drawn.level), condition)
