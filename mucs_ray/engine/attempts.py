"""This module counts attempts at units of work: which worker works on which unit, its heartbeats, and what is given up.

A unit is whatever is published under one name: the scores of a row group, an unlearned item, a group of sums. It is
tried at most ATTEMPTS times. An attempt that ended because its whole node went away does not count, because the unit
did not cause that. An error of this package (MucsError) is final at once, because it would only be repeated.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from mucs_ray.errors import InputError, MucsError, RunFailed

ATTEMPTS = 3
HEARTBEAT_S = 5.0
"""A worker sends a heartbeat at most once in this many seconds."""
Kind = Literal["error", "hung", "lost"]
Decision = Literal["go", "done", "given up", "draining"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """A worker is a process that works on units."""

    node: str
    """Ray's id of its node."""
    place: str
    """Host and process, for messages."""
    actor: Any = None
    """The handle of an actor, by which it can be ended; None for a task."""


@dataclass(slots=True, kw_only=True)
class Attempt:
    """An attempt is one worker's work on one unit, while it goes on."""

    worker: Worker
    last_heartbeat: float
    """The time of the last heartbeat on the tracker's clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A failure is one attempt that did not end well."""

    unit: str
    kind: Kind
    cause: str
    place: str = ""
    error: MucsError | None = None
    """An error of this package, which is final; None for any other."""


@dataclass(slots=True)
class AttemptTracker:
    """The tracker keeps the attempts at the units of one stage."""

    is_alive: Callable[[str], bool]
    """Whether a node is still part of the cluster."""
    is_draining: Callable[[str], bool] = lambda node: False
    """Whether Ray has announced that a node will be taken away."""
    clock: Callable[[], float] = time.monotonic
    active: dict[str, Attempt] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    """All failures, in the order in which they happened."""
    workers: list[Worker] = field(default_factory=list)
    results: dict[str, Any] = field(default_factory=dict)
    """What the units that have ended returned."""

    def add_worker(self, worker: Worker) -> None:
        """Remember a worker, so that it can be ended."""
        self.workers.append(worker)

    def take_workers(self) -> list[Worker]:
        """Return all workers that were added since the last call. The caller has to end them."""
        workers, self.workers = self.workers, []
        return workers

    def begin(self, unit: str, worker: Worker) -> Decision:
        """Decide whether a worker may begin to work on a unit, and record the attempt if it may.

        "go" allows it. "done" means that the unit's result is known, "given up" that the unit is not tried any more,
        and "draining" that another node has to do it, because the worker's node will be taken away.
        """
        if unit in self.results:
            return "done"
        if unit in self.active:  # Ray hands a unit out again only if its worker is gone
            self.record_lost(unit)
        if self.is_given_up(unit):
            return "given up"
        if self.is_draining(worker.node):
            return "draining"
        self.active[unit] = Attempt(worker=worker, last_heartbeat=self.clock())
        return "go"

    def heartbeat(self, unit: str) -> None:
        """Record that the worker of a unit is alive."""
        if unit in self.active:
            self.active[unit].last_heartbeat = self.clock()

    def end(self, unit: str, result: Any = None) -> None:  # noqa: ANN401 - any picklable value
        """Record that an attempt ended well, and keep the result for whoever is given the unit again."""
        self.active.pop(unit, None)
        if result is not None:
            self.results[unit] = result

    def result(self, unit: str) -> Any:  # noqa: ANN401 - any picklable value
        """Return the result that was kept of a unit that has ended."""
        return self.results[unit]

    def record_lost(self, unit: str, cause: str = "its worker died") -> None:
        """Record that the worker of an attempt is gone, or died before it began. It counts unless the worker's node is
        gone too.
        """
        attempt = self.active.pop(unit, None)
        if attempt is None or self.is_alive(attempt.worker.node):
            self._record(unit, "lost", cause, attempt)

    def record_error(self, unit: str, cause: str, error: MucsError | None = None) -> None:
        """Record that the work on a unit ended with an error."""
        self._record(unit, "error", cause, self.active.pop(unit, None), error)

    def end_overdue(self, limit_s: float) -> dict[str, Attempt]:
        """End the attempts that sent no heartbeat for `limit_s` seconds, and return them. The caller has to end their
        workers.
        """
        overdue = {
            unit: attempt for unit, attempt in self.active.items() if self.clock() - attempt.last_heartbeat > limit_s
        }
        for unit, attempt in overdue.items():
            del self.active[unit]
            self._record(unit, "hung", f"no sign of life for {self.clock() - attempt.last_heartbeat:.0f} s", attempt)
        return overdue

    def is_given_up(self, unit: str) -> bool:
        """Return True if a unit is not tried any more."""
        failures = [failure for failure in self.failures if failure.unit == unit]
        return len(failures) >= ATTEMPTS or any(failure.error for failure in failures)

    def given_up(self) -> dict[str, list[Failure]]:
        """Return the units that are not tried any more, each with its failures."""
        units = sorted({failure.unit for failure in self.failures if self.is_given_up(failure.unit)})
        return {unit: [failure for failure in self.failures if failure.unit == unit] for unit in units}

    def failures_since(self, num_known: int) -> tuple[list[Failure], int, int]:
        """Return the failures after the first `num_known`, the number of all failures, and the number of units worked
        on now.
        """
        return self.failures[num_known:], len(self.failures), len(self.active)

    def _record(
        self, unit: str, kind: Kind, cause: str, attempt: Attempt | None, error: MucsError | None = None
    ) -> None:
        place = attempt.worker.place if attempt else ""
        self.results.pop(unit, None)
        self.failures.append(Failure(unit=unit, kind=kind, cause=cause, place=place, error=error))


def given_up_error(given_up: Mapping[str, Sequence[Failure]], num_units: int) -> MucsError:
    """Return the error to raise for units that were given up, once all other units are done.

    It is an InputError if the input is to blame for all of them, else RunFailed. Its `units` hold the last cause of
    each unit.
    """
    last = {unit: failures[-1] for unit, failures in given_up.items()}
    causes = {unit: str(failure.error or failure.cause) for unit, failure in last.items()}
    blame_input = all(isinstance(failure.error, InputError) for failure in last.values())
    first, cause = next(iter(causes.items()))
    if len(set(causes.values())) == 1 and blame_input:
        message = cause  # one corrupt file can fail many units
    else:
        tries = len(given_up[first])
        tried = "" if last[first].error else f", tried {tries} times (last on {last[first].place or 'a lost worker'})"
        message = f"{len(causes)} of {num_units} units failed, the others are done; {first}{tried}: {cause}"
        message += "" if blame_input else "; run the command again to try these again"
    error = InputError(message) if blame_input else RunFailed(message)
    error.units = causes
    return error


_send_heartbeat: Callable[[], None] | None = None


def heartbeat() -> None:
    """Send a heartbeat for the unit that this process works on, if it works on one. It may be called as often as one
    likes.
    """
    if _send_heartbeat is not None:
        _send_heartbeat()


@contextmanager
def heartbeats(send: Callable[[], None]) -> Iterator[None]:
    """Let `heartbeat` call `send` while a unit is worked on, at most once in HEARTBEAT_S."""
    global _send_heartbeat
    sent_at = time.monotonic()

    def send_if_due() -> None:
        nonlocal sent_at
        if time.monotonic() - sent_at >= HEARTBEAT_S:
            sent_at = time.monotonic()
            send()

    _send_heartbeat = send_if_due
    try:
        yield
    finally:
        _send_heartbeat = None
