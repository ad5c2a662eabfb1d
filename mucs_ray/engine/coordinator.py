"""Driver and workers share state through one actor: the progress of each stage, and the attempts at its units."""

import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Concatenate, ParamSpec, TypeVar
from uuid import uuid4

import ray
import ray.exceptions
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mucs_ray.engine.attempts import AttemptTracker, Worker
from mucs_ray.engine.session import alive_node_ids, draining_node_ids
from mucs_ray.errors import InputError, MachineError, MucsError, RunFailed

P = ParamSpec("P")
T = TypeVar("T")
POLL_S = 0.5
DRAINING_S = 1.0
"""The ids of draining nodes are asked for again when they are older than this."""


@ray.remote(num_cpus=0)
class CoordinatorActor:
    """This actor holds the state of every stage of a session: values by key, and the attempts at the stage's units."""

    def __init__(self) -> None:
        """Start without any state; a stage's state is made when it is first named."""
        self.values: dict[str, dict[str, Any]] = {}
        self.trackers: dict[str, AttemptTracker] = {}
        self.draining, self.draining_read_at = set[str](), 0.0

    def post(self, stage: str, key: str, value: Any) -> None:  # noqa: ANN401 - any picklable value
        """Replace the value under a key."""
        self.values.setdefault(stage, {})[key] = value

    def read(self, stage: str) -> dict[str, Any]:
        """Return all values of a stage, by key."""
        return self.values.get(stage, {})

    def call(self, stage: str, method: str, *arguments: Any) -> Any:  # noqa: ANN401 - those of AttemptTracker
        """Call a method of the stage's AttemptTracker."""
        if stage not in self.trackers:
            self.trackers[stage] = AttemptTracker(lambda node: node in alive_node_ids(), self.is_draining)
        return getattr(self.trackers[stage], method)(*arguments)

    def is_draining(self, node: str) -> bool:
        """Return True if Ray has announced that the node will be taken away."""
        if time.monotonic() - self.draining_read_at > DRAINING_S:
            self.draining, self.draining_read_at = draining_node_ids(), time.monotonic()
        return node in self.draining


@dataclass(frozen=True, slots=True, kw_only=True)
class Coordinator:
    """This handle reaches the state that driver and workers share on one stage; it can be sent to workers."""

    actor: ActorHandle
    stage: str
    """A name that no other stage of the session has."""

    def post(self, key: str, value: Any) -> None:  # noqa: ANN401 - any picklable value
        """Replace the value under a key, without waiting until it is replaced."""
        self.actor.post.remote(self.stage, key, value)

    def post_now(self, key: str, value: Any) -> None:  # noqa: ANN401 - any picklable value
        """Replace the value under a key, and return once it is replaced."""
        ray.get(self.actor.post.remote(self.stage, key, value))

    def read(self) -> dict[str, Any]:
        """Return all values, by key."""
        values: Any = ray.get(self.actor.read.remote(self.stage))
        return values

    def call(self, method: Callable[Concatenate[AttemptTracker, P], T], *arguments: P.args, **_: P.kwargs) -> T:
        """Call a method of the stage's AttemptTracker with positional arguments, and return what it returns."""
        result: Any = ray.get(self.actor.call.remote(self.stage, method.__name__, *arguments))
        return result

    def send(self, method: Callable[Concatenate[AttemptTracker, P], None], *arguments: P.args, **_: P.kwargs) -> None:
        """Call a method of the stage's AttemptTracker with positional arguments, without waiting for it."""
        self.actor.call.remote(self.stage, method.__name__, *arguments)


def this_worker(actor: ActorHandle | None = None) -> Worker:
    """Return the process that calls this."""
    context = ray.get_runtime_context()
    place = f"{ray.util.get_node_ip_address()} pid {os.getpid()}"
    return Worker(node=context.get_node_id(), place=place, actor=actor)


def this_node() -> NodeAffinitySchedulingStrategy:
    """Return a strategy that runs on the driver's node, so that the work is lost only together with the driver."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def new_coordinator() -> Coordinator:
    """Return a coordinator without any values, whose actor belongs to this driver."""
    context = ray.get_runtime_context()
    return Coordinator(actor=session_actor(context.get_job_id(), context.get_node_id()), stage=uuid4().hex)


@lru_cache(maxsize=1)
def session_actor(job: str, node: str) -> ActorHandle:
    """Return the one actor of a session. Every Ray that is started has another node, and so gets another actor."""
    return CoordinatorActor.options(scheduling_strategy=this_node()).remote()  # pyright: ignore[reportReturnType]


def mucs_error_in(error: BaseException) -> MucsError | None:
    """Return the error of this package inside what Ray raised, or None if there is none."""
    current: BaseException | None = error
    while current is not None:
        if type(current).__module__.startswith("mucs_ray"):
            return current if isinstance(current, MucsError) else None
        current = getattr(current, "cause", None) or current.__cause__
    return parse_error(str(error))


def parse_error(text: str) -> MucsError | None:
    """Read an error of this package out of a remote traceback.

    Of what fails in an actor's constructor Ray keeps only the text.
    """
    matches = re.findall(r"^\S*mucs_ray\.errors\.(\w+): (.+)$", text, flags=re.MULTILINE)
    kinds = {kind.__name__: kind for kind in (InputError, MachineError, RunFailed)}
    return kinds[matches[-1][0]](matches[-1][1]) if matches and matches[-1][0] in kinds else None


def cancel_unfinished(tasks: Sequence[ObjectRef], *, timeout_s: float = 0.0) -> None:
    """Cancel the tasks that have not ended by themselves after `timeout_s` seconds.

    They are waited for because cancelling a task whose result is just arriving was seen to abort the driver (Ray 2.60,
    "Tried to complete task that was not pending").
    """
    if tasks:
        _, unfinished = ray.wait(list(tasks), num_returns=len(tasks), timeout=timeout_s)
        for task in unfinished:
            ray.cancel(task, force=True)


def last_line(error: BaseException) -> str:
    """Return the last line of a remote traceback, which names the error."""
    if "out of memory" in str(error).lower():  # Ray's text is a page, and its last line a link
        return (
            "a worker was ended because the machine ran out of memory; take a smaller model, fewer workers"
            " (engine.train_workers, engine.actors), or a machine with more memory"
        )
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
