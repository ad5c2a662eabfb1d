"""Scoring a unit of the training set: a row group with a stable name.

A scorer holds a method, for MUCS with F1 and the bank of all F2 tensors; it publishes one part a unit under the unit's
name, whole or not at all, and returns a receipt. Features of images are made in the same way. How units reach the
scorers: `mucs_ray.engine.streaming`.
"""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
import ray
import torch

from mucs_ray import storage
from mucs_ray.attribution.base import Attributor, Columns
from mucs_ray.data.table import Unit
from mucs_ray.diffusion.batch import Batch
from mucs_ray.engine import metrics
from mucs_ray.engine.attempts import beating
from mucs_ray.engine.attributors import AttributeJob, Refs, build, to_rows
from mucs_ray.engine.board import Board, last_line, this_worker
from mucs_ray.engine.models import to_tensors
from mucs_ray.errors import MucsError, RunFailed
from mucs_ray.store.parts import part_bytes, unit_part

UNIT_COLUMN = "mucs_ray_unit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """Told by a scorer once a unit's part is published."""

    unit: str
    sha256: str
    """Of the part."""
    rows: int
    forwards: int
    worker_seconds: float
    worker_seconds_outside: float
    """Of them not spent in the network: decoding, moving, writing."""


RECEIPT = pa.schema(
    [
        ("unit", pa.string()),
        ("sha256", pa.string()),
        ("rows", pa.int64()),
        ("forwards", pa.int64()),
        ("worker_seconds", pa.float64()),
        ("worker_seconds_outside", pa.float64()),
    ]
)


def score_unit(method: Attributor, job: AttributeJob, unit: Unit, table: pa.Table) -> Receipt:
    """Score a unit and publish its part: a pure function of the unit, so a retry publishes the same bytes."""
    started = time.monotonic()
    if len(table) != unit.rows:
        raise RunFailed(f"unit {unit.name} came as {len(table)} rows instead of {unit.rows}")
    if job.part.hook == "sample":
        table = table.filter(pa.array(method.in_sample(table["idx"].to_numpy())))
    rows = to_rows(job, table, method.context.device) if len(table) else None
    in_network = time.monotonic()
    columns = {} if rows is None else computed(method, job.part.hook, rows)
    arrays = {name: column.cpu().numpy() for name, column in columns.items()}
    in_network = time.monotonic() - in_network
    idx = table["idx"].to_numpy()
    require_finite(idx, arrays)
    content = part_bytes(idx, arrays)
    digest = storage.publish(job.stage.url(unit_part(job.stage, unit)), content)
    seconds = time.monotonic() - started
    return Receipt(
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


class Scorer:
    """Resident in a worker: the method with all its models."""

    def __init__(self, job: AttributeJob, refs: Refs, units: dict[str, Unit], board: Board) -> None:
        """Signs on, so that it can be ended; fetches the weights once a node and moves them to the device."""
        self.me = this_worker(ray.get_runtime_context().current_actor)
        board.join(self.me)
        self.job, self.units, self.board = job, units, board
        self.method, self.error = None, None
        try:
            self.method = loaded_method(job, refs)
            metrics.worker_there(job.stage.name)
        except MucsError as error:
            self.error = error  # told with the first unit: Ray would only start this again and again

    def __call__(self, table: pa.Table) -> pa.Table:
        """A unit's rows in, its receipt out; or none, and the board knows why."""
        unit = self.units[table[UNIT_COLUMN][0].as_py()]
        if "idx" not in table.column_names:
            return receipts([])  # it could not be read
        match self.board.begin(unit.name, self.me):
            case "given up":
                return receipts([])
            case "draining":
                os._exit(0)  # before this node is taken away: Ray starts this worker, and this unit, on another
        try:
            with beating(lambda: self.sign(unit)):
                if self.method is None:
                    raise self.error or RunFailed("no method")
                receipt = score_unit(self.method, self.job, unit, table.drop_columns([UNIT_COLUMN]))
        except MucsError as error:
            self.board.failed(unit.name, str(error), error)
            return receipts([])
        except Exception as error:
            self.board.failed(unit.name, last_line(error))
            os._exit(1)  # this process or its device may be what is broken: Ray tries again in another
        self.board.end(unit.name)
        metrics.unit_done(
            self.job.stage.name, images=receipt.rows, forwards=receipt.forwards, seconds=receipt.worker_seconds
        )
        return receipts([receipt])

    def sign(self, unit: Unit) -> None:
        """A sign of life."""
        self.board.beat(unit.name)
        metrics.worker_there(self.job.stage.name)


def loaded_method(job: AttributeJob, refs: Refs) -> Attributor:
    """The method, ready to score."""
    weights, fitted, item_states = refs.fetch()
    method = build(job, weights)
    if job.part.hook in ("sample", "score"):
        device = method.context.device
        place = torch.device("cpu") if method.places_item_states else device
        method.load(to_tensors(fitted, device), [to_tensors(arrays, place) for arrays in item_states])
    return method


def receipts(told: Sequence[Receipt]) -> pa.Table:
    """As Ray Data carries them."""
    return pa.Table.from_pylist([asdict(each) for each in told], schema=RECEIPT)
