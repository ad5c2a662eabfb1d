"""Generating the items: Ray tasks, each with some of them. An item depends on its own named noise only (spec 6)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ray import ObjectRef
from torch import Tensor

from mucs_ray.config.recipe import GenerateConfig
from mucs_ray.data.local import LocalImages
from mucs_ray.data.table import Dataset
from mucs_ray.diffusion.batch import Item
from mucs_ray.diffusion.condition import moved, one_by_one
from mucs_ray.diffusion.model import DiffusionModel
from mucs_ray.diffusion.noise import generator, normal
from mucs_ray.diffusion.samplers import draw
from mucs_ray.engine.attempts import heartbeat
from mucs_ray.engine.coordinator import Coordinator, new_coordinator
from mucs_ray.engine.models import Arrays, best_device, build_denoiser
from mucs_ray.engine.progress import Bar
from mucs_ray.engine.session import Cluster
from mucs_ray.engine.units import run_units
from mucs_ray.models.adapters import adapter
from mucs_ray.models.spec import ModelSpec
from mucs_ray.store.item_names import item_file, item_name
from mucs_ray.store.items import PlannedItem, Role, save_item
from mucs_ray.store.run import Stage


def plan_items(dataset: Dataset, config: GenerateConfig, seed: int) -> list[PlannedItem]:
    """Images that lend their conditions, of the split that is asked for, in a seeded order: first the targets, then the
    controls (spec 6).
    """
    idx = np.concatenate([table["idx"].to_numpy() for table in dataset.stream(config.conditions, ["idx"])])
    order = generator(seed, "generate/conditions").permutation(len(idx))[: config.items + config.controls]

    def role(number: int) -> Role:
        return "target" if number < config.items else "control"

    return [
        PlannedItem(number=number, row=row, idx=int(idx[row]), role=role(number))
        for number, row in enumerate(order.tolist())
    ]


def generate_together(
    denoiser: DiffusionModel, lenders: LocalImages, planned: Sequence[PlannedItem], config: GenerateConfig, seed: int
) -> list[Item]:
    """Some items as one batch, each from its own named noise: alone in it, one does not depend on others to the last
    bit.
    """
    device = next(denoiser.parameters()).device
    batch = lenders.batch(np.asarray([each.row for each in planned]))
    condition = moved(batch.condition, device)
    size = denoiser.shape
    noise = torch.cat([normal(generator(seed, f"generate/idx={each.idx}"), 1, *size) for each in planned]).to(device)

    def step_noise(step: int) -> Tensor:
        streams = [generator(seed, f"generate/idx={each.idx}/step={step}") for each in planned]
        return torch.cat([normal(stream, 1, *size) for stream in streams]).to(device)

    images = draw(
        denoiser,
        noise,
        condition,
        sampler=config.sampler,
        steps=config.steps,
        guidance=config.guidance,
        compat=config.compat,
        step_noise=step_noise,
    ).cpu()
    conditions = one_by_one(batch.condition, len(planned))
    return [
        Item(number=each.number, idx=each.idx, condition=own, z=image)
        for each, own, image in zip(planned, conditions, images, strict=True)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateJob:
    """Everything a worker needs but the weights; small and picklable."""

    dataset: Dataset
    model: ModelSpec
    config: GenerateConfig
    seed: int
    stage: Stage


def generate_items(
    denoiser: DiffusionModel, planned: Sequence[PlannedItem], job: GenerateJob, done: Callable[[int], None]
) -> dict[str, str]:
    """Generate and publish some items; sha256 by file."""
    codec = adapter(job.model).codec(next(denoiser.parameters()).device)
    lenders = LocalImages(job.dataset, job.config.conditions, on_unit=heartbeat)
    digests = {}
    for some in batches(planned, job.config.items_per_forward):
        for each, item in zip(some, generate_together(denoiser, lenders, some, job.config, job.seed), strict=True):
            digests[item_file(job.stage, each.number)] = save_item(job.stage, item, codec, {"role": each.role})
            done(each.number)
    return digests


def batches(planned: Sequence[PlannedItem], size: int) -> list[Sequence[PlannedItem]]:
    """Cuts of this many items."""
    return [planned[at : at + size] for at in range(0, len(planned), size)]


def generate_task(
    weights: Arrays, planned: list[PlannedItem], job: GenerateJob, coordinator: Coordinator
) -> dict[str, str]:
    """generate_items in a worker."""
    with torch.inference_mode():
        denoiser = build_denoiser(job.model, weights, best_device())
        return generate_items(denoiser, planned, job, lambda number: coordinator.post(str(number), True))


def generate(
    job: GenerateJob, groups: Sequence[tuple[ObjectRef, Sequence[PlannedItem]]], *, cluster: Cluster, bar: Bar
) -> dict[str, str]:
    """Generate items over the cluster, each group of them with weights of its own; sha256 by file."""
    coordinator = new_coordinator()
    tasks: dict[str, tuple[Any, ...]] = {}
    for weights, planned in groups:
        together = batches(planned, job.config.items_per_forward)
        num_tasks = min(max(1, cluster.num_workers // len(groups)), len(together))
        shares = [[each for some in together[start::num_tasks] for each in some] for start in range(num_tasks)]
        tasks |= {items_name(share): (weights, share, job, coordinator) for share in shares}
    first = bar.done
    digests: dict[str, str] = {}

    def show() -> None:
        bar.set(first + len(coordinator.read()))

    for _, some in run_units(generate_task, tasks, cluster=cluster, bar=bar, coordinator=coordinator, on_wait=show):
        digests |= some
    bar.set(bar.total)
    return digests


def items_name(planned: Sequence[PlannedItem]) -> str:
    """What a task's items are called together, e.g. "item-0000 and 4 more"."""
    more = f" and {len(planned) - 1} more" if len(planned) > 1 else ""
    return f"{item_name(planned[0].number)}{more}"
