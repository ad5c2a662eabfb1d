"""Questions to every node of the cluster: what it is, and whether it sees the same files as the others.

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
from mucs_ray.engine.coordinator import cancel_unfinished, last_line, mucs_error_in
from mucs_ray.errors import MachineError

ANSWER_TIMEOUT_S = 120.0
"""A new node's first worker may take a minute: it imports torch from a cold disk."""
CLEANUP_TIMEOUT_S = 20.0
SHOWN_NODES = 3
DRIVER = "driver"
REMEDY = "use a disk that is mounted at the same path on all nodes, or an object store (s3://bucket/...)"


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
        """The node as messages name it."""
        return f"{self.name} ({self.host})"


def alive_nodes() -> list[Node]:
    """The nodes that Ray believes to be there."""
    return [
        Node(
            id=each["NodeID"],
            host=each["NodeManagerHostname"],
            ip=each["NodeManagerAddress"],
            cpus=each["Resources"].get("CPU", 0),
            gpus=each["Resources"].get("GPU", 0),
        )
        for each in session.node_infos()
    ]


def run_on_each_node(
    questions: Mapping[Node, Callable[[], Any]], *, timeout_s: float = ANSWER_TIMEOUT_S
) -> tuple[dict[Node, Any], dict[Node, str]]:
    """The answer of each node; and of those without one, why. Never waits for longer than `timeout_s`."""

    def answer(question: Callable[[], Any]) -> Any:  # noqa: ANN401 - whatever was asked
        return question()  # not a function of this module: to find one of those, a worker would import all of it

    task: Any = ray.remote(num_cpus=0)(answer)
    tasks = {task.options(scheduling_strategy=on_node(node)).remote(each): node for node, each in questions.items()}
    ready, unanswered = ray.wait(list(tasks), num_returns=len(tasks), timeout=timeout_s) if tasks else ([], [])
    answers, problems = {}, {tasks[each]: f"did not answer in {timeout_s:.0f} s" for each in unanswered}
    for each in ready:
        try:
            answers[tasks[each]] = ray.get(each)
        except ray.exceptions.TaskUnschedulableError:
            problems[tasks[each]] = "is gone"
        except ray.exceptions.RayError as error:
            problems[tasks[each]] = str(mucs_error_in(error) or last_line(error))
    cancel_unfinished(unanswered)
    return answers, problems


def on_node(node: Node) -> NodeAffinitySchedulingStrategy:
    """A strategy that runs a task on this node or not at all."""
    return NodeAffinitySchedulingStrategy(node.id, soft=False)


def check_shared(url: str) -> None:
    """MachineError, in one line, unless each node and the driver read what each of them writes in this folder.

    Nodes that die meanwhile are left out. Nothing stays behind. OSError as it comes if the driver itself cannot write.
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
        shared_folder.remove(probe + DRIVER, driver_folders)  # last: a folder that is shared is never empty before
    for writer in writers:
        if readers := [reader for reader, unread in unreadable_by.items() if writer in unread]:
            author = str(nodes[writer]) if writer in nodes else "the driver"
            raise MachineError(
                f"what {author} wrote to {describe_url(url)} is not seen by {join_names(readers)}; {REMEDY}"
            )


def check_dataset(url: str) -> None:
    """MachineError, in one line, unless each node reads the same card and the start of the first shard."""
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
    """MachineError for the nodes that are still there."""
    present = session.alive_node_ids()
    if failed := [node for node in problems if node.id in present]:
        names = join_names([str(node) for node in failed])
        raise MachineError(f"{names} {what}: {problems[failed[0]]}; {REMEDY}")


def describe_url(url: str) -> str:
    """The URL as messages show it."""
    return f"{storage.redacted(url)}{' (a local path)' if storage.is_local(url) else ''}"


def join_names(names: Sequence[str]) -> str:
    """Names joined as words, the first few of many."""
    shown = [*names[:SHOWN_NODES], *([f"{len(names) - SHOWN_NODES} more"] if len(names) > SHOWN_NODES else [])]
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
