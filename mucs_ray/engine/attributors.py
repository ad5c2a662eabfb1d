"""This module builds a method in a worker: it fetches what a hook needs and moves it to the device.

The contract of methods is in mucs_ray.attribution.base.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache

import pyarrow as pa
import ray
import torch
from ray import ObjectRef

from mucs_ray.attribution.arriving import arriving
from mucs_ray.attribution.base import Attributor, Columns, MethodContext
from mucs_ray.attribution.card import MethodStage
from mucs_ray.attribution.first_losses import FirstLosses
from mucs_ray.config.recipe import Recipe
from mucs_ray.data.local import LocalImages
from mucs_ray.data.table import Dataset
from mucs_ray.diffusion.batch import Batch, Item
from mucs_ray.diffusion.condition import moved
from mucs_ray.diffusion.model import DiffusionModel
from mucs_ray.encoders.networks import load_clip, load_dino
from mucs_ray.engine.attempts import heartbeat
from mucs_ray.engine.models import Arrays, best_device, build_denoiser
from mucs_ray.engine.reading import read_rows
from mucs_ray.evaluation.metrics import ReadyMetric
from mucs_ray.models.adapters import adapter
from mucs_ray.spaces.codec import Codec
from mucs_ray.store.items import load_item
from mucs_ray.store.parts import matrix
from mucs_ray.store.run import Stage
from mucs_ray.training.order import batch_rows

LOAD_ENCODER = {"clip": load_clip, "dino": load_dino}


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributeJob:
    """A job is one stage of one method as workers receive it; it is small and picklable."""

    dataset: Dataset
    recipe: Recipe
    """The recipe with the method's settings in it."""
    attributor: type[Attributor]
    method_stage: MethodStage
    stage: Stage
    generated: Stage
    features: Stage | None
    """The stage that holds the method's features, or the rows of its sample, if this stage reads them."""
    encoder: ReadyMetric | None

    @property
    def source(self) -> str:
        """Return the name of what the stage streams: the training images, or features that an earlier stage made of
        them.
        """
        return self.features.name if self.features else "images"


@dataclass(frozen=True, slots=True, kw_only=True)
class Refs:
    """These references point to what earlier stages made, in Ray's object store."""

    weights: ObjectRef | None
    """The weights of F1, if the stage uses the model."""
    fitted: ObjectRef | None
    item_states: tuple[ObjectRef, ...] = ()

    def fetch(self) -> tuple[Arrays | None, Arrays, list[Arrays]]:
        """Return the weights, the fitted tensors and the items' tensors. Arrays stay in the node's shared memory."""
        weights = None if self.weights is None else ray.get(self.weights)
        fitted = {} if self.fitted is None else ray.get(self.fitted)
        return weights, fitted, ray.get(list(self.item_states))


@dataclass(slots=True, kw_only=True)
class SharedModels:
    """The methods of one worker share this: F1, its losses of the current batch, and the device's memory."""

    num_methods: int = 1
    first_losses: FirstLosses | None = None
    denoisers: dict[bool, DiffusionModel] = field(default_factory=dict)
    """F1 by whether its blocks are compiled; that is done in place, so it takes a copy of its own."""

    def denoiser(self, job: AttributeJob, weights: Arrays, device: torch.device) -> DiffusionModel:
        """Return F1; the first call builds it."""
        compiled = job.method_stage.compares_losses and job.recipe.score.compile == "on"
        if compiled not in self.denoisers:
            self.denoisers[compiled] = build_denoiser(job.recipe.model, weights, device)
        return self.denoisers[compiled]


def build(
    job: AttributeJob, weights: Arrays | None, device: torch.device | None = None, shared: SharedModels | None = None
) -> Attributor:
    """Build the method with what its stage needs: the model, the items, an encoder. Nothing else is read."""
    device, shared = device or best_device(), shared or SharedModels()
    recipe, card = job.recipe, job.dataset.card
    numbers = range(recipe.generate.items) if job.method_stage.uses_items else ()
    context = MethodContext(
        settings=recipe,
        device=device,
        num_images=card.num_images("train"),
        items=tuple(to_device(load_item(job.generated, number), device) for number in numbers),
        denoiser=None if weights is None else shared.denoiser(job, weights, device),
        batches=named_batches(job.dataset, adapter(recipe.model).codec(device), recipe.seed, device),
        codec=adapter(recipe.model).codec(device),
        encode=None if job.encoder is None else encoder(job.encoder, device),
        captures=captures_graphs(recipe, device),
        on_progress=heartbeat,
        first_losses=shared.first_losses,
        num_methods=shared.num_methods,
    )
    return job.attributor(context)


def captures_graphs(recipe: Recipe, device: torch.device) -> bool:
    """Return True if a worker on this device captures its forwards as CUDA graphs."""
    return device.type == "cuda" and recipe.engine.cuda_graphs


def to_device(item: Item, device: torch.device) -> Item:
    """Return the item with its z and condition on the device."""
    condition = moved(item.condition, device)
    return Item(number=item.number, idx=item.idx, condition=condition, z=item.z.to(device))


def encoder(ready: ReadyMetric, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function from pictures to unit vectors. It raises InputError if the weights' file has changed."""
    return LOAD_ENCODER[ready.name](ready.checked_path(), device).embed


def named_batches(
    dataset: Dataset, codec: Codec, seed: int, device: torch.device
) -> Callable[[str, int], Callable[[int], Batch]]:
    """Return batches(name, size)(step), which gives centre-cropped images in a shuffled order that `name` seeds."""

    @cache
    def images() -> LocalImages:
        return LocalImages(dataset, "train", codec=codec, on_unit=heartbeat)

    def named(name: str, size: int) -> Callable[[int], Batch]:
        def batches(step: int) -> Batch:
            heartbeat()
            rows = batch_rows(seed, name, step, num_images=len(images()), batch_size=size)
            return images().batch(rows).to(device)

        return batches

    return named


def to_rows(job: AttributeJob, table: pa.Table, device: torch.device) -> Batch | Columns:
    """Turn Arrow rows into what a hook takes, on the device.

    The first pictures can be computed with while the others are still being decoded and moved.
    """
    if job.features is None:
        codec = adapter(job.recipe.model).codec(device)
        if codec.encodes_each_alone:
            return arriving(len(table), lambda rows: job.dataset.batch(table[rows], codec), device)
        return job.dataset.batch(table, codec).to(device)
    columns = {name: torch.from_numpy(matrix(table, name)) for name in table.column_names if name != "idx"}
    return {"idx": torch.from_numpy(table["idx"].to_numpy()), **{n: tensor.to(device) for n, tensor in columns.items()}}


def stream_rows(job: AttributeJob, device: torch.device) -> Iterator[Batch | Columns]:
    """Yield all rows that a stage reads, one unit at a time."""
    for unit in job.dataset.units("train"):
        heartbeat()
        table = read_rows(job.features, unit)
        if len(table):  # a unit may have no row of the sample
            yield to_rows(job, table, device)
