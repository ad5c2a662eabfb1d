"""The losses of items under several models, each in a Ray task of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from ray import ObjectRef
from torch import Tensor

from mucs_ray.engine.models import Arrays, best_device, build_denoiser
from mucs_ray.engine.progress import Bar
from mucs_ray.engine.session import Cluster
from mucs_ray.engine.units import run_units
from mucs_ray.evaluation.item_loss import evaluation_noises, item_losses
from mucs_ray.models.spec import ModelSpec
from mucs_ray.store.items import load_item
from mucs_ray.store.run import Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class LossJob:
    """A job holds everything that a worker needs except the weights; it is small and picklable."""

    items: Stage
    """The stage whose items are measured."""
    model: ModelSpec
    noises: int
    seed: int


def losses_task(weights: Arrays, numbers: Sequence[int], job: LossJob) -> Tensor:
    """Return the losses of these items [q, n] under one model, in a worker."""
    with torch.inference_mode():
        model = build_denoiser(job.model, weights, best_device())
        items = [load_item(job.items, number) for number in numbers]
        return item_losses(model, items, evaluation_noises(model, job.noises, job.seed))


def losses_by_model(
    job: LossJob, models: Mapping[str, tuple[ObjectRef, Sequence[int]]], *, cluster: Cluster, bar: Bar
) -> dict[str, Tensor]:
    """Return the losses of items by the name of the model, given the weights and the items' numbers of each."""
    tasks = {name: (weights, numbers, job) for name, (weights, numbers) in models.items()}
    losses: dict[str, Tensor] = {}
    for name, measured in run_units(losses_task, tasks, cluster=cluster, bar=bar):
        losses[name] = measured
        bar.advance(1)
    return losses
