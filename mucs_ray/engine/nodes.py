"""Every node of the cluster is asked: what it is, and whether it sees the same files as the others.

A question is a small task that only this one node may run, also if it is busy or has no CPUs for tasks.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import uuid4

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mucs_ray import storage
from mucs_ray.engine import session, shared_folder
from mucs_ray.engine.coordinator import cancel_unfinished, last_line, own_error
from mucs_ray.errors import MachineError

PATIENCE_S = 120.0
"""A new node's first worker may take a minute: it imports torch from a cold disk."""
CLEANING_S = 20.0
SHOWN_NODES = 3
DRIVER = "driver"
WAY_OUT = "use a disk that is mounted at the same path on all nodes, or an object store (s3://bucket/...)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node as Ray lists it."""

    id: str
    host: str
    ip: str
    cpus: float
    gpus: float
    """CPUs and GPUs that Ray gives to tasks there."""

    @property
    def name(self) -> str:
        """Short, and unique also where several nodes share a machine."""
        return f"node {self.id[:6]}"

    def __str__(self) -> str:
        """For messages."""
        return f"{self.name} ({self.host})"


def alive() -> list[Node]:
    """The nodes that Ray believes to be there."""
    return [
        Node(
            id=each["NodeID"],
            host=each["NodeManagerHostname"],
            ip=each["NodeManagerAddress"],
            cpus=each["Resources"].get("CPU", 0),
            gpus=each["Resources"].get("GPU", 0),
        )
        for each in session.alive()
    ]


def ask(
    questions: Mapping[Node, Callable[[], Any]], *, patience_s: float = PATIENCE_S
) -> tuple[dict[Node, Any], dict[Node, str]]:
    """The answer of each node; and of those without one, why. Never waits for longer than `patience_s`."""

    def answer(question: Callable[[], Any]) -> Any:  # noqa: ANN401 - whatever was asked
        return question()  # not a function of this module: to find one of those, a worker would import all of it

    task: Any = ray.remote(num_cpus=0)(answer)
    tasks = {task.options(scheduling_strategy=only(node)).remote(each): node for node, each in questions.items()}
    ready, silent = ray.wait(list(tasks), num_returns=len(tasks), timeout=patience_s) if tasks else ([], [])
    answers, problems = {}, {tasks[each]: f"did not answer in {patience_s:.0f} s" for each in silent}
    for each in ready:
        try:
            answers[tasks[each]] = ray.get(each)
        except ray.exceptions.TaskUnschedulableError:
            problems[tasks[each]] = "is gone"
        except ray.exceptions.RayError as error:
            problems[tasks[each]] = str(own_error(error) or last_line(error))
    cancel_unfinished(silent)
    return answers, problems


def only(node: Node) -> NodeAffinitySchedulingStrategy:
    """There or not at all."""
    return NodeAffinitySchedulingStrategy(node.id, soft=False)


def check_shared(url: str) -> None:
    """MachineError, in one line, unless each node and the driver read what each of them writes in this folder.

    Nodes that die meanwhile are left out. Nothing stays behind. OSError as it comes if the driver itself cannot write.
    """
    url = storage.absolute(url)
    probe = storage.join(url, f".probe-{uuid4().hex}-")
    nodes = {node.id: node for node in alive()}
    folders: dict[Node, list[str]] = {}
    folders_here = shared_folder.write(probe + DRIVER)
    try:
        folders, problems = ask({node: partial(shared_folder.write, probe + node.id) for node in nodes.values()})
        refuse(problems, f"cannot write to {told(url)}")
        writers = [DRIVER, *(node.id for node in folders)]
        unseen, problems = ask({node: partial(shared_folder.absent, probe, writers) for node in nodes.values()})
        refuse(problems, f"cannot read {told(url)}")
        missed = {
            "the driver": shared_folder.absent(probe, writers),
            **{str(node): found for node, found in unseen.items()},
        }
    finally:
        cleaning = {
            node: partial(shared_folder.remove, probe + node.id, folders.get(node, [])) for node in nodes.values()
        }
        for node in ask(cleaning, patience_s=CLEANING_S)[1]:
            shared_folder.remove(probe + node.id, [])
        shared_folder.remove(probe + DRIVER, folders_here)  # last: a folder that is shared is never empty before
    for writer in writers:
        if blind := [reader for reader, found in missed.items() if writer in found]:
            author = str(nodes[writer]) if writer in nodes else "the driver"
            raise MachineError(f"what {author} wrote to {told(url)} is not seen by {several(blind)}; {WAY_OUT}")


def check_dataset(url: str) -> None:
    """MachineError, in one line, unless each node reads the same card and the start of the first shard."""
    from mucs_ray.data.table import Dataset  # imports torch, which the other questions do without

    dataset = Dataset.open(url)
    question = partial(shared_folder.start, dataset.url, dataset.card.shards[0].path)
    here = question()
    found, problems = ask({node: question for node in alive()})
    refuse(problems, f"cannot read {told(dataset.url)}")
    if other := [str(node) for node, seen in found.items() if seen != here]:
        raise MachineError(
            f"another data set than the driver's is at {told(dataset.url)} on {several(other)}; {WAY_OUT}"
        )


def refuse(problems: Mapping[Node, str], what: str) -> None:
    """MachineError for the nodes that are still there."""
    there = session.alive_nodes()
    if failed := [node for node in problems if node.id in there]:
        names = several([str(node) for node in failed])
        raise MachineError(f"{names} {what}: {problems[failed[0]]}; {WAY_OUT}")


def told(url: str) -> str:
    """A URL in a message."""
    return f"{storage.redacted(url)}{' (a local path)' if storage.is_local(url) else ''}"


def several(names: Sequence[str]) -> str:
    """Some names as words."""
    shown = [*names[:SHOWN_NODES], *([f"{len(names) - SHOWN_NODES} more"] if len(names) > SHOWN_NODES else [])]
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
