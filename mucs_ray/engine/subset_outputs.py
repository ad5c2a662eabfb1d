"""This module computes what the models that were trained on subsets make of the targets (LDS).

`outputs` and `similarities` are the whole work of a task and do not use Ray; tests call them in a plain loop.

Axes: m targets, n noises, s subsets.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mucs_ray.diffusion.batch import Item
from mucs_ray.diffusion.model import DiffusionModel
from mucs_ray.diffusion.noise import NoiseSet, generator
from mucs_ray.engine.attempts import heartbeat
from mucs_ray.engine.compare import images
from mucs_ray.engine.generation import GenerateJob, generate_batch, lending, split
from mucs_ray.engine.models import best_device, build_denoiser, to_arrays
from mucs_ray.engine.progress import Bar
from mucs_ray.engine.session import Cluster
from mucs_ray.engine.units import run_units
from mucs_ray.errors import RunFailed
from mucs_ray.evaluation.item_loss import item_losses
from mucs_ray.evaluation.metrics import ReadyMetric
from mucs_ray.evaluation.subsets import NUM_NOISES
from mucs_ray.models.adapters import adapter
from mucs_ray.store import checkpoint
from mucs_ray.store.items import PlannedItem, load_item
from mucs_ray.store.run import Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class SubsetJob:
    """A job is the model of one subset; its stage keeps what the model makes of the targets."""

    generate: GenerateJob
    """How targets are generated; its stage holds the original ones."""
    targets: Sequence[PlannedItem]
    training: Stage
    weights: str
    """The name of the file of weights in the training's folder."""
    stage: Stage


class Published(NamedTuple):
    """This is what a task has published."""

    sha256: str
    seconds: float


def outputs_file(stage: Stage) -> str:
    """Return the name of the file with a model's outputs."""
    return stage.part("outputs", "safetensors")


def outputs(denoiser: DiffusionModel, targets: Sequence[PlannedItem], job: GenerateJob) -> dict[str, Tensor]:
    """Return "image" [m, *shape], each target generated again from its own noise, and "loss" [m].

    The loss is that of the original target, its mean over noises that all targets and models share.
    """
    condition_of, again = lending(job, next(denoiser.parameters()).device), list[Item]()
    for together in split(targets, job.config.items_per_forward):
        again += generate_batch(denoiser, condition_of(together), together, job.config, job.seed)
    levels = denoiser.process.training_levels(generator(job.seed, "lds/level"), NUM_NOISES)
    noises = NoiseSet.draw(job.seed, "lds/noise", levels, denoiser.shape)
    originals = [load_item(job.stage, target.number) for target in targets]
    loss = item_losses(denoiser, originals, noises).mean(dim=1)
    return {"image": torch.stack([item.z for item in again]), "loss": loss}


def outputs_task(job: SubsetJob) -> Published:
    """Compute and publish the outputs of one model, in a worker. RunFailed, naming it, if a number is not finite."""
    started = time.monotonic()
    training = job.training
    tensors, _ = checkpoint.parse(training.checked(job.weights), training.url(job.weights))
    with torch.inference_mode():
        denoiser = build_denoiser(job.generate.model, to_arrays(tensors), best_device())
        found = outputs(denoiser, job.targets, job.generate)
    if not all(values.isfinite().all() for values in found.values()):
        raise RunFailed(f"{job.stage.name}: an image or a loss is not finite")
    digest = checkpoint.save(job.stage.url(outputs_file(job.stage)), found, {"trained": training.fingerprint})
    return Published(digest, time.monotonic() - started)


def compute_outputs(jobs: Mapping[str, SubsetJob], *, cluster: Cluster, bar: Bar) -> Iterator[tuple[str, Published]]:
    """Yield what is published of each model by its name, in the order they end."""
    for name, published in run_units(
        outputs_task, {name: (job,) for name, job in jobs.items()}, cluster=cluster, bar=bar
    ):
        bar.advance(1)
        yield name, published


def load_outputs(stage: Stage) -> dict[str, Tensor]:
    """Read the outputs of one model, checked against the manifest."""
    file = outputs_file(stage)
    return checkpoint.parse(stage.checked(file), stage.url(file))[0]


def similarities(
    metric: ReadyMetric, job: GenerateJob, num_targets: int, stages: Sequence[Stage]
) -> Float[np.ndarray, "s m"]:
    """Return the similarity of each target to what each model makes in its place; higher means more similar."""
    device = best_device()
    similarity, codec = metric.load(device), adapter(job.model).codec(torch.device("cpu"))
    originals = images([(job.stage, number) for number in range(num_targets)], codec).to(device)
    rows = []
    for stage in stages:
        heartbeat()
        rows.append(similarity(originals, codec.decode(load_outputs(stage)["image"]).to(device)).cpu().numpy())
    return np.stack(rows)


def compare_outputs(
    metrics: Sequence[ReadyMetric],
    job: GenerateJob,
    num_targets: int,
    stages: Sequence[Stage],
    *,
    cluster: Cluster,
    bar: Bar,
) -> dict[str, Float[np.ndarray, "s m"]]:
    """Return the similarities of all models' images by the name of the metric, one Ray task for each metric."""
    units = {metric.name: (metric, job, num_targets, stages) for metric in metrics}
    found: dict[str, np.ndarray] = {}
    for name, values in run_units(similarities, units, cluster=cluster, bar=bar):
        found[name] = values
        bar.advance(1)
    return {metric.name: found[metric.name] for metric in metrics}
