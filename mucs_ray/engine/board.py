"""A notice board: workers post how far they are, the driver reads it while it waits; with sheets of attempts."""

import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from uuid import uuid4

import ray
import ray.exceptions
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mucs_ray.engine.attempts import Answer, Attempt, Failure, Sheet, Worker
from mucs_ray.engine.session import alive_nodes, draining_nodes
from mucs_ray.errors import InputError, MachineError, MucsError, RunFailed

POLL_S = 0.5
DRAINING_S = 1.0
"""How old the answer to "which nodes are being taken away" may be."""


@ray.remote(num_cpus=0)
class Notes:
    """The latest value under each key, on any number of boards, and a sheet of attempts each: one process a session."""

    def __init__(self) -> None:
        """Empty."""
        self.boards: dict[str, dict[str, Any]] = {}
        self.sheets: dict[str, Sheet] = {}
        self.draining, self.asked = set[str](), 0.0

    def post(self, board: str, key: str, value: Any) -> None:  # noqa: ANN401 - any picklable value
        """Replace the value under a key."""
        self.boards.setdefault(board, {})[key] = value

    def read(self, board: str) -> dict[str, Any]:
        """All values on a board."""
        return self.boards.get(board, {})

    def sheet(self, board: str, method: str, *arguments: Any) -> Any:  # noqa: ANN401 - those of Sheet
        """Call a method of the board's sheet."""
        sheet = self.sheets.setdefault(board, Sheet(lambda node: node in alive_nodes(), self.is_draining))
        return getattr(sheet, method)(*arguments)

    def is_draining(self, node: str) -> bool:
        """Whether a node has been told that it will be taken away."""
        if time.monotonic() - self.asked > DRAINING_S:
            self.draining, self.asked = draining_nodes(), time.monotonic()
        return node in self.draining


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """One board; goes to workers as it is."""

    notes: ActorHandle
    name: str

    def post(self, key: str, value: Any) -> None:  # noqa: ANN401 - any picklable value
        """Replace the value under a key, some time soon."""
        self.notes.post.remote(self.name, key, value)

    def post_now(self, key: str, value: Any) -> None:  # noqa: ANN401 - any picklable value
        """Replace the value under a key, and come back when it is there."""
        ray.get(self.notes.post.remote(self.name, key, value))

    def read(self) -> dict[str, Any]:
        """All values on the board."""
        found: Any = ray.get(self.notes.read.remote(self.name))
        return found

    def _ask(self, method: str, *arguments: Any) -> Any:  # noqa: ANN401 - those of Sheet
        return ray.get(self.notes.sheet.remote(self.name, method, *arguments))

    def join(self, worker: Worker) -> None:
        """As of Sheet, like those below."""
        self._ask("join", worker)

    def dismiss(self) -> list[Worker]:
        """All that have joined."""
        return self._ask("dismiss")

    def begin(self, unit: str, worker: Worker) -> Answer:
        """Before the work on a unit."""
        return self._ask("begin", unit, worker)

    def beat(self, unit: str) -> None:
        """A sign of life, some time soon."""
        self.notes.sheet.remote(self.name, "beat", unit)

    def end(self, unit: str, result: Any = None) -> None:  # noqa: ANN401 - any picklable value
        """The work on a unit has ended well."""
        self._ask("end", unit, result)

    def result(self, unit: str) -> Any:  # noqa: ANN401 - any picklable value
        """What was kept of a unit that has ended."""
        return self._ask("result", unit)

    def failed(self, unit: str, cause: str, error: MucsError | None = None) -> None:
        """The work ended with an error."""
        self._ask("failed", unit, cause, error)

    def lost(self, unit: str, cause: str) -> None:
        """The worker is gone."""
        self._ask("lost", unit, cause)

    def overdue(self, limit_s: float) -> dict[str, Attempt]:
        """Attempts that gave no sign of life for so long; they are counted as failed."""
        return self._ask("overdue", limit_s)

    def is_given_up(self, unit: str) -> bool:
        """Whether a unit is not tried any more."""
        return self._ask("is_given_up", unit)

    def given_up(self) -> dict[str, list[Failure]]:
        """The units that are not tried any more."""
        return self._ask("given_up")

    def news(self, known: int) -> tuple[list[Failure], int, int]:
        """The failures after the first `known`, how many there are, and how many units are worked on now."""
        return self._ask("news", known)


def this_worker(actor: ActorHandle | None = None) -> Worker:
    """The process that this runs in."""
    context = ray.get_runtime_context()
    place = f"{ray.util.get_node_ip_address()} pid {os.getpid()}"
    return Worker(node=context.get_node_id(), place=place, actor=actor)


def this_node() -> NodeAffinitySchedulingStrategy:
    """The driver's node: what is there is lost only with the driver."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def new_board() -> Board:
    """An empty board owned by this driver."""
    context = ray.get_runtime_context()
    return Board(notes=session_notes(context.get_job_id(), context.get_node_id()), name=uuid4().hex)


@lru_cache(maxsize=1)
def session_notes(job: str, node: str) -> ActorHandle:
    """The actor that holds all boards of this session; every Ray that is started has a node of its own."""
    return Notes.options(scheduling_strategy=this_node()).remote()  # pyright: ignore[reportReturnType]


def own_error(error: BaseException) -> MucsError | None:
    """Our own error inside what Ray raised, if there is one."""
    seen: BaseException | None = error
    while seen is not None:
        if type(seen).__module__.startswith("mucs_ray"):
            return seen if isinstance(seen, MucsError) else None
        seen = getattr(seen, "cause", None) or seen.__cause__
    return told_error(str(error))


def told_error(text: str) -> MucsError | None:
    """Our own error out of a remote traceback: of what fails in an actor's constructor Ray keeps only the text."""
    found = re.findall(r"^\S*mucs_ray\.errors\.(\w+): (.+)$", text, flags=re.MULTILINE)
    kinds = {kind.__name__: kind for kind in (InputError, MachineError, RunFailed)}
    return kinds[found[-1][0]](found[-1][1]) if found and found[-1][0] in kinds else None


def cancel_unfinished(tasks: Sequence[ObjectRef], *, patience_s: float = 0.0) -> None:
    """End tasks, but for those that end by themselves until then: cancelling a task whose result is just arriving was
    seen to abort the driver (Ray 2.60, "Tried to complete task that was not pending").
    """
    if tasks:
        _, unfinished = ray.wait(list(tasks), num_returns=len(tasks), timeout=patience_s)
        for task in unfinished:
            ray.cancel(task, force=True)


def last_line(error: BaseException) -> str:
    """The telling line of a remote traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
