"""The null loss, and unlearning: one Ray task an item, which publishes the changed tensors."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from ray import ObjectRef

from mucs_ray.attribution.base import Item
from mucs_ray.attribution.config import UnlearnConfig
from mucs_ray.attribution.unlearn import null_loss, unlearn
from mucs_ray.data.local import LocalImages
from mucs_ray.data.table import Dataset
from mucs_ray.diffusion.batch import Batch
from mucs_ray.diffusion.denoiser import EDMDenoiser
from mucs_ray.diffusion.loss import analytic_null_loss
from mucs_ray.engine.board import Board, as_task, new_board, results
from mucs_ray.engine.models import Arrays, best_device, build_denoiser
from mucs_ray.engine.progress import Bar
from mucs_ray.engine.session import Cluster
from mucs_ray.models.dit import DiT, DiTConfig
from mucs_ray.store import checkpoint
from mucs_ray.store.items import item_file, load_item
from mucs_ray.store.run import Stage
from mucs_ray.training.order import batch_rows
from mucs_ray.training.step import name_torch_stream

NULL_BATCH = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class UnlearnJob:
    """What is common to all items; small and picklable."""

    dataset: Dataset
    model: DiTConfig
    config: UnlearnConfig
    learning_rate: float
    seed: int
    bound: float
    generated: Stage
    stage: Stage


def named_batches(
    images: LocalImages, *, seed: int, name: str, batch_size: int, device: torch.device
) -> Callable[[int], Batch]:
    """batches(step): centre-cropped images in a shuffled order that belongs to `name`."""

    def batches(step: int) -> Batch:
        rows = batch_rows(seed, name, step, num_images=len(images), batch_size=batch_size)
        return images.batch(rows).to(device)

    return batches


def unlearn_item(
    denoiser: EDMDenoiser, item: Item, job: UnlearnJob, on_update: Callable[[int, float], None]
) -> tuple[str, dict[str, Any]]:
    """Unlearn one item and publish its tensors; (sha256, facts)."""
    started = time.monotonic()
    device = next(denoiser.parameters()).device
    images = LocalImages(job.dataset, "train")
    batch_size = min(job.config.batch_size, len(images))
    name = f"unlearn/item={item.idx}"
    unlearned = unlearn(
        denoiser,
        item,
        named_batches(images, seed=job.seed, name=name, batch_size=batch_size, device=device),
        bound=job.bound,
        config=job.config,
        learning_rate=job.learning_rate,
        seed=job.seed,
        on_update=on_update,
    )
    facts = {
        "number": item.number,
        "idx": item.idx,
        "outcome": unlearned.outcome,
        "updates": unlearned.updates,
        "null_loss": job.bound,
        "target": (1 - job.config.tolerance) * job.bound,
        "item_loss": unlearned.item_loss,
        "train_loss": unlearned.train_loss,
    }
    digest = checkpoint.save(job.stage.url(item_file(job.stage, item.number)), unlearned.tensors, facts)
    return digest, {**facts, "seconds": time.monotonic() - started}


def unlearn_task(weights: Arrays, number: int, job: UnlearnJob, board: Board) -> tuple[str, dict[str, Any]]:
    """unlearn_item in a worker."""
    denoiser = build_denoiser(job.model, weights, best_device())
    item = load_item(job.generated, number)
    return unlearn_item(denoiser, item, job, lambda step, loss: board.post(str(number), (step, loss)))


def unlearn_all(
    weights: ObjectRef, numbers: Sequence[int], job: UnlearnJob, *, cluster: Cluster, bar: Bar
) -> list[tuple[str, dict[str, Any]]]:
    """Unlearn items over the cluster, one task an item; (sha256, facts) of each in the order they end."""
    board = new_board()
    task = as_task(unlearn_task, cluster)
    tasks = [task.remote(weights, number, job, board) for number in numbers]

    def show() -> None:
        notes = board.read().values()
        if notes:
            bar.set(bar.done, f"{sum(step for step, _ in notes)} updates, {len(notes)} begun")

    ended = []
    for result in results(tasks, on_wait=show):
        ended.append(result)
        bar.advance(1)
    return ended


def drawn_null_loss(dataset: Dataset, model: DiTConfig, *, num_batches: int, seed: int) -> float:
    """The null loss by drawing, with the weights that training starts from (spec 7.1)."""
    name_torch_stream(seed, "train/init")
    device = best_device()
    images = LocalImages(dataset, "train")
    batches = named_batches(images, seed=seed, name="null", batch_size=min(NULL_BATCH, len(images)), device=device)
    return null_loss(EDMDenoiser(DiT(model)).to(device), batches, num_batches=num_batches, seed=seed)


def computed_null_loss(dataset: Dataset) -> float:
    """The null loss of a zero network, from the mean square of the training pixels (spec 7.1)."""
    total, count = 0.0, 0
    for table in dataset.stream("train"):
        image = dataset.batch(table).image
        total, count = total + image.double().square().sum().item(), count + image.numel()
    return analytic_null_loss(total / count)


def null_loss_task(dataset: Dataset, model: DiTConfig, config: UnlearnConfig, seed: int) -> float:
    """The null loss as the recipe asks for it."""
    if config.null_loss == "analytic":
        return computed_null_loss(dataset)
    return drawn_null_loss(dataset, model, num_batches=config.null_batches, seed=seed)
