"""This module asks every node of the cluster what it is, and whether it sees the same files as the others.

Each question is a small task that runs on this one node only, also if the node is busy or has no CPUs for tasks.
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
from mucs_ray.engine.coordinator import cancel_unfinished, last_line, mucs_error_in
from mucs_ray.errors import MachineError

ANSWER_TIMEOUT_S = 120.0
"""A new node's first worker may take a minute to answer, because it imports torch from a cold disk."""
CLEANUP_TIMEOUT_S = 20.0
SHOWN_NODES = 3
DRIVER = "driver"
REMEDY = "use a disk that is mounted at the same path on all nodes, or an object store (s3://bucket/...)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """This is a node as Ray lists it."""

    id: str
    host: str
    ip: str
    cpus: float
    gpus: float
    """The CPUs and GPUs that Ray gives to tasks on the node."""

    @property
    def name(self) -> str:
        """Return a short name, which is unique also where several nodes share a machine."""
        return f"node {self.id[:6]}"

    def __str__(self) -> str:
        """Return the node as messages name it."""
        return f"{self.name} ({self.host})"


def alive_nodes() -> list[Node]:
    """Return the nodes that Ray counts as alive."""
    return [
        Node(
            id=info["NodeID"],
            host=info["NodeManagerHostname"],
            ip=info["NodeManagerAddress"],
            cpus=info["Resources"].get("CPU", 0),
            gpus=info["Resources"].get("GPU", 0),
        )
        for info in session.node_infos()
    ]


def run_on_each_node(
    questions: Mapping[Node, Callable[[], Any]], *, timeout_s: float = ANSWER_TIMEOUT_S
) -> tuple[dict[Node, Any], dict[Node, str]]:
    """Run a function on each node; return the answers, and for nodes without an answer the reason.

    It never waits for longer than `timeout_s`.
    """

    def answer(question: Callable[[], Any]) -> Any:  # noqa: ANN401 - whatever was asked
        return question()  # a nested function is sent whole; for one of this module a worker would import the module

    task: Any = ray.remote(num_cpus=0)(answer)
    tasks = {
        task.options(scheduling_strategy=on_node(node)).remote(question): node for node, question in questions.items()
    }
    ready, unanswered = ray.wait(list(tasks), num_returns=len(tasks), timeout=timeout_s) if tasks else ([], [])
    answers, problems = {}, {tasks[task_ref]: f"did not answer in {timeout_s:.0f} s" for task_ref in unanswered}
    for task_ref in ready:
        try:
            answers[tasks[task_ref]] = ray.get(task_ref)
        except ray.exceptions.TaskUnschedulableError:
            problems[tasks[task_ref]] = "is gone"
        except ray.exceptions.RayError as error:
            problems[tasks[task_ref]] = str(mucs_error_in(error) or last_line(error))
    cancel_unfinished(unanswered)
    return answers, problems


def on_node(node: Node) -> NodeAffinitySchedulingStrategy:
    """Return a strategy that runs a task on this node or not at all."""
    return NodeAffinitySchedulingStrategy(node.id, soft=False)


def check_shared(url: str) -> None:
    """Raise MachineError unless each node and the driver read what each of them writes in this folder.

    Nodes that die meanwhile are left out, and nothing is left behind. If the driver itself cannot write, its OSError is
    raised as it is.
    """
    url = storage.absolute(url)
    probe = storage.join(url, f".probe-{uuid4().hex}-")
    nodes = {node.id: node for node in alive_nodes()}
    folders: dict[Node, list[str]] = {}
    driver_folders = shared_folder.write(probe + DRIVER)
    try:
        folders, problems = run_on_each_node(
            {node: partial(shared_folder.write, probe + node.id) for node in nodes.values()}
        )
        raise_problems(problems, f"cannot write to {describe_url(url)}")
        writers = [DRIVER, *(node.id for node in folders)]
        unreadable_on, problems = run_on_each_node(
            {node: partial(shared_folder.unreadable_probes, probe, writers) for node in nodes.values()}
        )
        raise_problems(problems, f"cannot read {describe_url(url)}")
        unreadable_by = {
            "the driver": shared_folder.unreadable_probes(probe, writers),
            **{str(node): writers for node, writers in unreadable_on.items()},
        }
    finally:
        cleanups = {
            node: partial(shared_folder.remove, probe + node.id, folders.get(node, [])) for node in nodes.values()
        }
        for node in run_on_each_node(cleanups, timeout_s=CLEANUP_TIMEOUT_S)[1]:
            shared_folder.remove(probe + node.id, [])
        shared_folder.remove(probe + DRIVER, driver_folders)  # last, so that a shared folder is not empty before
    for writer in writers:
        if readers := [reader for reader, unread in unreadable_by.items() if writer in unread]:
            author = str(nodes[writer]) if writer in nodes else "the driver"
            raise MachineError(
                f"what {author} wrote to {describe_url(url)} is not seen by {join_names(readers)}; {REMEDY}"
            )


def check_dataset(url: str) -> None:
    """Raise MachineError unless each node reads the same card and the same start of the first shard."""
    from mucs_ray.data.table import Dataset  # imports torch, which the other questions do without

    dataset = Dataset.open(url)
    question = partial(shared_folder.dataset_probe, dataset.url, dataset.card.shards[0].path)
    on_driver = question()
    starts, problems = run_on_each_node({node: question for node in alive_nodes()})
    raise_problems(problems, f"cannot read {describe_url(dataset.url)}")
    if differing := [str(node) for node, start in starts.items() if start != on_driver]:
        raise MachineError(
            f"another data set than the driver's is at {describe_url(dataset.url)} on {join_names(differing)}; {REMEDY}"
        )


def raise_problems(problems: Mapping[Node, str], what: str) -> None:
    """Raise MachineError for the nodes with problems that are still alive."""
    present = session.alive_node_ids()
    if failed := [node for node in problems if node.id in present]:
        names = join_names([str(node) for node in failed])
        raise MachineError(f"{names} {what}: {problems[failed[0]]}; {REMEDY}")


def describe_url(url: str) -> str:
    """Return the URL as messages show it."""
    return f"{storage.redacted(url)}{' (a local path)' if storage.is_local(url) else ''}"


def join_names(names: Sequence[str]) -> str:
    """Join names into words, the first few of many."""
    shown = [*names[:SHOWN_NODES], *([f"{len(names) - SHOWN_NODES} more"] if len(names) > SHOWN_NODES else [])]
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
