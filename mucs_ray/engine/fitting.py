"""This module runs the hooks of a method outside streaming passes: sums over the training set, and fits.

A fit runs once for the run or once for each item. Each runs in a Ray task that publishes safetensors; unlearning is
such a fit, with one task for each item.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import ray
import torch
from ray import ObjectRef
from torch import Tensor

from mucs_ray.attribution.base import Attributor
from mucs_ray.attribution.card import MethodStage
from mucs_ray.config.engine import SUM_SHARDS
from mucs_ray.data.table import Unit
from mucs_ray.diffusion.batch import Item
from mucs_ray.engine.attempts import heartbeat
from mucs_ray.engine.attributors import AttributeJob, Refs, build, stream_rows, to_rows
from mucs_ray.engine.coordinator import Coordinator, new_coordinator
from mucs_ray.engine.models import Arrays, load_files, to_arrays, to_tensors
from mucs_ray.engine.progress import Bar
from mucs_ray.engine.reading import read_rows
from mucs_ray.engine.session import Cluster
from mucs_ray.engine.units import run_units
from mucs_ray.errors import RunFailed
from mucs_ray.store import checkpoint
from mucs_ray.store.item_names import item_file, item_name
from mucs_ray.store.items import load_item
from mucs_ray.store.run import Stage
from mucs_ray.training.numerics import as_in_training


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """A worker returns this once the tensors of a once-a-run hook are published."""

    sha256: str
    numbers: dict[str, float]
    """The fitted tensors that are one number each, for the manifest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedItem:
    """A worker returns this once the tensors of an item are published."""

    number: int
    sha256: str
    seconds: float


def fit_item(
    method: Attributor, item: Item, fitted: Arrays, stage: Stage, on_update: Callable[[int, float], None]
) -> FittedItem:
    """Call the hook for one item and publish the tensors."""
    started = time.monotonic()
    state = method.fit_item(item, to_tensors(fitted, method.context.device), on_update)
    facts = {"number": item.number, "idx": item.idx, **state.facts}
    digest = checkpoint.save(stage.url(item_file(stage, item.number)), state.tensors, facts)
    return FittedItem(number=item.number, sha256=digest, seconds=time.monotonic() - started)


def fit_item_task(refs: Refs, number: int, job: AttributeJob, coordinator: Coordinator) -> FittedItem:
    """Call fit_item in a worker."""
    weights, fitted, _ = refs.fetch()
    item = load_item(job.generated, number)
    method = build(job, weights)
    with numerics(job.method_stage, method.context.device):
        return fit_item(method, item, fitted, job.stage, lambda step, loss: coordinator.post(str(number), (step, loss)))


def numerics(stage: MethodStage, device: torch.device) -> AbstractContextManager[None]:
    """Let a stage compute as training does (spec 5) if its card says so; all other stages compute in true fp32."""
    return as_in_training(device) if stage.computes_as_in_training else nullcontext()


def fit_items(job: AttributeJob, refs: Refs, numbers: Sequence[int], *, cluster: Cluster, bar: Bar) -> list[FittedItem]:
    """Call the hook for items over the cluster, in one task for each item, and return the results in the order they
    end.
    """
    coordinator = new_coordinator()
    units = {item_name(number): (refs, number, job, coordinator) for number in numbers}

    def show_progress() -> None:
        progress = coordinator.read().values()
        if progress:
            bar.set(bar.done, f"{sum(step for step, _ in progress)} updates, {len(progress)} begun")

    results = []
    for _, result in run_units(
        fit_item_task, units, cluster=cluster, bar=bar, coordinator=coordinator, on_wait=show_progress
    ):
        results.append(result)
        bar.advance(1)
    return results


def fit(method: Attributor, job: AttributeJob, sums: Arrays, file: str, item_states: Sequence[Arrays] = ()) -> Fitted:
    """Call the hook that runs once, and publish its tensors."""
    device = method.context.device
    rows = stream_rows(job, device)
    match job.method_stage.hook:
        case "fit_screen":
            tensors = method.fit_screen(rows)
        case "fit_together":
            states = [to_tensors(state, device) for state in item_states]
            tensors = method.fit_together(to_tensors(sums, device), states)
        case _:
            tensors = method.fit(to_tensors(sums, device), rows)
    numbers = {name: tensor.item() for name, tensor in tensors.items() if tensor.ndim == 0}
    return Fitted(sha256=checkpoint.save(job.stage.url(file), tensors, numbers), numbers=numbers)


def fit_task(refs: Refs, job: AttributeJob, file: str) -> Fitted:
    """Call fit in a worker."""
    weights, sums, item_states = refs.fetch()
    method = build(job, weights)
    with numerics(job.method_stage, method.context.device):
        return fit(method, job, sums, file, item_states)


def fit_once(job: AttributeJob, refs: Refs, file: str, *, cluster: Cluster, bar: Bar) -> Fitted:
    """Call the hook that runs once, in one task."""
    ((_, result),) = run_units(fit_task, {job.method_stage.name: (refs, job, file)}, cluster=cluster, bar=bar)
    return result


def sum_shards(units: Sequence[Unit]) -> list[Sequence[Unit]]:
    """Divide the units into shards that are the same on every cluster, so that sums are the same to the last bit."""
    count = min(SUM_SHARDS, len(units))
    return [units[number::count] for number in range(count)]


def sum_shard(method: Attributor, job: AttributeJob, units: Sequence[Unit], file: str, coordinator: Coordinator) -> str:
    """Sum over some units in float64, publish the sums, and return their sha256."""
    total: dict[str, Tensor] = {}
    for unit in units:
        rows = to_rows(job, read_rows(job.features, unit), method.context.device)
        try:
            sums = method.accumulate(rows)
        except RunFailed as error:
            raise RunFailed(f"{unit.name}: {error}") from None
        for name, tensor in sums.items():
            total[name] = total[name] + tensor.double() if name in total else tensor.double()
        heartbeat()
        coordinator.post(f"{file}/{unit.name}", unit.rows)
    return checkpoint.save(job.stage.url(file), total, {})


def sum_task(refs: Refs, job: AttributeJob, units: Sequence[Unit], file: str, coordinator: Coordinator) -> str:
    """Call sum_shard in a worker."""
    weights, _, _ = refs.fetch()
    return sum_shard(build(job, weights), job, units, file, coordinator)


def sum_all(
    job: AttributeJob, refs: Refs, shards: dict[str, Sequence[Unit]], *, cluster: Cluster, bar: Bar
) -> dict[str, str]:
    """Sum over each shard of units, and return the sha256 of the sums by file."""
    coordinator, done_before = new_coordinator(), bar.done
    names = {file.split(".")[0]: file for file in shards}
    tasks = {name: (refs, job, shards[file], file, coordinator) for name, file in names.items()}

    def show_progress() -> None:
        bar.set(done_before + sum(coordinator.read().values()), "")

    results = run_units(sum_task, tasks, cluster=cluster, bar=bar, coordinator=coordinator, on_wait=show_progress)
    return {names[name]: digest for name, digest in results}


@ray.remote(num_cpus=0.1)
def load_sum(stage: Stage, files: Sequence[str]) -> Arrays:
    """Add up the shards' sums of a finished stage, in their order; they do not pass through the driver."""
    total: dict[str, Tensor] = {}
    for file in files:
        tensors, _ = checkpoint.parse(stage.checked(file), stage.url(file))
        total = {name: total[name] + tensor if total else tensor for name, tensor in tensors.items()}
    return to_arrays(total)


def load_fitted(stage: Stage, files: Sequence[str]) -> ObjectRef:
    """Put the tensors of a once-a-run hook, or the sum over the training set, into the object store."""
    return load_files(stage, files)[0] if len(files) == 1 else load_sum.remote(stage, files)
