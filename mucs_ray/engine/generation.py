"""Generating the items: Ray tasks, each with some of them. An item depends on its own named noise only (spec 6)."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import ray
import torch
from ray import ObjectRef
from ray.actor import ActorHandle

from mucs_ray.attribution.base import Item
from mucs_ray.config import GenerateConfig
from mucs_ray.data.local import LocalImages
from mucs_ray.data.table import Dataset
from mucs_ray.diffusion.denoiser import EDMDenoiser, guided
from mucs_ray.diffusion.noise import generator, normal
from mucs_ray.diffusion.sampler import sample
from mucs_ray.engine.board import new_board, read, results
from mucs_ray.engine.models import Arrays, best_device, build_denoiser
from mucs_ray.engine.progress import Bar
from mucs_ray.engine.session import Cluster
from mucs_ray.models.dit import DiTConfig
from mucs_ray.store.items import PlannedItem, Role, item_file, save_item
from mucs_ray.store.run import Stage


def plan_items(dataset: Dataset, config: GenerateConfig, seed: int) -> list[PlannedItem]:
    """Test images in a seeded order: first the targets, then the controls (spec 6)."""
    idx = np.concatenate([table["idx"].to_numpy() for table in dataset.stream("test", ["idx"])])
    order = generator(seed, "generate/conditions").permutation(len(idx))[: config.items + config.controls]

    def role(number: int) -> Role:
        return "target" if number < config.items else "control"

    return [
        PlannedItem(number=number, row=row, idx=int(idx[row]), role=role(number))
        for number, row in enumerate(order.tolist())
    ]


def generate_item(
    denoiser: EDMDenoiser, test: LocalImages, planned: PlannedItem, config: GenerateConfig, seed: int
) -> Item:
    """One item, alone in its batch, so that it does not depend on the others to the last bit."""
    device = next(denoiser.parameters()).device
    batch = test.batch(np.asarray([planned.row]))
    condition = None if batch.condition is None else batch.condition.to(device)
    noise = normal(generator(seed, f"generate/idx={planned.idx}"), 1, *batch.image.shape[1:]).to(device)
    image = sample(guided(denoiser, config.guidance), noise, condition, num_steps=config.steps)
    own_condition = None if batch.condition is None else batch.condition[0]
    return Item(number=planned.number, idx=planned.idx, condition=own_condition, image=image[0].cpu())


def generate_items(
    denoiser: EDMDenoiser,
    dataset: Dataset,
    planned: Sequence[PlannedItem],
    config: GenerateConfig,
    seed: int,
    stage: Stage,
    done: Callable[[int], None],
) -> dict[str, str]:
    """Generate and publish some items; sha256 by file."""
    test = LocalImages(dataset, "test")
    digests = {}
    for each in planned:
        item = generate_item(denoiser, test, each, config, seed)
        digests[item_file(stage, each.number)] = save_item(stage, item, {"role": each.role})
        done(each.number)
    return digests


@ray.remote
def generate_task(
    model: DiTConfig, weights: Arrays, board: ActorHandle, planned: list[PlannedItem], arguments: dict[str, Any]
) -> dict[str, str]:
    """generate_items in a worker."""
    with torch.inference_mode():
        denoiser = build_denoiser(model, weights, best_device())
        return generate_items(
            denoiser, planned=planned, done=lambda number: board.post.remote(str(number), True), **arguments
        )


def generate(
    model: DiTConfig,
    weights: ObjectRef,
    planned: Sequence[PlannedItem],
    *,
    dataset: Dataset,
    config: GenerateConfig,
    seed: int,
    stage: Stage,
    cluster: Cluster,
    bar: Bar,
) -> dict[str, str]:
    """Generate the planned items over the cluster; sha256 by file."""
    board = new_board()
    arguments = {"dataset": dataset, "config": config, "seed": seed, "stage": stage}
    num_tasks = min(cluster.num_workers, len(planned))
    task = generate_task.options(**cluster.worker_options)
    tasks = [
        task.remote(model, weights, board, list(planned[start::num_tasks]), arguments) for start in range(num_tasks)
    ]
    first = bar.done
    digests: dict[str, str] = {}
    for some in results(tasks, on_wait=lambda: bar.set(first + len(read(board)))):
        digests |= some
    bar.set(bar.total)
    return digests
