"""Models without a group, and the errors of models for generated images: one Ray task for each group."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from ray import ObjectRef
from torch import Tensor

from mucs_ray.attribution.forgetting.config import ANCHORED, Unlearner
from mucs_ray.attribution.forgetting.forget import Batches, Forgotten, forget_group
from mucs_ray.attribution.forgetting.losses import Help
from mucs_ray.attribution.forgetting.score import query_errors, score_grid
from mucs_ray.config.recipe import Recipe
from mucs_ray.data.group_anchors import anchors_of
from mucs_ray.data.group_images import GroupImages
from mucs_ray.data.local import LocalImages
from mucs_ray.data.table import Dataset
from mucs_ray.diffusion.batch import Batch
from mucs_ray.diffusion.model import DiffusionModel
from mucs_ray.engine.attempts import heartbeat
from mucs_ray.engine.coordinator import Coordinator, new_coordinator
from mucs_ray.engine.models import Arrays, best_device, build_denoiser
from mucs_ray.engine.progress import Bar
from mucs_ray.engine.session import Cluster
from mucs_ray.engine.units import run_units
from mucs_ray.models.adapters import adapter
from mucs_ray.spaces.pixels import PIXELS
from mucs_ray.store import checkpoint
from mucs_ray.store.items import load_item
from mucs_ray.store.run import Stage
from mucs_ray.training.numerics import as_in_training


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupJob:
    """A job is one stage as workers receive it; it is small and picklable."""

    dataset: Dataset
    recipe: Recipe
    stage: Stage
    generated: Stage
    names: tuple[str, ...]
    """The names of all groups, in order of their numbers."""


def forget(
    model: DiffusionModel,
    images: LocalImages,
    members: frozenset[int],
    number: int,
    unlearner: Unlearner,
    job: GroupJob,
    coordinator: Coordinator | None = None,
) -> Forgotten:
    """Unlearn one group of the training set."""
    recipe, device = job.recipe, next(model.parameters()).device
    config, cut = recipe.groups, GroupImages(images, members)

    def on_device(batches: Batches) -> Batches:
        def of_step(step: int) -> Batch:
            heartbeat()
            return batches(step).to(device)

        return of_step

    retain, group = (
        on_device(cut.batches(part, group=number, batch_size=config.batch_size, seed=recipe.seed))
        for part in ("retain", "forget")
    )
    needs_neighbours = unlearner.startswith("retrack")
    mirrors = recipe.train.flip and images.codec is PIXELS
    helped = Help(
        neighbours=cut.neighbours_of(cut.neighbours(config.neighbours)) if needs_neighbours else None,
        guide=model if model.nothing(1) else None,
        anchors=anchors_of(unlearner, cut, job.dataset, job.names, number, config, nothing=model.nothing)
        if unlearner in ANCHORED
        else None,
        mirror=(lambda z: z.flip(-1)) if mirrors else None,
    )

    def on_update(step: int, loss: float) -> None:
        if coordinator is not None:
            coordinator.post(str(number), (step, loss))

    with as_in_training(device):
        return forget_group(
            model, number, unlearner,
            retain=retain, forget=group, config=config, seed=recipe.seed, helped=helped, on_update=on_update,
        )  # fmt: skip


def forget_task(
    weights: Arrays, file: str, number: int, members: frozenset[int], unlearner: Unlearner, job: GroupJob,
    coordinator: Coordinator,
) -> str:  # fmt: skip
    """Unlearn a group in a worker, publish the model, and return the file's sha256."""
    codec = adapter(job.recipe.model).codec(torch.device("cpu"))
    images = LocalImages(job.dataset, "train", codec=codec, on_unit=heartbeat)
    model = build_denoiser(job.recipe.model, weights, best_device())
    forgotten = forget(model, images, members, number, unlearner, job, coordinator)
    facts = {
        "group": number,
        "outcome": forgotten.outcome,
        "updates": forgotten.updates,
        "moved": forgotten.moved,
        "retain_loss": forgotten.retain_loss,
        "forget_loss": forgotten.forget_loss,
        "group_loss": forgotten.group_loss,
    }
    return checkpoint.save(job.stage.url(file), forgotten.tensors, facts)


def forget_groups(
    job: GroupJob,
    weights: ObjectRef,
    groups: Mapping[str, tuple[int, frozenset[int]]],
    unlearner: Unlearner,
    *,
    cluster: Cluster,
    bar: Bar,
) -> dict[str, str]:
    """Unlearn groups over the cluster, given number and members by file; return the sha256 by file."""
    coordinator, files = new_coordinator(), {f"group-{number:04d}": file for file, (number, _) in groups.items()}
    units = {name: (weights, file, *groups[file], unlearner, job, coordinator) for name, file in files.items()}

    def show_progress() -> None:
        progress = coordinator.read().values()
        if progress:
            bar.set(bar.done, f"{sum(step + 1 for step, _ in progress)} updates, {len(progress)} begun")

    digests = {}
    for name, digest in run_units(
        forget_task, units, cluster=cluster, bar=bar, coordinator=coordinator, on_wait=show_progress
    ):
        digests[files[name]] = digest
        bar.advance(1)
    return digests


def errors_of(model: DiffusionModel, numbers: Sequence[int], job: GroupJob) -> Tensor:
    """Return the errors [q, sets, n] of a model for generated images, on noises that all models share."""
    recipe = job.recipe
    grid = score_grid(model.process, recipe.groups, recipe.score)
    items = [load_item(job.generated, number) for number in numbers]
    draws = range(recipe.groups.noise_sets)
    return torch.stack(
        [
            torch.stack([query_errors(model, item, grid, seed=recipe.seed, draw=draw) for draw in draws])
            for item in items
        ]
    )


def errors_task(weights: Arrays, file: str, numbers: Sequence[int], job: GroupJob) -> str:
    """Measure and publish the errors of a model in a worker, and return the file's sha256."""
    model = build_denoiser(job.recipe.model, weights, best_device())
    return checkpoint.save(job.stage.url(file), {"errors": errors_of(model, numbers, job)}, {"items": list(numbers)})


def errors_by_model(
    job: GroupJob, models: Mapping[str, ObjectRef], numbers: Sequence[int], *, cluster: Cluster, bar: Bar
) -> dict[str, str]:
    """Measure the errors of models, given their weights by the file of the errors; return the sha256 by file."""
    files = {file.split(".")[0]: file for file in models}
    tasks = {name: (models[file], file, numbers, job) for name, file in files.items()}
    digests = {}
    for name, digest in run_units(errors_task, tasks, cluster=cluster, bar=bar):
        digests[files[name]] = digest
        bar.advance(1)
    return digests
