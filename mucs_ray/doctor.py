"""This module runs the checks of `mucs-ray doctor`."""

import os
import platform
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from mucs_ray import storage
from mucs_ray.engine import host
from mucs_ray.errors import MucsError
from mucs_ray.models.pipelines.families import INSTALL

if TYPE_CHECKING:
    from mucs_ray.engine.nodes import Node

PACKAGES = ("ray", "torch", "torchvision", "pyarrow", "numpy", "open_clip_torch", "lpips", "timm")
PIPELINE_PACKAGES = ("diffusers", "transformers")
LOW_MEMORY_BYTES = 4 * 2**30
LOW_DISK_BYTES = 2 * 2**30
OTHER_CACHE = "set MUCS_RAY_CACHE to a writable folder"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A finding is one line of the doctor's output."""

    name: str
    ok: bool
    found: str
    optional: bool = False


def check(
    run: str | None, *, address: str | None = None, dataset: str | None = None, verbose: bool = False
) -> list[Finding]:
    """Run all checks and return their findings; none of them raises."""
    checks: list[Callable[[], Iterator[Finding]]] = [packages, processors, memory, folders, pretrained_weights]
    findings = [finding for run_check in checks for finding in run_check()]
    if run is not None:
        writable = run_directory(run)
        findings.append(writable)
        run = run if writable.ok else None
    return [*findings, *ray_session(address, run, dataset, verbose=verbose)]


def packages() -> Iterator[Finding]:
    """Report the versions of Python and of the packages that matter."""
    yield Finding(name="python", ok=True, found=platform.python_version())
    for name in PACKAGES:
        try:
            yield Finding(name=name, ok=True, found=version(name))
        except PackageNotFoundError:
            yield Finding(name=name, ok=False, found="not installed; run `make setup` or pip install mucs-ray")
    for name in PIPELINE_PACKAGES:
        try:
            yield Finding(name=name, ok=True, found=version(name), optional=True)
        except PackageNotFoundError:
            found = f"not installed; pipelines of diffusers need it: {INSTALL}"
            yield Finding(name=name, ok=False, found=found, optional=True)


def processors() -> Iterator[Finding]:
    """Report the CPUs that this process may use, and the GPUs."""
    from mucs_ray.engine.session import usable_cpus

    yield Finding(name="cpus", ok=True, found=f"{usable_cpus()} usable of {os.cpu_count()}")
    if names := host.gpu_names():
        yield Finding(name="gpus", ok=True, found=", ".join(names))
    else:
        yield Finding(name="gpus", ok=False, found="none, so that everything runs on the CPU", optional=True)


def memory() -> Iterator[Finding]:
    """Report the main memory, and the shared memory that holds Ray's object store."""
    total = host.memory_bytes()
    yield Finding(name="memory", ok=total > LOW_MEMORY_BYTES, found=gib(total), optional=True)
    free = host.free_shared_memory_bytes()
    if free is not None:
        yield Finding(name="shm", ok=free > LOW_MEMORY_BYTES / 2, found=f"{gib(free)} free", optional=True)


def folders() -> Iterator[Finding]:
    """Report the cache from which training images are memory-mapped."""
    from mucs_ray.data.local import cache_folder

    folder = cache_folder()
    try:
        free = host.free_cache_bytes()
        yield Finding(name="cache", ok=free > LOW_DISK_BYTES, found=f"{folder}, {gib(free)} free")
    except OSError as error:
        yield Finding(name="cache", ok=False, found=f"{folder}: {error.strerror}; {OTHER_CACHE}")


def pretrained_weights() -> Iterator[Finding]:
    """Report the networks that measure similarities and embed captions (CLIP); all are optional."""
    from mucs_ray.encoders.weights import find_weights
    from mucs_ray.evaluation.metrics import METRICS

    for metric in METRICS.values():
        if metric.weights is None:
            continue
        try:
            yield Finding(name=metric.name, ok=True, found=find_weights(metric.weights), optional=True)
        except MucsError as error:
            yield Finding(name=metric.name, ok=False, found=str(error), optional=True)


def run_directory(run: str) -> Finding:
    """Report whether a run directory can be written from here."""
    from mucs_ray.store.run import open_run

    try:
        return Finding(name="run", ok=True, found=f"{open_run(run)} can be written")
    except (OSError, MucsError) as error:
        return Finding(name="run", ok=False, found=str(error))


def ray_session(address: str | None, run: str | None, dataset: str | None, *, verbose: bool) -> Iterator[Finding]:
    """Report whether Ray starts (or the cluster answers), and what only its nodes know."""
    from mucs_ray.engine.session import session

    try:
        with session(address, verbose=verbose) as cluster:
            resources = f"{cluster.nodes} node(s), {cluster.cpus} CPUs, {cluster.gpus} GPUs"
            yield Finding(name="ray", ok=True, found=resources)
            if cluster.nodes > 1:
                yield from nodes()
            yield from same_files(run, dataset)
    except Exception as error:
        yield Finding(name="ray", ok=False, found=(str(error).splitlines() or [type(error).__name__])[0])


def nodes() -> Iterator[Finding]:
    """Report one line for each node, whether it answers or not."""
    from mucs_ray.engine.nodes import alive_nodes, run_on_each_node

    expected, nodes_alive = host.versions(), alive_nodes()
    answers, problems = run_on_each_node(dict.fromkeys(nodes_alive, host.describe_machine))
    for node in nodes_alive:
        if node in answers:
            yield node_finding(node, answers[node], expected)
        else:
            yield Finding(name=node.name, ok=False, found=f"{node.host} {node.ip}: {problems[node]}")


def node_finding(node: "Node", machine: host.Machine, expected: dict[str, str]) -> Finding:
    """Report what a node has and what is wrong with it; `here` holds the driver's versions."""
    gpus = ", ".join(f"{count} x {name}" for name, count in Counter(machine.gpus).items()) or "no GPU"
    has = [f"{node.cpus:g} CPUs", gpus, f"{gib(machine.memory_bytes)} memory"]
    if machine.shm_free_bytes is not None:
        has.append(f"{gib(machine.shm_free_bytes)} shm free")
    if machine.cache_free_bytes is not None:
        has.append(f"{gib(machine.cache_free_bytes)} cache free")
    wrong = [
        f"{name} {machine.versions[name]}, the driver has {version}"
        for name, version in expected.items()
        if machine.versions[name] != version
    ]
    if len(machine.gpus) < node.gpus:
        wrong.append(f"Ray counts {node.gpus:g} GPUs, torch can use {len(machine.gpus)}")
    if machine.cache_free_bytes is None:
        wrong.append(f"{machine.cache}: {machine.cache_problem}; {OTHER_CACHE}")
    elif machine.cache_free_bytes <= LOW_DISK_BYTES:
        wrong.append(f"{machine.cache} is nearly full")
    summary = f"{node.host} {node.ip}: {', '.join(has)}"
    return Finding(name=node.name, ok=not wrong, found="; ".join([summary, *wrong]))


def same_files(run: str | None, dataset: str | None) -> Iterator[Finding]:
    """Report whether workers on all nodes reach the same run directory and data set."""
    from mucs_ray.engine.nodes import check_dataset, check_shared

    for name, url, check_url, result in (
        ("shared run", run, check_shared, "all nodes can read and write it, and each sees what the others write"),
        ("dataset", dataset, check_dataset, "the same on all nodes"),
    ):
        if url is None:
            continue
        try:
            check_url(url)
            yield Finding(name=name, ok=True, found=f"{storage.redacted(url)}: {result}")
        except (OSError, MucsError) as error:
            yield Finding(name=name, ok=False, found=str(error))


def gib(count: int) -> str:
    """Format bytes as GiB."""
    return f"{count / 2**30:.1f} GiB"
