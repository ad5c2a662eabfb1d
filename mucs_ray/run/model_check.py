"""The check of given weights before any work (spec/models 2.6), for a model that is read wrongly costs hours in vain.

It takes some training images, spread over the data set, and needs no Ray.
"""

from dataclasses import dataclass
from math import inf, log10
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from mucs_ray.data.table import Dataset, read_unit
from mucs_ray.diffusion.batch import Batch
from mucs_ray.diffusion.gate import DOUBTFUL, REFUSED, Reading, other_readings, ratio
from mucs_ray.diffusion.model import DiffusionModel
from mucs_ray.errors import InputError
from mucs_ray.spaces.codec import Codec

NUM_IMAGES, NUM_UNITS = 32, 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What a check found."""

    ratio: float
    """The loss of the model, as a share of that of the best linear denoiser."""
    others: tuple[Reading, ...] = ()
    """What it would be if the network were read otherwise; tried only if the ratio is high."""

    @property
    def line(self) -> str:
        """What there is to say, in one line."""
        if self.ratio < DOUBTFUL:
            return f"model check: {self.ratio:.2f} of the loss of knowing nothing of the images"
        told = f"the model's loss on training images is {self.ratio:.2f} of that of knowing only their mean square"
        best = min(self.others, key=lambda other: other.ratio, default=None)
        if best and best.ratio < DOUBTFUL and best.ratio < 0.8 * self.ratio:
            setting = f": --set {best.setting}" if best.setting else ", which cannot be set here"
            return f"{told}; read {best.name} it would be {best.ratio:.2f}{setting}"
        tried = ", ".join(f"{other.name} {other.ratio:.2f}" for other in self.others)
        return (
            f"{told}, and no other reading is better ({tried}); check that these weights were trained on images of this"
            " data set and size, and for long enough"
        )

    def facts(self) -> dict[str, Any]:
        """Return JSON values for the manifest."""
        return {"check_ratio": self.ratio, "check_others": {other.name: other.ratio for other in self.others}}


def check(model: DiffusionModel, batch: Batch, *, seed: int) -> Checked:
    """Measure how well a model denoises training images and, if badly, how well if it is read otherwise."""
    found = ratio(model, batch, seed=seed)
    if found < DOUBTFUL:
        return Checked(ratio=found)
    return Checked(ratio=found, others=tuple(other_readings(model, batch, seed=seed)))


def refuse(checked: Checked, source: str) -> None:
    """Raise InputError for a model that denoises hardly better than one that knows nothing."""
    if not checked.ratio <= REFUSED:  # also where it is not a number
        raise InputError(f"{source}: {checked.line}; --set engine.check_weights=false goes on all the same")


def some_images(dataset: Dataset, codec: Codec) -> Batch:
    """Return training images that are spread over the data set."""
    units = dataset.units("train")
    chosen = [units[at] for at in np.unique(np.linspace(0, len(units) - 1, NUM_UNITS).round().astype(int))]
    each = -(-NUM_IMAGES // len(chosen))
    tables = []
    for unit in chosen:
        rows = np.unique(np.linspace(0, unit.rows - 1, each).round().astype(int))
        tables.append(read_unit(unit).take(pa.array(rows)))
    batches = [dataset.batch(table, codec) for table in tables]
    joined = {name: torch.cat([batch.condition[name] for batch in batches]) for name in batches[0].condition}
    idx, z = torch.cat([batch.idx for batch in batches]), torch.cat([batch.z for batch in batches])
    return Batch(idx=idx, z=z, condition=joined)[slice(0, NUM_IMAGES)]


def codec_error(codec: Codec, batch: Batch) -> tuple[float, float]:
    """Return how much of a picture survives the codec.

    These are the PSNR of pictures that are decoded, encoded and decoded again, in dB, and the largest error of z in
    units of its spread.
    """
    pictures = codec.decode(batch.z)
    again = codec.encode((255 * pictures).round().to(torch.uint8))
    error = (codec.decode(again) - pictures).double().square().mean().item()
    psnr = inf if error == 0 else -10 * log10(error)
    return psnr, ((again - batch.z).abs().max() / batch.z.std()).item()
