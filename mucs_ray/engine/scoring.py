"""The scoring pass: Ray Data streams the units of the training set through a pool of resident scorers.

A unit is a row group with a stable name. A scorer holds a method, for MUCS with F1 and the bank of all F2 tensors; it
publishes one part a unit under that name, whole or not at all, and returns a receipt. What has no part yet is streamed
again: a resumed run, a lost worker and a first run are the same code. Features of images are made by the same pass.
"""

import io
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
import ray.exceptions

from mucs_ray import storage
from mucs_ray.attribution.base import Attributor
from mucs_ray.data.table import Unit
from mucs_ray.diffusion.batch import Batch
from mucs_ray.engine.attributors import AttributeJob, Refs, build, read_rows, to_rows, unit_part
from mucs_ray.engine.board import Board, last_line, new_board, own_error
from mucs_ray.engine.models import to_tensors
from mucs_ray.engine.progress import Bar
from mucs_ray.engine.session import READER_CPUS, Cluster, quiet_data
from mucs_ray.errors import RunFailed

MAX_PASSES = 5
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


def score_unit(method: Attributor, job: AttributeJob, unit: Unit, table: pa.Table) -> Receipt:
    """Score a unit and publish its part: a pure function of the unit, so a retry publishes the same bytes."""
    started = time.monotonic()
    if len(table) != unit.rows:
        raise RunFailed(f"unit {unit.name} came as {len(table)} rows instead of {unit.rows}")
    rows = to_rows(job, table, method.setting.device)
    in_network = time.monotonic()
    columns = method.features(rows) if isinstance(rows, Batch) and job.part.hook == "features" else method.columns(rows)
    arrays = {name: column.cpu().numpy() for name, column in columns.items()}
    in_network = time.monotonic() - in_network
    content = part_bytes(table["idx"].to_numpy(), arrays)
    digest = storage.publish(job.stage.url(unit_part(job.stage, unit)), content)
    seconds = time.monotonic() - started
    return Receipt(
        unit=unit.name,
        sha256=digest,
        rows=len(table),
        forwards=len(table) * method.forwards_an_image,
        worker_seconds=seconds,
        worker_seconds_outside=seconds - in_network,
    )


def part_bytes(idx: np.ndarray, columns: Mapping[str, np.ndarray]) -> bytes:
    """Parquet: idx, and each column as numbers or as lists of one length, e.g. skew[items]."""
    arrays = {name: pa.array(each) if each.ndim == 1 else fixed_lists(each) for name, each in columns.items()}
    buffer = io.BytesIO()
    pq.write_table(pa.table({"idx": pa.array(idx), **arrays}), buffer, compression="zstd")
    return buffer.getvalue()


def score_schema(num_items: int) -> pa.Schema:
    """The columns that everyone reads: idx, score[items]."""
    return pa.schema([("idx", pa.int64()), ("score", pa.list_(pa.float32(), num_items))])


def fixed_lists(values: np.ndarray) -> pa.FixedSizeListArray:
    """A matrix as a column of fixed-size lists."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


class Scorer:
    """Resident in a worker: the method with all its models."""

    def __init__(self, job: AttributeJob, refs: Refs, units: dict[str, Unit], board: Board) -> None:
        """Signs on, so that it can be ended; fetches the weights once a node and moves them to the device."""
        board.post(uuid4().hex, ray.get_runtime_context().current_actor)
        self.job, self.units = job, units
        weights, prepared, adapted = refs.fetch()
        self.method = build(job, weights)
        if job.part.hook == "score":
            device = self.method.setting.device
            self.method.load(to_tensors(prepared, device), [to_tensors(arrays, device) for arrays in adapted])

    def __call__(self, table: pa.Table) -> pa.Table:
        """A unit's rows in, its receipt out."""
        unit = self.units[table[UNIT_COLUMN][0].as_py()]
        receipt = score_unit(self.method, self.job, unit, table.drop_columns([UNIT_COLUMN]))
        return pa.Table.from_pylist([{name: getattr(receipt, name) for name in Receipt.__dataclass_fields__}])


def read_units(names: pa.Table, units: dict[str, Unit], job: AttributeJob) -> pa.Table:
    """The rows of one unit, with its name as a column."""
    name = names["item"][0].as_py()
    table = read_rows(job, units[name])
    return table.append_column(UNIT_COLUMN, pa.array([name] * len(table)))


def stream(
    job: AttributeJob, refs: Refs, units: Sequence[Unit], pool: tuple[int, int], cluster: Cluster
) -> Iterator[Receipt]:
    """One pass over the given units; receipts in the order they come."""
    quiet_data()
    board = new_board()
    by_name = {unit.name: unit for unit in units}
    names = ray.data.from_items(list(by_name), override_num_blocks=len(by_name))
    rows = names.map_batches(
        read_units,  # pyright: ignore[reportArgumentType]
        fn_args=(by_name, job),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=READER_CPUS,
    )
    receipts = rows.map_batches(
        Scorer,
        fn_constructor_args=(job, refs, by_name, board),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(min_size=pool[0], max_size=pool[1], max_tasks_in_flight_per_actor=2),
        num_cpus=cluster.worker_options["num_cpus"],
        num_gpus=cluster.worker_options["num_gpus"],
    )
    try:
        for row in receipts.iter_rows():
            yield Receipt(**row)
    finally:
        # Ray Data ends its pool when nothing refers to it any more, which after a failure may be never; the trainings
        # that follow could then not be placed
        for scorer in board.close().values():
            ray.kill(scorer)


def pool_size(wanted: tuple[int, int], num_units: int, cluster: Cluster) -> tuple[int, int]:
    """(smallest, largest) pool: as asked, else everything there is now; never more than there are units."""
    least, most = wanted[0] or cluster.num_workers, wanted[1] or cluster.num_workers
    return min(least, most, num_units), min(most, num_units)


def score(
    job: AttributeJob,
    refs: Refs,
    units: Sequence[Unit],
    *,
    pool: tuple[int, int],
    cluster: Cluster,
    bar: Bar,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Stream until every unit has its part; (totals over the receipts, sha256 by part).

    RunFailed, naming the cause, if some cannot be had.
    """
    totals = {"rows": 0, "forwards": 0, "worker_seconds": 0.0, "worker_seconds_outside": 0.0}
    digests: dict[str, str] = {}
    names = {unit.name: unit_part(job.stage, unit) for unit in units}
    todo, passes = list(units), 0
    while todo:
        if passes == MAX_PASSES:
            told = f"{len(todo)} units still have no scores after {passes} passes (first: {todo[0].name})"
            raise RunFailed(f"{told}; run the command again")
        failure = None
        try:
            for receipt in stream(job, refs, todo, pool_size(pool, len(todo), cluster), cluster):
                digests[names[receipt.unit]] = receipt.sha256
                for name in totals:
                    totals[name] += getattr(receipt, name)
                rate = totals["forwards"] / bar.elapsed
                bar.advance(receipt.rows, f"{rate:,.0f} forwards/s" if rate else "")
        except ray.exceptions.RayError as error:
            failure = own_error(error) or RunFailed(f"scoring failed: {last_line(error)}")
        if failure is not None:  # raised out here: the traceback of `error` would keep the pool's actors alive
            raise failure
        there = {*storage.names(job.stage.folder), *digests}
        todo = [unit for unit in units if names[unit.name] not in there]
        passes += 1
    return totals, digests
