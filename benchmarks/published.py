"""The published scoring procedure, plainly, from the description of the method alone: what sidebyside.py compares with.

One pass over the images for F1, then one pass an item with that item's weights loaded into the same network. A forward
takes all noises of a micro-batch of images (published: 16 images x 100 noises). Eager, one process. Nothing of
mucs_ray is used here but the raw network F, which is handed in.
Axes: b images, s noises, p = pairs of image and noise in a forward, i items, c h w image, d condition.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

SIGMA_DATA = 0.5
EPSILON = 1e-3


def skews(
    network: nn.Module,
    first: Mapping[str, Tensor],
    unlearned: Sequence[Mapping[str, Tensor]],
    images: Float[Tensor, "b c h w"],
    conditions: Float[Tensor, "b d"] | None,
    sigma: Float[Tensor, " s"],
    noise: Float[Tensor, "s c h w"],
    *,
    batch: int,
    bf16: bool,
) -> Float[Tensor, "b i"]:
    """Compute skews. `first` holds all tensors of F1; `unlearned` those that unlearning changed, for each item."""

    def losses() -> Float[Tensor, "b s"]:
        cuts = [slice(at, at + batch) for at in range(0, len(images), batch)]
        rows = [
            micro_batch(network, images[cut], None if conditions is None else conditions[cut], sigma, noise, bf16=bf16)
            for cut in cuts
        ]
        return torch.cat(rows)

    network.load_state_dict(dict(first))
    before = losses()
    columns = []
    for changed in unlearned:
        network.load_state_dict(dict(changed), strict=False)
        after = losses()
        columns.append(((after - before) / (after + before + EPSILON)).mean(dim=1))
    return torch.stack(columns, dim=1)


@torch.no_grad()
def micro_batch(
    network: nn.Module,
    images: Float[Tensor, "b c h w"],
    conditions: Float[Tensor, "b d"] | None,
    sigma: Float[Tensor, " s"],
    noise: Float[Tensor, "s c h w"],
    *,
    bf16: bool,
) -> Float[Tensor, "b s"]:
    """Compute EDM's weighted loss of every image at every noise, in one forward."""
    clean = images.repeat_interleave(len(sigma), dim=0)
    level = sigma.repeat(len(images))[:, None, None, None]
    noisy = clean + level * noise.repeat(len(images), 1, 1, 1)
    if conditions is not None:
        conditions = conditions.repeat_interleave(len(sigma), dim=0)
    power = level**2 + SIGMA_DATA**2
    with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=bf16):
        raw = network(noisy / power.sqrt(), torch.log(level.flatten() + 1e-6) / 4, conditions)
    denoised = SIGMA_DATA**2 / power * noisy + level * SIGMA_DATA / power.sqrt() * raw.float()
    weight = power / (level * SIGMA_DATA) ** 2
    return (weight * (denoised - clean) ** 2).mean(dim=(1, 2, 3)).view(len(images), len(sigma))
