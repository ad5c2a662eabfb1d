"""Attempts at units of work: who is at work on what, signs of life, and which units are given up.

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
BEAT_S = 5.0
"""A worker gives a sign of life at most that often."""
Kind = Literal["error", "hung", "lost"]
Answer = Literal["go", "done", "given up", "draining"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """A process that works on units."""

    node: str
    """Ray's id of its node."""
    place: str
    """For people: host and process."""
    actor: Any = None
    """Its handle, if it is an actor, so that it can be ended."""


@dataclass(slots=True, kw_only=True)
class Attempt:
    """Now going on."""

    worker: Worker
    seen: float
    """Last sign of life."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One attempt that did not end well."""

    unit: str
    kind: Kind
    cause: str
    place: str = ""
    error: MucsError | None = None
    """Our own: final."""


@dataclass(slots=True)
class Sheet:
    """The attempts at the units of one stage."""

    alive: Callable[[str], bool]
    """Whether a node is still there."""
    draining: Callable[[str], bool] = lambda node: False
    """Whether a node has been told that it will be taken away."""
    clock: Callable[[], float] = time.monotonic
    at_work: dict[str, Attempt] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    """In the order they happened."""
    crew: list[Worker] = field(default_factory=list)
    results: dict[str, Any] = field(default_factory=dict)
    """Of the units that have ended."""

    def join(self, worker: Worker) -> None:
        """A worker is there."""
        self.crew.append(worker)

    def dismiss(self) -> list[Worker]:
        """All that have joined, to be ended."""
        crew, self.crew = self.crew, []
        return crew

    def begin(self, unit: str, worker: Worker) -> Answer:
        """Before the work on a unit.

        "done": its result is known; "given up": it is not tried any more; "draining": leave it to another node.
        """
        if unit in self.results:
            return "done"
        if unit in self.at_work:  # Ray gives it out again only if whoever had it is gone
            self.lost(unit)
        if self.is_given_up(unit):
            return "given up"
        if self.draining(worker.node):
            return "draining"
        self.at_work[unit] = Attempt(worker=worker, seen=self.clock())
        return "go"

    def beat(self, unit: str) -> None:
        """A sign of life."""
        if unit in self.at_work:
            self.at_work[unit].seen = self.clock()

    def end(self, unit: str, result: Any = None) -> None:  # noqa: ANN401 - any picklable value
        """After the work on a unit. A result is kept for whoever is given the unit again."""
        self.at_work.pop(unit, None)
        if result is not None:
            self.results[unit] = result

    def result(self, unit: str) -> Any:  # noqa: ANN401 - any picklable value
        """What was kept of a unit that has ended."""
        return self.results[unit]

    def lost(self, unit: str, cause: str = "its worker died") -> None:
        """The worker of an attempt is gone, or was before it began; counted unless its whole node is."""
        attempt = self.at_work.pop(unit, None)
        if attempt is None or self.alive(attempt.worker.node):
            self._note(unit, "lost", cause, attempt)

    def failed(self, unit: str, cause: str, error: MucsError | None = None) -> None:
        """The work ended with an error."""
        self._note(unit, "error", cause, self.at_work.pop(unit, None), error)

    def overdue(self, limit_s: float) -> dict[str, Attempt]:
        """Ends the attempts that gave no sign of life for that long; whoever asks has to end the workers."""
        late = {unit: each for unit, each in self.at_work.items() if self.clock() - each.seen > limit_s}
        for unit, attempt in late.items():
            del self.at_work[unit]
            self._note(unit, "hung", f"no sign of life for {self.clock() - attempt.seen:.0f} s", attempt)
        return late

    def is_given_up(self, unit: str) -> bool:
        """Whether it is not tried any more."""
        told = [each for each in self.failures if each.unit == unit]
        return len(told) >= ATTEMPTS or any(each.error for each in told)

    def given_up(self) -> dict[str, list[Failure]]:
        """The units that are not tried any more, each with its failures."""
        units = sorted({each.unit for each in self.failures if self.is_given_up(each.unit)})
        return {unit: [each for each in self.failures if each.unit == unit] for unit in units}

    def news(self, known: int) -> tuple[list[Failure], int, int]:
        """The failures after the first `known`, how many there are, and how many units are worked on now."""
        return self.failures[known:], len(self.failures), len(self.at_work)

    def _note(self, unit: str, kind: Kind, cause: str, attempt: Attempt | None, error: MucsError | None = None) -> None:
        place = attempt.worker.place if attempt else ""
        self.results.pop(unit, None)
        self.failures.append(Failure(unit=unit, kind=kind, cause=cause, place=place, error=error))


def explain(given_up: Mapping[str, Sequence[Failure]], num_units: int) -> MucsError:
    """What to tell the user once all other units are done; InputError if the input is to blame for all of it.

    Its `units` hold the last cause of each unit.
    """
    last = {unit: told[-1] for unit, told in given_up.items()}
    causes = {unit: str(each.error or each.cause) for unit, each in last.items()}
    blame_input = all(isinstance(each.error, InputError) for each in last.values())
    first, cause = next(iter(causes.items()))
    if len(set(causes.values())) == 1 and blame_input:
        told = cause  # one corrupt file can fail many units
    else:
        tries = len(given_up[first])
        tried = "" if last[first].error else f", tried {tries} times (last on {last[first].place or 'a lost worker'})"
        told = f"{len(causes)} of {num_units} units failed, the others are done; {first}{tried}: {cause}"
        told += "" if blame_input else "; run the command again to try these again"
    error = InputError(told) if blame_input else RunFailed(told)
    error.units = causes
    return error


_sign: Callable[[], None] | None = None


def beat() -> None:
    """A sign of life of the unit that this process works on, if it does; may be called as often as one likes."""
    if _sign is not None:
        _sign()


@contextmanager
def beating(tell: Callable[[], None]) -> Iterator[None]:
    """For the duration of a unit, `beat` calls `tell`, at most every BEAT_S."""
    global _sign
    told = time.monotonic()

    def sign() -> None:
        nonlocal told
        if time.monotonic() - told >= BEAT_S:
            told = time.monotonic()
            tell()

    _sign = sign
    try:
        yield
    finally:
        _sign = None
