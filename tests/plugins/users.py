"""Three methods as users write them: two whose results are not numbers, and DINO with a small network."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from mucs_ray.attribution.base import Attributor, Tensors
from mucs_ray.attribution.card import MethodCard, MethodStage
from mucs_ray.attribution.dino import DINO
from mucs_ray.diffusion.batch import Batch
from mucs_ray.encoders.networks import Encoder
from mucs_ray.engine import attributors
from mucs_ray.errors import RunFailed

BAD = 21
"""The idx of the training image for which the methods fail."""


class Undefined(Attributor):
    """A method one of whose scores is 0 / 0."""

    card = MethodCard(
        name="undefined",
        label="Undefined",
        summary="0 / 0 for one image",
        stages=(MethodStage(name="score", hook="score", uses_model=False),),
    )

    def score(self, rows: Batch) -> Tensor:
        zero = (rows.idx != BAD).float()
        return (zero / zero)[:, None].expand(-1, len(self.context.items))


class UndefinedSum(Undefined):
    """A method that refuses to sum over the training set."""

    card = replace(
        Undefined.card,
        name="undefined-sum",
        label="Undefined sum",
        stages=(
            MethodStage(name="total", hook="accumulate", uses_model=False, uses_items=False),
            *Undefined.card.stages,
        ),
    )

    def accumulate(self, rows: Batch) -> Tensors:
        if BAD in rows.idx:
            raise RunFailed(f"the gradient of training image idx={BAD} is not finite")
        return {"count": torch.tensor(float(len(rows)))}


def small_network(path: str, device: torch.device) -> Encoder:
    """Return a stand-in for DINOv2, whose weights are drawn from the seed in the file."""
    seed = int(Path(path).read_text())
    weights = torch.randn(3 * 8 * 8, 16, generator=torch.Generator().manual_seed(seed))
    return Encoder(network=lambda images: images.flatten(1) @ weights, prepare=lambda x: x, dim=16, device=device)


attributors.LOAD_ENCODER["dino"] = small_network  # in every process that knows this module, workers too


class SmallDINO(DINO):
    """DINO, but for its network."""

    card = replace(DINO.card, name="small-dino", label="Small DINO")
