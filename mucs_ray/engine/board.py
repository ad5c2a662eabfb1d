"""A notice board: workers post how far they are, the driver reads it while it waits; and waiting for tasks with it."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from uuid import uuid4

import ray
import ray.exceptions
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mucs_ray.engine.session import Cluster
from mucs_ray.errors import InputError, MachineError, MucsError, RunFailed

POLL_S = 0.5


@ray.remote(num_cpus=0)
class Notes:
    """The latest value under each key, on any number of boards: one process a session."""

    def __init__(self) -> None:
        """Empty."""
        self.boards: dict[str, dict[str, Any]] = {}
        self.closed: set[str] = set()

    def post(self, board: str, key: str, value: Any) -> None:  # noqa: ANN401 - any picklable value
        """Replace the value under a key."""
        if board not in self.closed:
            self.boards.setdefault(board, {})[key] = value

    def read(self, board: str) -> dict[str, Any]:
        """All values on a board."""
        return self.boards.get(board, {})

    def close(self, board: str) -> dict[str, Any]:
        """Its last values; what is posted later is dropped."""
        self.closed.add(board)
        return self.boards.pop(board, {})


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

    def close(self) -> dict[str, Any]:
        """Its last values; what is posted later is dropped."""
        found: Any = ray.get(self.notes.close.remote(self.name))
        return found


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


def as_task(function: Callable[..., Any], cluster: Cluster) -> Any:  # noqa: ANN401 - Ray's types do not tell
    """A Ray task with the resources of one worker. On a GPU Ray ends its process with it, which frees the memory."""
    options: Any = cluster.worker_options
    return ray.remote(**options)(function)


def results(tasks: Sequence[ObjectRef], *, on_wait: Callable[[], None] = lambda: None) -> Iterator[Any]:
    """Results in the order they are ready; our own errors come as themselves, others as RunFailed."""
    waiting = list(tasks)
    try:
        while waiting:
            ready, waiting = ray.wait(waiting, num_returns=1, timeout=POLL_S)
            on_wait()
            for task in ready:
                try:
                    yield ray.get(task)
                except ray.exceptions.RayError as error:
                    raise own_error(error) or RunFailed(f"a task failed: {last_line(error)}") from error
    finally:
        cancel_unfinished(waiting)  # of no use any more


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
