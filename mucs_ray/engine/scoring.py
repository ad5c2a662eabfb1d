"""A scorer scores units of the training set; a unit is a row group with a stable name.

It holds the methods of a pass, for MUCS with F1 and the bank of all F2 tensors. For each stage of the pass it publishes
one part for each unit under the unit's name, whole or not at all, and returns a receipt. Features of images are made in
the same way. mucs_ray.engine.streaming brings the units to the scorers.
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import pyarrow as pa
import ray
import ray.exceptions
import torch

from mucs_ray import storage
from mucs_ray.attribution.arriving import seconds_waited
from mucs_ray.attribution.base import Attributor, Columns
from mucs_ray.attribution.finite import require_finite
from mucs_ray.attribution.first_losses import FirstLosses
from mucs_ray.data.table import Unit
from mucs_ray.engine import metrics
from mucs_ray.engine.attempts import AttemptTracker, heartbeats
from mucs_ray.engine.attributors import AttributeJob, Refs, SharedModels, build
from mucs_ray.engine.coordinator import Coordinator, last_line, this_worker
from mucs_ray.engine.models import to_tensors
from mucs_ray.engine.reading import UNIT_COLUMN
from mucs_ray.engine.unit_rows import Rows, rows_by_source
from mucs_ray.errors import MucsError, RunFailed
from mucs_ray.store.parts import part_bytes, unit_part


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """A scorer returns this once a stage's part of a unit is published."""

    stage: str
    unit: str
    sha256: str
    """The sha256 of the part."""
    rows: int
    forwards: int
    worker_seconds: float
    worker_seconds_outside: float
    """The part of `worker_seconds` that was not spent in the network: writing, and waiting for images that are decoded
    while others are in the network. The first stage of a pass waits for all of them.
    """


RECEIPT = pa.schema(
    [
        ("stage", pa.string()),
        ("unit", pa.string()),
        ("sha256", pa.string()),
        ("rows", pa.int64()),
        ("forwards", pa.int64()),
        ("worker_seconds", pa.float64()),
        ("worker_seconds_outside", pa.float64()),
    ]
)


def score_unit(method: Attributor, job: AttributeJob, unit: Unit, rows: Rows) -> Receipt:
    """Score a unit and publish its part: a pure function of the unit, so a retry publishes the same bytes."""
    started = time.monotonic()
    if len(rows.table) != unit.rows:
        raise RunFailed(f"unit {unit.name} came as {len(rows.table)} rows instead of {unit.rows}")
    if job.method_stage.hook == "sample":
        rows = Rows(rows.table.filter(pa.array(method.in_sample(rows.table["idx"].to_numpy()))))
    on_device = rows.to(job, method.context.device) if len(rows.table) else None
    in_network, waited = time.monotonic(), seconds_waited(on_device)
    run_hook = {"features": method.features, "sample": method.sample, "score": method.columns}[job.method_stage.hook]
    columns: Columns = {} if on_device is None else run_hook(on_device)
    arrays = {name: column.cpu().numpy() for name, column in columns.items()}
    in_network = time.monotonic() - in_network - (seconds_waited(on_device) - waited)
    idx = rows.table["idx"].to_numpy()
    for name, values in arrays.items():
        require_finite(values, idx, f"`{name}` of training image")
    content = part_bytes(idx, arrays)
    digest = storage.publish(job.stage.url(unit_part(job.stage, unit)), content)
    seconds = time.monotonic() - started
    return Receipt(
        stage=job.stage.name,
        unit=unit.name,
        sha256=digest,
        rows=unit.rows,
        forwards=method.forwards(columns) if columns else 0,
        worker_seconds=seconds,
        worker_seconds_outside=seconds - in_network,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PassStage:
    """This is one stage of a pass as scorers know it."""

    job: AttributeJob
    coordinator: Coordinator
    units: frozenset[str]
    """The names of the units that have no part yet."""


class Scorer:
    """A scorer stays in a worker and holds the methods of a pass with all their models, and one F1 for all of them."""

    def __init__(
        self, pass_stages: Sequence[PassStage], refs: Sequence[Refs], units: dict[str, Unit], pool: Coordinator
    ) -> None:
        """Join the `pool`, to be ended with it; fetch the weights once a node and move them to the device."""
        self.worker = this_worker(ray.get_runtime_context().current_actor)
        pool.call(AttemptTracker.add_worker, self.worker)
        self.pass_stages, self.units = pass_stages, units
        shared = SharedModels(num_methods=len(pass_stages), first_losses=FirstLosses())
        self.methods = [
            method_or_error(pass_stage.job, stage_refs, shared)
            for pass_stage, stage_refs in zip(pass_stages, refs, strict=True)
        ]
        self.count_worker()

    def __call__(self, table: pa.Table) -> pa.Table:
        """Make the parts of a unit, and return a receipt for each stage that has its part now.

        The coordinators of the other stages record why they have none.
        """
        unit = self.units[table[UNIT_COLUMN][0].as_py()]
        rows, published = rows_by_source(table), list[Receipt]()
        for pass_stage, method in zip(self.pass_stages, self.methods, strict=True):
            if (
                unit.name not in pass_stage.units or pass_stage.job.source not in rows
            ):  # it has its part, or its rows cannot be read
                continue
            match pass_stage.coordinator.call(AttemptTracker.begin, unit.name, self.worker):
                case "go":
                    with self.attempt(pass_stage, unit):
                        receipt = score_unit(usable(method), pass_stage.job, unit, rows[pass_stage.job.source])
                        pass_stage.coordinator.call(AttemptTracker.end, unit.name, receipt)
                        published.append(receipt)
                        metrics.count_unit(
                            receipt.stage,
                            images=receipt.rows,
                            forwards=receipt.forwards,
                            seconds=receipt.worker_seconds,
                        )
                case "done":
                    published.append(pass_stage.coordinator.call(AttemptTracker.result, unit.name))
                case "draining":
                    os._exit(0)  # Ray starts this worker and this unit again on another node
        return receipts(published)

    @contextmanager
    def attempt(self, pass_stage: PassStage, unit: Unit) -> Iterator[None]:
        """Run one stage's work on a unit. An error of this package ends only that work; any other error ends the
        process too.
        """
        try:
            with heartbeats(lambda: self.send_heartbeat(pass_stage.coordinator, unit)):
                yield
        except MucsError as error:
            pass_stage.coordinator.call(AttemptTracker.record_error, unit.name, str(error), error)
        except Exception as error:
            pass_stage.coordinator.call(AttemptTracker.record_error, unit.name, last_line(error))
            os._exit(1)  # this process or its device may be broken, so Ray tries again in another process

    def send_heartbeat(self, coordinator: Coordinator, unit: Unit) -> None:
        """Send a heartbeat of the unit, and report this worker to the metrics."""
        coordinator.send(AttemptTracker.heartbeat, unit.name)
        self.count_worker()

    def count_worker(self) -> None:
        """Count this worker for each of its stages."""
        for pass_stage in self.pass_stages:
            metrics.report_worker(pass_stage.job.stage.name)


def method_or_error(job: AttributeJob, refs: Refs, shared: SharedModels) -> Attributor | MucsError:
    """Return the method, ready to score, or the error that prevented it.

    If the error were raised, Ray would only start this worker again.
    """
    try:
        return loaded_method(job, refs, shared)
    except MucsError as error:
        return error
    except ray.exceptions.RayError:
        raise  # an object was lost, and may arrive at the next attempt
    except Exception as error:
        return RunFailed(f"the method could not be loaded: {last_line(error)}")


def usable(method: Attributor | MucsError) -> Attributor:
    """Return the method, or raise the error that stands in its place."""
    if isinstance(method, MucsError):
        raise method
    return method


def loaded_method(job: AttributeJob, refs: Refs, shared: SharedModels) -> Attributor:
    """Return the method, ready to score."""
    weights, fitted, item_states = refs.fetch()
    method = build(job, weights, shared=shared)
    if job.method_stage.hook in ("sample", "score"):
        device = method.context.device
        place = torch.device("cpu") if method.places_item_states else device
        method.load(to_tensors(fitted, device), [to_tensors(arrays, place) for arrays in item_states])
    return method


def receipts(published: Sequence[Receipt]) -> pa.Table:
    """Return the receipts as the table that Ray Data carries."""
    return pa.Table.from_pylist([asdict(receipt) for receipt in published], schema=RECEIPT)
