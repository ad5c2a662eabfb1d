"""The losses of pictures under the base of a fine-tune and under the fine-tuned model, in Ray tasks."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from ray import ObjectRef

from mucs_ray.data.table import Dataset, Unit, read_unit
from mucs_ray.diffusion.batch import Batch
from mucs_ray.engine.models import Arrays, best_device, build_denoiser
from mucs_ray.engine.progress import Bar
from mucs_ray.engine.session import Cluster
from mucs_ray.engine.units import run_units
from mucs_ray.evaluation.item_loss import as_batch, batch_losses, evaluation_noises
from mucs_ray.models.adapters import adapter
from mucs_ray.models.finetuned import base_weights
from mucs_ray.models.spec import ModelSpec
from mucs_ray.store.items import load_item
from mucs_ray.store.run import Stage

TARGETS = "targets"
"""The name of the task that measures the targets, beside those of the units of the training set."""
Table = tuple[Int64[np.ndarray, " q"], Float[np.ndarray, "q 2"]]
"""The idx of pictures, and their mean losses under the base and under the fine-tuned model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseJob:
    """A job holds everything that a worker needs except the weights of the fine-tuned model."""

    dataset: Dataset
    items: Stage
    """The stage that holds the targets."""
    model: ModelSpec
    base: str
    """The file of the base's weights."""
    noises: int
    seed: int


def losses_task(weights: Arrays, source: Unit | Sequence[int], job: BaseJob) -> Table:
    """Return the losses of a unit's images, or of the targets of these numbers, in a worker."""
    with torch.inference_mode():
        device, own = best_device(), job.model.own
        models = adapter(own).model(device, base_weights(own, job.base)), build_denoiser(job.model, weights, device)
        batch = batch_of(source, job)
        noises = evaluation_noises(models[0], job.noises, job.seed)
        losses = [batch_losses(model, batch, noises).double().mean(dim=1).numpy() for model in models]
    return batch.idx.numpy(), np.stack(losses, axis=1)


def batch_of(source: Unit | Sequence[int], job: BaseJob) -> Batch:
    """Return the images of a unit, or the targets of these numbers."""
    if isinstance(source, Unit):
        return job.dataset.batch(read_unit(source), adapter(job.model).codec(torch.device("cpu")))
    return as_batch([load_item(job.items, number) for number in source])


def base_losses(
    job: BaseJob, weights: ObjectRef, num_targets: int, *, cluster: Cluster, bar: Bar
) -> tuple[Table, Table]:
    """Return the losses of the targets, in their order, and those of all training images, in ascending order of idx."""
    units = {unit.name: unit for unit in job.dataset.units("train")}
    tasks = {name: (weights, source, job) for name, source in {TARGETS: range(num_targets), **units}.items()}
    found: dict[str, Table] = {}
    for name, table in run_units(losses_task, tasks, cluster=cluster, bar=bar):
        found[name] = table
        bar.advance(1)
    idx, losses = (np.concatenate([found[name][part] for name in units]) for part in (0, 1))
    order = np.argsort(idx)
    return found[TARGETS], (idx[order], losses[order])
