"""A notice board: workers post how far they are, the driver reads it while it waits; and waiting for tasks with it."""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
import ray.exceptions
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mucs_ray.errors import InputError, MachineError, MucsError, RunFailed

POLL_S = 0.5


@ray.remote(num_cpus=0)
class Board:
    """Latest value under each key."""

    def __init__(self) -> None:
        """Empty."""
        self.notes: dict[str, Any] = {}

    def post(self, key: str, value: Any) -> None:  # noqa: ANN401 - any picklable value
        """Replace the value under a key."""
        self.notes[key] = value

    def read(self) -> dict[str, Any]:
        """All values."""
        return self.notes


def new_board() -> ActorHandle:
    """A board owned by this driver."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Board.options(scheduling_strategy=here).remote()  # pyright: ignore[reportReturnType]


def read(board: ActorHandle) -> dict[str, Any]:
    """All values on a board."""
    notes: Any = ray.get(board.read.remote())
    return notes


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


def results(tasks: Sequence[ObjectRef], *, on_wait: Callable[[], None] = lambda: None) -> Iterator[Any]:
    """Results in the order they are ready; our own errors come as themselves, others as RunFailed."""
    waiting = list(tasks)
    while waiting:
        ready, waiting = ray.wait(waiting, num_returns=1, timeout=POLL_S)
        on_wait()
        for task in ready:
            try:
                yield ray.get(task)
            except ray.exceptions.RayError as error:
                raise own_error(error) or RunFailed(f"a task failed: {last_line(error)}") from error


def last_line(error: BaseException) -> str:
    """The telling line of a remote traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
