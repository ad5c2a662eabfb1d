"""Named units of work, a Ray task each: tried again when they fail, while the others go on."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ray
import ray.exceptions
from ray import ObjectRef

from mucs_ray.engine.attempts import beating, explain
from mucs_ray.engine.board import POLL_S, Board, cancel_unfinished, last_line, new_board, own_error, this_worker
from mucs_ray.engine.progress import Bar
from mucs_ray.engine.session import Cluster
from mucs_ray.engine.watch import Watch


def attempt(board: Board, unit: str, function: Callable[..., Any], *arguments: Any) -> Any:  # noqa: ANN401
    """One attempt at a unit, in a worker."""
    board.begin(unit, this_worker())
    with beating(lambda: board.beat(unit)):
        result = function(*arguments)
    board.end(unit)
    return result


def completed(
    function: Callable[..., Any],
    units: Mapping[str, tuple[Any, ...]],
    *,
    cluster: Cluster,
    bar: Bar,
    board: Board | None = None,
    on_wait: Callable[[], None] = lambda: None,
) -> Iterator[tuple[str, Any]]:
    """(name, function(*arguments)) of each named unit in the order they end, each in a task of its own.

    A unit that fails is tried again; the others go on. At last those that were given up are raised as one error.
    On a GPU Ray ends a task's process with it, which frees the memory.
    """
    board = board or new_board()
    watch = Watch([(board, bar)], cluster.engine.timeout)
    resources: Any = cluster.worker_options
    task: Any = ray.remote(**resources, max_retries=0)(attempt)

    def start(unit: str, **options: Any) -> ObjectRef:  # noqa: ANN401 - as Ray's own
        return task.options(**options).remote(board, unit, function, *units[unit])

    running, ended = {start(unit): unit for unit in units}, set[ObjectRef]()
    try:
        while running:
            ready, _ = ray.wait(list(running), num_returns=1, timeout=POLL_S)
            on_wait()
            late = {unit for unit, _ in watch.look()}
            for ref in [ref for ref, unit in running.items() if unit in late]:
                ray.cancel(ref, force=True)
                ended.add(ref)
            for ref in ready:
                unit = running.pop(ref)
                try:
                    result = ray.get(ref)
                except ray.exceptions.RayError as error:
                    if ref not in ended:  # else its silence is noted already
                        note(board, unit, error)
                    if not board.is_given_up(unit):
                        running[start(unit, scheduling_strategy="SPREAD")] = unit  # rather on another node
                else:
                    yield unit, result
    finally:
        cancel_unfinished(list(running))  # of no use any more
        watch.tell()
    if given_up := board.given_up():
        raise explain(given_up, len(units))


def note(board: Board, unit: str, error: ray.exceptions.RayError) -> None:
    """What became of an attempt."""
    own = own_error(error)
    if own is not None or isinstance(error, ray.exceptions.RayTaskError):
        board.failed(unit, last_line(error), own)
    else:
        board.lost(unit, last_line(error))
