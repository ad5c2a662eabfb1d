"""State shared by driver and workers: progress of each stage, and the attempts at its units."""

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

from mucs_ray.engine.attempts import Answer, Attempt, AttemptTracker, Failure, Worker
from mucs_ray.engine.session import alive_nodes, draining_nodes
from mucs_ray.errors import InputError, MachineError, MucsError, RunFailed

POLL_S = 0.5
DRAINING_S = 1.0
"""How old the answer to "which nodes are being taken away" may be."""


@ray.remote(num_cpus=0)
class CoordinatorActor:
    """The state of every stage of a session: the latest value under each key, and the attempts at its units."""

    def __init__(self) -> None:
        """It begins empty."""
        self.values: dict[str, dict[str, Any]] = {}
        self.trackers: dict[str, AttemptTracker] = {}
        self.draining, self.asked_at = set[str](), 0.0

    def post(self, stage: str, key: str, value: Any) -> None:  # noqa: ANN401 - any picklable value
        """Replace the value under a key."""
        self.values.setdefault(stage, {})[key] = value

    def read(self, stage: str) -> dict[str, Any]:
        """All values of a stage, by key."""
        return self.values.get(stage, {})

    def track(self, stage: str, method: str, *arguments: Any) -> Any:  # noqa: ANN401 - those of AttemptTracker
        """Call a method of the stage's AttemptTracker."""
        tracker = self.trackers.setdefault(stage, AttemptTracker(lambda node: node in alive_nodes(), self.is_draining))
        return getattr(tracker, method)(*arguments)

    def is_draining(self, node: str) -> bool:
        """Whether a node has been told that it will be taken away."""
        if time.monotonic() - self.asked_at > DRAINING_S:
            self.draining, self.asked_at = draining_nodes(), time.monotonic()
        return node in self.draining


@dataclass(frozen=True, slots=True, kw_only=True)
class Coordinator:
    """The state that driver and workers share on one stage; it is a handle, and goes to workers as it is."""

    actor: ActorHandle
    stage: str
    """A name that no other stage of the session has."""

    def post(self, key: str, value: Any) -> None:  # noqa: ANN401 - any picklable value
        """Replace the value under a key, some time soon."""
        self.actor.post.remote(self.stage, key, value)

    def post_now(self, key: str, value: Any) -> None:  # noqa: ANN401 - any picklable value
        """Replace the value under a key, and return when it is there."""
        ray.get(self.actor.post.remote(self.stage, key, value))

    def read(self) -> dict[str, Any]:
        """All values, by key."""
        values: Any = ray.get(self.actor.read.remote(self.stage))
        return values

    def _track(self, method: str, *arguments: Any) -> Any:  # noqa: ANN401 - those of AttemptTracker
        return ray.get(self.actor.track.remote(self.stage, method, *arguments))

    def add_worker(self, worker: Worker) -> None:
        """See AttemptTracker, which has this method and those below."""
        self._track("add_worker", worker)

    def take_workers(self) -> list[Worker]:
        """All workers that were added since the last call."""
        return self._track("take_workers")

    def begin(self, unit: str, worker: Worker) -> Answer:
        """Called before the work on a unit."""
        return self._track("begin", unit, worker)

    def heartbeat(self, unit: str) -> None:
        """Send a sign of life, which arrives some time soon."""
        self.actor.track.remote(self.stage, "heartbeat", unit)

    def end(self, unit: str, result: Any = None) -> None:  # noqa: ANN401 - any picklable value
        """Called when the work on a unit has ended well."""
        self._track("end", unit, result)

    def result(self, unit: str) -> Any:  # noqa: ANN401 - any picklable value
        """What was kept of a unit that has ended."""
        return self._track("result", unit)

    def failed(self, unit: str, cause: str, error: MucsError | None = None) -> None:
        """Called when the work on a unit ended with an error."""
        self._track("failed", unit, cause, error)

    def lost(self, unit: str, cause: str) -> None:
        """Called when the worker of a unit is gone."""
        self._track("lost", unit, cause)

    def overdue(self, limit_s: float) -> dict[str, Attempt]:
        """Attempts that gave no sign of life for so long; they are counted as failed."""
        return self._track("overdue", limit_s)

    def is_given_up(self, unit: str) -> bool:
        """Whether a unit is not tried any more."""
        return self._track("is_given_up", unit)

    def given_up(self) -> dict[str, list[Failure]]:
        """The units that are not tried any more."""
        return self._track("given_up")

    def failures_since(self, known: int) -> tuple[list[Failure], int, int]:
        """The failures after the first `known`, how many there are, and how many units are worked on now."""
        return self._track("failures_since", known)


def this_worker(actor: ActorHandle | None = None) -> Worker:
    """The process that calls this."""
    context = ray.get_runtime_context()
    place = f"{ray.util.get_node_ip_address()} pid {os.getpid()}"
    return Worker(node=context.get_node_id(), place=place, actor=actor)


def this_node() -> NodeAffinitySchedulingStrategy:
    """The driver's node: what is there is lost only with the driver."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def new_coordinator() -> Coordinator:
    """A coordinator without any values, whose actor belongs to this driver."""
    context = ray.get_runtime_context()
    return Coordinator(actor=session_actor(context.get_job_id(), context.get_node_id()), stage=uuid4().hex)


@lru_cache(maxsize=1)
def session_actor(job: str, node: str) -> ActorHandle:
    """The one actor of a session; every Ray that is started has a node of its own."""
    return CoordinatorActor.options(scheduling_strategy=this_node()).remote()  # pyright: ignore[reportReturnType]


def own_error(error: BaseException) -> MucsError | None:
    """Our own error inside what Ray raised, if there is one."""
    seen: BaseException | None = error
    while seen is not None:
        if type(seen).__module__.startswith("mucs_ray"):
            return seen if isinstance(seen, MucsError) else None
        seen = getattr(seen, "cause", None) or seen.__cause__
    return parse_error(str(error))


def parse_error(text: str) -> MucsError | None:
    """Our own error out of a remote traceback: of what fails in an actor's constructor Ray keeps only the text."""
    matches = re.findall(r"^\S*mucs_ray\.errors\.(\w+): (.+)$", text, flags=re.MULTILINE)
    kinds = {kind.__name__: kind for kind in (InputError, MachineError, RunFailed)}
    return kinds[matches[-1][0]](matches[-1][1]) if matches and matches[-1][0] in kinds else None


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
