"""Scoring a unit of the training set: a row group with a stable name.

A scorer holds the methods of a pass, for MUCS with F1 and the bank of all F2 tensors. For each stage of the pass it
publishes one part a unit under the unit's name, whole or not at all, and returns a receipt. Features of images are made
in the same way. How units reach the scorers: `mucs_ray.engine.streaming`.
"""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
import ray
import ray.exceptions
import torch

from mucs_ray import storage
from mucs_ray.attribution.arriving import seconds_waited
from mucs_ray.attribution.base import Attributor, Columns
from mucs_ray.attribution.first_losses import FirstLosses
from mucs_ray.data.table import Unit
from mucs_ray.diffusion.batch import Batch
from mucs_ray.engine import metrics
from mucs_ray.engine.attempts import heartbeats
from mucs_ray.engine.attributors import AttributeJob, Refs, Shared, build
from mucs_ray.engine.coordinator import Coordinator, last_line, this_worker
from mucs_ray.engine.models import to_tensors
from mucs_ray.engine.reading import UNIT_COLUMN
from mucs_ray.engine.unit_rows import Rows, sources
from mucs_ray.errors import MucsError, RunFailed
from mucs_ray.store.parts import part_bytes, unit_part


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """A scorer returns it once a stage's part of a unit is published."""

    stage: str
    unit: str
    sha256: str
    """Of the part."""
    rows: int
    forwards: int
    worker_seconds: float
    worker_seconds_outside: float
    """Of them not spent in the network: writing, and waiting for images that are decoded while others are in the
    network. The first stage of a pass waits for all."""


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
    if job.part.hook == "sample":
        rows = Rows(rows.table.filter(pa.array(method.in_sample(rows.table["idx"].to_numpy()))))
    moved = rows.to(job, method.context.device) if len(rows.table) else None
    in_network, waited = time.monotonic(), seconds_waited(moved)
    columns = {} if moved is None else computed(method, job.part.hook, moved)
    arrays = {name: column.cpu().numpy() for name, column in columns.items()}
    in_network = time.monotonic() - in_network - (seconds_waited(moved) - waited)
    idx = rows.table["idx"].to_numpy()
    require_finite(idx, arrays)
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


def computed(method: Attributor, hook: str, rows: Batch | Columns) -> Columns:
    """What the hook makes of these rows."""
    if not isinstance(rows, Batch):
        return method.columns(rows)
    return {"features": method.features, "sample": method.sample, "score": method.columns}[hook](rows)


def require_finite(idx: np.ndarray, columns: Mapping[str, np.ndarray]) -> None:
    """RunFailed, naming column and image, if a number is not finite: no such part is published."""
    for name, values in columns.items():
        bad = ~np.isfinite(values.reshape(len(idx), -1)).all(axis=1)
        if bad.any():
            raise RunFailed(f"`{name}` of training image idx={idx[bad][0]} is not finite")


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One stage of a pass, as readers and scorers know it."""

    job: AttributeJob
    coordinator: Coordinator
    units: frozenset[str]
    """Names of those that have no part yet."""


class Scorer:
    """Resident in a worker: the methods of a pass with all their models, and one F1 for all of them."""

    def __init__(
        self, members: Sequence[Member], refs: Sequence[Refs], units: dict[str, Unit], pool: Coordinator
    ) -> None:
        """Join the `pool`, to be ended with it; fetch the weights once a node and move them to the device."""
        self.worker = this_worker(ray.get_runtime_context().current_actor)
        pool.add_worker(self.worker)
        self.members, self.units = members, units
        shared = Shared(num_methods=len(members), first_losses=FirstLosses())
        self.workerthods = [
            method_or_error(member.job, each, shared) for member, each in zip(members, refs, strict=True)
        ]
        self.count_worker()

    def __call__(self, table: pa.Table) -> pa.Table:
        """Make the parts of a unit; a receipt for each stage that has its part now, and the coordinators of the others
        are told why not.
        """
        unit = self.units[table[UNIT_COLUMN][0].as_py()]
        rows, published = sources(table), list[Receipt]()
        for member, method in zip(self.members, self.workerthods, strict=True):
            if unit.name in member.units and member.job.source in rows:  # else it could not be read
                published += self.attempt(member, method, unit, rows[member.job.source])
        return receipts(published)

    def attempt(self, member: Member, method: Attributor | MucsError, unit: Unit, rows: Rows) -> list[Receipt]:
        """Do one stage's work on a unit, unless it is done or given up."""
        coordinator = member.coordinator
        match coordinator.begin(unit.name, self.worker):
            case "done":
                return [coordinator.result(unit.name)]
            case "given up":
                return []
            case "draining":
                os._exit(0)  # before this node is taken away: Ray starts this worker, and this unit, on another
        try:
            with heartbeats(lambda: self.send_heartbeat(coordinator, unit)):
                if isinstance(method, MucsError):
                    raise method
                receipt = score_unit(method, member.job, unit, rows)
        except MucsError as error:
            coordinator.failed(unit.name, str(error), error)
            return []
        except Exception as error:
            coordinator.failed(unit.name, last_line(error))
            os._exit(1)  # this process or its device may be what is broken: Ray tries again in another
        coordinator.end(unit.name, receipt)
        metrics.unit_done(receipt.stage, images=receipt.rows, forwards=receipt.forwards, seconds=receipt.worker_seconds)
        return [receipt]

    def send_heartbeat(self, coordinator: Coordinator, unit: Unit) -> None:
        """Send a sign of life of the unit, and of this worker to the metrics."""
        coordinator.heartbeat(unit.name)
        self.count_worker()

    def count_worker(self) -> None:
        """Count this worker for each of its stages."""
        for member in self.members:
            metrics.worker_there(member.job.stage.name)


def method_or_error(job: AttributeJob, refs: Refs, shared: Shared) -> Attributor | MucsError:
    """The method, ready to score; or why there is none, told with each unit: Ray would only start this worker again."""
    try:
        return loaded_method(job, refs, shared)
    except MucsError as error:
        return error
    except ray.exceptions.RayError:
        raise  # something was lost on its way, and may be there next time
    except Exception as error:
        return RunFailed(f"the method could not be loaded: {last_line(error)}")


def loaded_method(job: AttributeJob, refs: Refs, shared: Shared) -> Attributor:
    """The method, ready to score."""
    weights, fitted, item_states = refs.fetch()
    method = build(job, weights, shared=shared)
    if job.part.hook in ("sample", "score"):
        device = method.context.device
        place = torch.device("cpu") if method.places_item_states else device
        method.load(to_tensors(fitted, device), [to_tensors(arrays, place) for arrays in item_states])
    return method


def receipts(published: Sequence[Receipt]) -> pa.Table:
    """Receipts as the table that Ray Data carries."""
    return pa.Table.from_pylist([asdict(receipt) for receipt in published], schema=RECEIPT)
