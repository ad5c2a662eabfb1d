"""The check of given weights before any work (spec/models 2.6), for a model that is read wrongly costs hours in vain.

It takes some training images, spread over the data set, and needs no Ray.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, log10
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from mucs_ray.attribution.loss_change import scored_levels
from mucs_ray.config.recipe import Recipe
from mucs_ray.data.table import Dataset, read_unit
from mucs_ray.diffusion.batch import Batch
from mucs_ray.diffusion.condition import Condition
from mucs_ray.diffusion.gate import DOUBTFUL, REFUSED, Reading, other_readings, ratio
from mucs_ray.diffusion.levels import range_text
from mucs_ray.diffusion.model import DiffusionModel
from mucs_ray.diffusion.noise import generator, normal
from mucs_ray.diffusion.samplers import draw
from mucs_ray.errors import InputError
from mucs_ray.models.adapters import adapter
from mucs_ray.models.spec import ModelSpec
from mucs_ray.spaces.codec import Codec
from mucs_ray.spaces.pictures import to_bytes
from mucs_ray.store.items import to_png
from mucs_ray.store.weights import load_weights

NUM_IMAGES, NUM_UNITS = 32, 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """The result of a check."""

    ratio: float
    """The loss of the model, as a share of that of the best linear denoiser."""
    others: tuple[Reading, ...] = ()
    """What it would be if the network were read otherwise; tried only if the ratio is high."""

    @property
    def line(self) -> str:
        """What there is to say, in one line."""
        if self.ratio < DOUBTFUL:
            return f"model check: {self.ratio:.2f} of the loss of knowing nothing of the images"
        loss = f"the model's loss on training images is {self.ratio:.2f} of that of knowing only their mean square"
        best = min(self.others, key=lambda other: other.ratio, default=None)
        if best and best.ratio < DOUBTFUL and best.ratio < 0.8 * self.ratio:
            setting = f": --set {best.setting}" if best.setting else ", which cannot be set here"
            return f"{loss}; read {best.name} it would be {best.ratio:.2f}{setting}"
        tried = ", ".join(f"{other.name} {other.ratio:.2f}" for other in self.others)
        return (
            f"{loss}, and no other reading is better ({tried}); check that these weights were trained on images of this"
            " data set and size, and for long enough"
        )

    def facts(self) -> dict[str, Any]:
        """Return JSON values for the manifest."""
        return {"check_ratio": self.ratio, "check_others": {other.name: other.ratio for other in self.others}}


def check(model: DiffusionModel, batch: Batch, *, seed: int) -> Checked:
    """Measure how well a model denoises training images and, if badly, how well if it is read otherwise."""
    own_ratio = ratio(model, batch, seed=seed)
    if own_ratio < DOUBTFUL:
        return Checked(ratio=own_ratio)
    return Checked(ratio=own_ratio, others=tuple(other_readings(model, batch, seed=seed)))


def refuse(checked: Checked, source: str) -> None:
    """Raise InputError for a model that denoises hardly better than one that knows nothing."""
    if not checked.ratio <= REFUSED:  # also where it is not a number
        raise InputError(f"{source}: {checked.line}; --set engine.check_weights=false goes on all the same")


def some_images(dataset: Dataset, codec: Codec) -> Batch:
    """Return training images that are spread over the data set."""
    units = dataset.units("train")
    chosen = [units[at] for at in np.unique(np.linspace(0, len(units) - 1, NUM_UNITS).round().astype(int))]
    rows_a_unit = -(-NUM_IMAGES // len(chosen))
    tables = []
    for unit in chosen:
        rows = np.unique(np.linspace(0, unit.rows - 1, rows_a_unit).round().astype(int))
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """What `mucs-ray model check` tells."""

    model: str
    checked: Checked
    psnr: float
    """Of pictures that go through the codec, in dB."""
    z_error: float
    """The largest error of z that went through the codec, in units of its spread."""
    noise: str
    """The range of noise on which a run would score."""
    picture: bytes
    """A sampled image, as PNG."""

    @property
    def lines(self) -> list[str]:
        """The findings, for a terminal."""
        codec = f"codec: PSNR {self.psnr:.1f} dB, z comes back to {self.z_error:.2g} of its spread"
        return [self.model, self.checked.line, codec, f"scores at {self.noise}"]

    def to_dict(self) -> dict[str, Any]:
        """The findings for --json."""
        psnr = None if self.psnr == inf else self.psnr
        codec = {"codec_psnr": psnr, "codec_z_error": self.z_error}
        return {"model": self.model, **self.checked.facts(), **codec, "noise": self.noise}


def examine(recipe: Recipe, dataset: Dataset) -> Examined:
    """Check a recipe's weights, or the model's own, and sample an image. InputError if it has neither."""
    if recipe.trains:
        raise InputError("no weights to check: the recipe trains its model; give some with --weights")
    spec, tensors = given_weights(recipe)
    kind, device = adapter(spec), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    codec, model = kind.codec(device), kind.model(device, tensors)
    images = some_images(dataset, codec).to(device)
    psnr, z_error = codec_error(codec, images)
    return Examined(
        model=spec.describe(),
        checked=check(model, images, seed=recipe.seed),
        psnr=psnr,
        z_error=z_error,
        noise=range_text(model.process, scored_levels(model.process, recipe.score, recipe.seed)),
        picture=sample(model, codec, images[:1].condition, recipe),
    )


def pipeline_block(folder: str) -> tuple[dict[str, str], str]:
    """Return what there is to say of a pipeline's folder, as facts by name and as one block of lines."""
    from mucs_ray.models.pipelines.summary import summary

    facts = summary(folder)
    width = max(map(len, facts))
    return facts, "\n".join(f"{name:<{width}}  {fact}" for name, fact in facts.items())


def sample(model: DiffusionModel, codec: Codec, condition: Condition, recipe: Recipe) -> bytes:
    """Return an image that is sampled from the model for one condition, as the run samples, as PNG."""
    config, device = recipe.generate, next(model.parameters()).device
    noise = normal(generator(recipe.seed, "check/sample"), 1, *model.shape).to(device)
    sampled = draw(
        model,
        noise,
        condition,
        sampler=config.sampler,
        steps=config.steps,
        guidance=config.guidance,
        compat=config.compat,
        clip=config.clip,
        step_noise=lambda step: normal(generator(recipe.seed, f"check/step={step}"), *noise.shape).to(device),
    )
    return to_png(to_bytes(codec.decode(sampled)[0]))


def given_weights(recipe: Recipe) -> tuple[ModelSpec, Mapping[str, torch.Tensor]]:
    """Read the weights that the recipe names, or else those that come with its model."""
    if recipe.weights is not None:
        return load_weights(recipe.weights, recipe.model.to_dict())
    return recipe.model, adapter(recipe.model).model(torch.device("cpu")).network.state_dict()
