"""Attempts at units of work: which worker is at work on which unit, signs of life, and which units are given up.

A unit is whatever is published under one name: the scores of a row group, an unlearned item, a group of sums. It is
tried at most ATTEMPTS times. An attempt that ended because its whole node went away does not count: the unit had no
part in that. An error of our own (MucsError) is final at once: it would only be repeated.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from mucs_ray.errors import InputError, MucsError, RunFailed

ATTEMPTS = 3
HEARTBEAT_S = 5.0
"""A worker gives a sign of life at most that often."""
Kind = Literal["error", "hung", "lost"]
Decision = Literal["go", "done", "given up", "draining"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """A process that works on units."""

    node: str
    """Ray's id of its node."""
    place: str
    """Host and process, for messages."""
    actor: Any = None
    """The handle of an actor, by which it can be ended; None for a task."""


@dataclass(slots=True, kw_only=True)
class Attempt:
    """An attempt that is going on now."""

    worker: Worker
    last_heartbeat: float
    """On the tracker's clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One attempt that did not end well."""

    unit: str
    kind: Kind
    cause: str
    place: str = ""
    error: MucsError | None = None
    """An error of our own, which is final; None for any other."""


@dataclass(slots=True)
class AttemptTracker:
    """Keeps the attempts at the units of one stage."""

    is_alive: Callable[[str], bool]
    """Whether a node is still there."""
    is_draining: Callable[[str], bool] = lambda node: False
    """Whether a node has been told that it will be taken away."""
    clock: Callable[[], float] = time.monotonic
    active: dict[str, Attempt] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    """In the order they happened."""
    workers: list[Worker] = field(default_factory=list)
    results: dict[str, Any] = field(default_factory=dict)
    """What the units that have ended returned."""

    def add_worker(self, worker: Worker) -> None:
        """Remember a worker, so that it can be ended."""
        self.workers.append(worker)

    def take_workers(self) -> list[Worker]:
        """All workers that were added since the last call; whoever asks ends them."""
        workers, self.workers = self.workers, []
        return workers

    def begin(self, unit: str, worker: Worker) -> Decision:
        """Called before the work on a unit.

        "done": its result is num_known; "given up": it is not tried any more; "draining": leave it to another node.
        """
        if unit in self.results:
            return "done"
        if unit in self.active:  # Ray gives it out again only if whoever had it is gone
            self.record_lost(unit)
        if self.is_given_up(unit):
            return "given up"
        if self.is_draining(worker.node):
            return "draining"
        self.active[unit] = Attempt(worker=worker, last_heartbeat=self.clock())
        return "go"

    def heartbeat(self, unit: str) -> None:
        """Note that the worker of a unit gave a sign of life."""
        if unit in self.active:
            self.active[unit].last_heartbeat = self.clock()

    def end(self, unit: str, result: Any = None) -> None:  # noqa: ANN401 - any picklable value
        """Called after the work on a unit. A result is kept for whoever is given the unit again."""
        self.active.pop(unit, None)
        if result is not None:
            self.results[unit] = result

    def result(self, unit: str) -> Any:  # noqa: ANN401 - any picklable value
        """What was kept of a unit that has ended."""
        return self.results[unit]

    def record_lost(self, unit: str, cause: str = "its worker died") -> None:
        """Called when the worker of an attempt is gone, or was before it began; counted unless its whole node is."""
        attempt = self.active.pop(unit, None)
        if attempt is None or self.is_alive(attempt.worker.node):
            self._record(unit, "lost", cause, attempt)

    def record_error(self, unit: str, cause: str, error: MucsError | None = None) -> None:
        """Called when the work on a unit ended with an error."""
        self._record(unit, "error", cause, self.active.pop(unit, None), error)

    def end_overdue(self, limit_s: float) -> dict[str, Attempt]:
        """Ends the attempts that gave no sign of life for that long; whoever asks has to end the workers."""
        overdue = {
            unit: attempt for unit, attempt in self.active.items() if self.clock() - attempt.last_heartbeat > limit_s
        }
        for unit, attempt in overdue.items():
            del self.active[unit]
            self._record(unit, "hung", f"no sign of life for {self.clock() - attempt.last_heartbeat:.0f} s", attempt)
        return overdue

    def is_given_up(self, unit: str) -> bool:
        """Whether a unit is not tried any more."""
        failures = [failure for failure in self.failures if failure.unit == unit]
        return len(failures) >= ATTEMPTS or any(failure.error for failure in failures)

    def given_up(self) -> dict[str, list[Failure]]:
        """The units that are not tried any more, each with its failures."""
        units = sorted({failure.unit for failure in self.failures if self.is_given_up(failure.unit)})
        return {unit: [failure for failure in self.failures if failure.unit == unit] for unit in units}

    def failures_since(self, num_known: int) -> tuple[list[Failure], int, int]:
        """The failures after the first `num_known`, how many there are, and how many units are worked on now."""
        return self.failures[num_known:], len(self.failures), len(self.active)

    def _record(
        self, unit: str, kind: Kind, cause: str, attempt: Attempt | None, error: MucsError | None = None
    ) -> None:
        place = attempt.worker.place if attempt else ""
        self.results.pop(unit, None)
        self.failures.append(Failure(unit=unit, kind=kind, cause=cause, place=place, error=error))


def given_up_error(given_up: Mapping[str, Sequence[Failure]], num_units: int) -> MucsError:
    """The error that is raised once all other units are done; InputError if the input is to blame for all of it.

    Its `units` hold the last cause of each unit.
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
    """Give a sign of life of the unit that this process works on, if it does; may be called as often as one likes."""
    if _send_heartbeat is not None:
        _send_heartbeat()


@contextmanager
def heartbeats(send: Callable[[], None]) -> Iterator[None]:
    """For the duration of a unit, `heartbeat` calls `send`, at most every HEARTBEAT_S."""
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
