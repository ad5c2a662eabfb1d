"""Named units of work run as one Ray task each; those that fail are tried again while the others go on."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ray
import ray.exceptions
from ray import ObjectRef

from mucs_ray.engine.attempts import AttemptTracker, given_up_error, heartbeats
from mucs_ray.engine.coordinator import (
    POLL_S,
    Coordinator,
    cancel_unfinished,
    last_line,
    mucs_error_in,
    new_coordinator,
    this_worker,
)
from mucs_ray.engine.progress import Bar
from mucs_ray.engine.session import Cluster
from mucs_ray.engine.watch import Watch


def run_attempt(coordinator: Coordinator, unit: str, function: Callable[..., Any], *arguments: Any) -> Any:  # noqa: ANN401
    """Make one attempt at a unit, in a worker."""
    coordinator.call(AttemptTracker.begin, unit, this_worker())
    with heartbeats(lambda: coordinator.send(AttemptTracker.heartbeat, unit)):
        result = function(*arguments)
    coordinator.call(AttemptTracker.end, unit)
    return result


def run_units(
    function: Callable[..., Any],
    units: Mapping[str, tuple[Any, ...]],
    *,
    cluster: Cluster,
    bar: Bar,
    coordinator: Coordinator | None = None,
    on_wait: Callable[[], None] = lambda: None,
) -> Iterator[tuple[str, Any]]:
    """Yield (name, function(*arguments)) of each named unit in the order they end, each in a task of its own.

    A unit that fails is tried again while the others go on. At the end those that were given up are raised as one
    error. On a GPU Ray ends a task's process with it, which frees the memory.
    """
    coordinator = coordinator or new_coordinator()
    watch = Watch([(coordinator, bar)], cluster.engine.timeout)
    resources: Any = cluster.worker_options
    task: Any = ray.remote(**resources, max_retries=0)(run_attempt)

    def start(unit: str, **options: Any) -> ObjectRef:  # noqa: ANN401 - as Ray's own
        return task.options(**options).remote(coordinator, unit, function, *units[unit])

    running, cancelled = {start(unit): unit for unit in units}, set[ObjectRef]()
    try:
        while running:
            ready, _ = ray.wait(list(running), num_returns=1, timeout=POLL_S)
            on_wait()
            hanging = {unit for unit, _ in watch.check()}
            for ref in [ref for ref, unit in running.items() if unit in hanging]:
                ray.cancel(ref, force=True)
                cancelled.add(ref)
            for ref in ready:
                unit = running.pop(ref)
                try:
                    result = ray.get(ref)
                except ray.exceptions.RayError as error:
                    if ref not in cancelled:  # a cancelled attempt is counted already
                        record_failure(coordinator, unit, error)
                    if not coordinator.call(AttemptTracker.is_given_up, unit):
                        running[start(unit, scheduling_strategy="SPREAD")] = unit  # preferably on another node
                else:
                    yield unit, result
    finally:
        cancel_unfinished(list(running))  # their results are not needed any more
        watch.report()
    if given_up := coordinator.call(AttemptTracker.given_up):
        raise given_up_error(given_up, len(units))


def record_failure(coordinator: Coordinator, unit: str, error: ray.exceptions.RayError) -> None:
    """Record a failed attempt as an error, or as a worker that was lost."""
    mucs_error = mucs_error_in(error)
    if mucs_error is not None or isinstance(error, ray.exceptions.RayTaskError):
        coordinator.call(AttemptTracker.record_error, unit, last_line(error), mucs_error)
    else:
        coordinator.call(AttemptTracker.record_lost, unit, last_line(error))
