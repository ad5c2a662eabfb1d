"""The streaming pass: Ray Data reads the units of the training set and sends them through a pool of resident scorers.

What has no part yet is streamed again: a resumed run, a lost worker and a first run are the same code. The pool grows
when nodes join, and shrinks when the work runs out.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import pyarrow as pa
import ray
import ray.data
import ray.exceptions

from mucs_ray import storage
from mucs_ray.data.table import Unit
from mucs_ray.engine.attempts import explain
from mucs_ray.engine.attributors import AttributeJob, Refs, read_rows
from mucs_ray.engine.board import Board, last_line, new_board
from mucs_ray.engine.pace import PACE, Pace
from mucs_ray.engine.progress import Bar
from mucs_ray.engine.scoring import UNIT_COLUMN, Receipt, Scorer
from mucs_ray.engine.session import READER_CPUS, Cluster, quiet_data
from mucs_ray.engine.watch import watching
from mucs_ray.errors import MucsError
from mucs_ray.store.parts import unit_part


def read_units(names: pa.Table, units: dict[str, Unit], job: AttributeJob, board: Board) -> pa.Table:
    """The rows of one unit, with its name as a column; its name alone if it cannot be read, and the board knows why."""
    name = names["item"][0].as_py()
    try:
        table = within(job.recipe.engine.timeout, read_rows, job, units[name])
    except MucsError as error:
        board.failed(name, str(error), error)
    except Exception as error:
        board.failed(name, f"it could not be read: {last_line(error)}")
    else:
        return table.append_column(UNIT_COLUMN, pa.array([name] * len(table)))
    return pa.table({UNIT_COLUMN: [name]})


def within(seconds: float, function: Callable[..., pa.Table], *arguments: Any) -> pa.Table:  # noqa: ANN401
    """function(*arguments), or TimeoutError: a file system that hangs cannot be interrupted, only left behind."""
    result = Future[pa.Table]()

    def run() -> None:
        try:
            result.set_result(function(*arguments))
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return result.result(timeout=seconds)
    except TimeoutError as error:
        raise error if result.done() else TimeoutError(f"no answer for {seconds:g} s") from None


def stream(job: AttributeJob, refs: Refs, units: Sequence[Unit], board: Board, cluster: Cluster) -> Iterator[Receipt]:
    """One pass over the given units; receipts in the order they come."""
    quiet_data()
    least, most = pool_size(cluster, len(units))
    by_name = {unit.name: unit for unit in units}
    names = ray.data.from_items(list(by_name), override_num_blocks=len(by_name))
    rows = names.map_batches(
        read_units,  # pyright: ignore[reportArgumentType]
        fn_args=(by_name, job, board),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=READER_CPUS,
    )
    done = rows.map_batches(
        Scorer,
        fn_constructor_args=(job, refs, by_name, board),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(min_size=least, max_size=most, max_tasks_in_flight_per_actor=2),
        num_cpus=cluster.worker_options["num_cpus"],
        num_gpus=cluster.worker_options["num_gpus"],
    )
    try:
        for row in done.iter_rows():
            yield Receipt(**row)
    finally:
        # Ray Data ends its pool when nothing refers to it any more, which after a failure may be never; the trainings
        # that follow could then not be placed
        for scorer in board.dismiss():
            ray.kill(scorer.actor)


def pool_size(cluster: Cluster, num_units: int) -> tuple[int, int]:
    """(smallest, largest) pool: as asked, else all there is room for, and more as nodes join; never more than units.

    All of the smallest pool is asked for at once, which is what makes an autoscaler bring nodes.
    """
    least, most = cluster.engine.actors
    least, most = min(least or cluster.num_workers, num_units), min(most or num_units, num_units)
    return min(least, most), most


def score(
    job: AttributeJob, refs: Refs, units: Sequence[Unit], *, cluster: Cluster, bar: Bar
) -> tuple[dict[str, Any], dict[str, str]]:
    """Stream until every unit has its part; (totals over the receipts and who made them, sha256 by part).

    What has no part after a pass is streamed again, in new workers. Once all others are there, those units that were
    given up are raised as one error.
    """
    totals = {"rows": 0, "forwards": 0, "worker_seconds": 0.0, "worker_seconds_outside": 0.0}
    digests: dict[str, str] = {}
    names = {unit.name: unit_part(job.stage, unit) for unit in units}
    board, todo, pace = new_board(), list(units), Pace(images=bar.total)
    while todo:
        _, before, _ = board.news(0)
        cause = "it has no scores, and nobody said why"
        try:
            with watching(board, bar, cluster.engine.timeout):
                for receipt in stream(job, refs, todo, board, cluster):
                    digests[names[receipt.unit]] = receipt.sha256
                    for name in totals:
                        totals[name] += getattr(receipt, name)
                    rate = totals["forwards"] / bar.elapsed
                    bar.advance(receipt.rows, f"{rate:,.0f} forwards/s" if rate else "")
                    if line := pace.line(totals, at=bar.elapsed):
                        facts = {**totals, "processor": cluster.processor, "fingerprint": job.stage.fingerprint}
                        bar.tell(line, PACE, **facts)
        except ray.exceptions.RayError as error:
            cause = last_line(error)
        there = {*digests, *storage.names(job.stage.folder)}
        todo = [unit for unit in todo if names[unit.name] not in there]
        told = {each.unit for each in board.news(before)[0]}
        for unit in todo:
            if unit.name not in told:
                board.failed(unit.name, cause)
        given_up = board.given_up()
        todo = [unit for unit in todo if unit.name not in given_up]
    if given_up := board.given_up():
        raise explain(given_up, len(units))
    return {**totals, "processor": cluster.processor}, digests
