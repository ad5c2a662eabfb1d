"""This module generates the items in Ray tasks. An item depends on its own named noise only (spec 6)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ray import ObjectRef

from mucs_ray.config.recipe import GenerateConfig
from mucs_ray.data.local import LocalImages
from mucs_ray.data.table import Dataset
from mucs_ray.diffusion.batch import Item
from mucs_ray.diffusion.condition import Condition, one_by_one, stacked
from mucs_ray.diffusion.model import DiffusionModel
from mucs_ray.diffusion.noise import generator
from mucs_ray.diffusion.samplers import draw_named
from mucs_ray.engine.attempts import heartbeat
from mucs_ray.engine.coordinator import Coordinator, new_coordinator
from mucs_ray.engine.models import Arrays, best_device, build_denoiser
from mucs_ray.engine.progress import Bar
from mucs_ray.engine.session import Cluster
from mucs_ray.engine.units import run_units
from mucs_ray.models.adapters import adapter
from mucs_ray.models.spec import ModelSpec
from mucs_ray.spaces.pixels import PIXELS
from mucs_ray.store.item_names import item_file, item_name
from mucs_ray.store.items import PlannedItem, Role, save_item
from mucs_ray.store.run import Stage


def plan_items(dataset: Dataset, config: GenerateConfig, seed: int) -> list[PlannedItem]:
    """Choose images that lend their conditions in a seeded order: first the targets, then the controls (spec 6)."""
    idx = np.concatenate([table["idx"].to_numpy() for table in dataset.stream(config.conditions, ["idx"])])
    order = generator(seed, "generate/conditions").permutation(len(idx))[: config.items + config.controls]

    def role(number: int) -> Role:
        return "target" if number < config.items else "control"

    return [
        PlannedItem(number=number, row=row, idx=int(idx[row]), role=role(number))
        for number, row in enumerate(order.tolist())
    ]


def generate_batch(
    denoiser: DiffusionModel, condition: Condition, planned: Sequence[PlannedItem], config: GenerateConfig, seed: int
) -> list[Item]:
    """Generate some items as one batch from their conditions, each from its own named noise.

    To the last bit an item is independent of others only where it is alone in its batch.
    """
    images = draw_named(denoiser, condition, [planned_item.idx for planned_item in planned], config, seed).cpu()
    conditions = one_by_one(condition, len(planned))
    return [
        Item(number=planned_item.number, idx=planned_item.idx, condition=own_condition, z=image)
        for planned_item, own_condition, image in zip(planned, conditions, images, strict=True)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateJob:
    """A job holds everything that a worker needs except the weights; it is small and picklable."""

    dataset: Dataset
    model: ModelSpec
    config: GenerateConfig
    seed: int
    stage: Stage
    conditions: Sequence[Condition] | None = None
    """The conditions by the items' rows; None if images of the data set lend them."""


def generate_items(
    denoiser: DiffusionModel, planned: Sequence[PlannedItem], job: GenerateJob, on_item: Callable[[int], None]
) -> dict[str, str]:
    """Generate and publish some items, and return the sha256 by file."""
    device = next(denoiser.parameters()).device
    codec, condition_of = adapter(job.model).codec(device), lending(job, device)
    digests = {}
    for together in split(planned, job.config.items_per_forward):
        items = generate_batch(denoiser, condition_of(together), together, job.config, job.seed)
        for planned_item, item in zip(together, items, strict=True):
            digests[item_file(job.stage, planned_item.number)] = save_item(
                job.stage, item, codec, {"role": planned_item.role}
            )
            on_item(planned_item.number)
    return digests


def lending(job: GenerateJob, device: torch.device) -> Callable[[Sequence[PlannedItem]], Condition]:
    """Return a function that returns the condition of some items as one batch."""
    if (given := job.conditions) is not None:
        return lambda planned: stacked([given[planned_item.row] for planned_item in planned])
    codec = adapter(job.model).codec(device) if job.model.reads_text else PIXELS
    lenders = LocalImages(job.dataset, job.config.conditions, codec=codec, on_unit=heartbeat)
    return lambda planned: lent(lenders, planned)


def lent(lenders: LocalImages, planned: Sequence[PlannedItem]) -> Condition:
    """Return the condition of items, from the images that lend theirs."""
    return lenders.batch(np.asarray([planned_item.row for planned_item in planned])).condition


def split(planned: Sequence[PlannedItem], size: int) -> list[Sequence[PlannedItem]]:
    """Split the items into lists of at most `size`."""
    return [planned[at : at + size] for at in range(0, len(planned), size)]


def generate_task(
    weights: Arrays, planned: list[PlannedItem], job: GenerateJob, coordinator: Coordinator
) -> dict[str, str]:
    """Call generate_items in a worker."""
    with torch.inference_mode():
        denoiser = build_denoiser(job.model, weights, best_device())
        return generate_items(denoiser, planned, job, lambda number: coordinator.post(str(number), True))


def generate(
    job: GenerateJob, groups: Sequence[tuple[ObjectRef, Sequence[PlannedItem]]], *, cluster: Cluster, bar: Bar
) -> dict[str, str]:
    """Generate items over the cluster, and return the sha256 by file. Each group of items has weights of its own."""
    coordinator = new_coordinator()
    tasks: dict[str, tuple[Any, ...]] = {}
    for weights, planned in groups:
        together = split(planned, job.config.items_per_forward)
        num_tasks = min(max(1, cluster.num_workers // len(groups)), len(together))
        shares = [
            [planned_item for batch in together[start::num_tasks] for planned_item in batch]
            for start in range(num_tasks)
        ]
        tasks |= {task_name(share): (weights, share, job, coordinator) for share in shares}
    done_before = bar.done
    digests: dict[str, str] = {}

    def show_progress() -> None:
        bar.set(done_before + len(coordinator.read()))

    for _, new_digests in run_units(
        generate_task, tasks, cluster=cluster, bar=bar, coordinator=coordinator, on_wait=show_progress
    ):
        digests |= new_digests
    bar.set(bar.total)
    return digests


def task_name(planned: Sequence[PlannedItem]) -> str:
    """Return a name for the items of a task, e.g. "item-0000 and 4 more"."""
    more = f" and {len(planned) - 1} more" if len(planned) > 1 else ""
    return f"{item_name(planned[0].number)}{more}"
