"""What `mucs-ray doctor` looks at."""

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

if TYPE_CHECKING:
    from mucs_ray.engine.nodes import Node

PACKAGES = ("ray", "torch", "torchvision", "pyarrow", "numpy", "open_clip_torch", "lpips", "timm")
LOW_MEMORY_BYTES = 4 * 2**30
LOW_DISK_BYTES = 2 * 2**30
OTHER_CACHE = "set MUCS_RAY_CACHE to a writable folder"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the doctor's."""

    name: str
    ok: bool
    found: str
    optional: bool = False


def check(
    run: str | None, *, address: str | None = None, dataset: str | None = None, verbose: bool = False
) -> list[Finding]:
    """All findings; none of them raises."""
    checks: list[Callable[[], Iterator[Finding]]] = [packages, processors, memory, folders, pretrained_weights]
    found = [finding for each in checks for finding in each()]
    if run is not None:
        written = run_directory(run)
        found.append(written)
        run = run if written.ok else None
    return [*found, *ray_session(address, run, dataset, verbose=verbose)]


def packages() -> Iterator[Finding]:
    """Python and the packages that matter."""
    yield Finding(name="python", ok=True, found=platform.python_version())
    for name in PACKAGES:
        try:
            yield Finding(name=name, ok=True, found=version(name))
        except PackageNotFoundError:
            yield Finding(name=name, ok=False, found="not installed; run `make setup` or pip install mucs-ray")


def processors() -> Iterator[Finding]:
    """CPUs this process may use, and GPUs."""
    from mucs_ray.engine.session import usable_cpus

    yield Finding(name="cpus", ok=True, found=f"{usable_cpus()} usable of {os.cpu_count()}")
    if names := host.gpu_names():
        yield Finding(name="gpus", ok=True, found=", ".join(names))
    else:
        yield Finding(name="gpus", ok=False, found="none: everything runs on the CPU", optional=True)


def memory() -> Iterator[Finding]:
    """Main memory, and the shared memory that Ray's object store lives in."""
    total = host.memory_bytes()
    yield Finding(name="memory", ok=total > LOW_MEMORY_BYTES, found=gib(total), optional=True)
    free = host.free_shared_memory_bytes()
    if free is not None:
        yield Finding(name="shm", ok=free > LOW_MEMORY_BYTES / 2, found=f"{gib(free)} free", optional=True)


def folders() -> Iterator[Finding]:
    """The cache that training images are memory-mapped from."""
    from mucs_ray.data.local import cache_folder

    folder = cache_folder()
    try:
        free = host.free_cache_bytes()
        yield Finding(name="cache", ok=free > LOW_DISK_BYTES, found=f"{folder}, {gib(free)} free")
    except OSError as error:
        yield Finding(name="cache", ok=False, found=f"{folder}: {error.strerror}; {OTHER_CACHE}")


def pretrained_weights() -> Iterator[Finding]:
    """The networks that similarities are measured by, and captions embedded with (CLIP); all can be done without."""
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
    """Whether a run directory can be written from here."""
    from mucs_ray.store.run import open_run

    try:
        return Finding(name="run", ok=True, found=f"{open_run(run)} can be written")
    except (OSError, MucsError) as error:
        return Finding(name="run", ok=False, found=str(error))


def ray_session(address: str | None, run: str | None, dataset: str | None, *, verbose: bool) -> Iterator[Finding]:
    """Whether Ray starts (or the cluster answers), and what only its nodes can tell."""
    from mucs_ray.engine.session import session

    try:
        with session(address, verbose=verbose) as cluster:
            found = f"{cluster.nodes} node(s), {cluster.cpus} CPUs, {cluster.gpus} GPUs"
            yield Finding(name="ray", ok=True, found=found)
            if cluster.nodes > 1:
                yield from nodes()
            yield from same_files(run, dataset)
    except Exception as error:
        yield Finding(name="ray", ok=False, found=(str(error).splitlines() or [type(error).__name__])[0])


def nodes() -> Iterator[Finding]:
    """A line a node, whether it answers or not."""
    from mucs_ray.engine.nodes import alive, run_on_each_node

    here, listed = host.versions(), alive()
    answers, problems = run_on_each_node(dict.fromkeys(listed, host.look))
    for node in listed:
        if node in answers:
            yield node_finding(node, answers[node], here)
        else:
            yield Finding(name=node.name, ok=False, found=f"{node.host} {node.ip}: {problems[node]}")


def node_finding(node: "Node", there: host.Machine, here: dict[str, str]) -> Finding:
    """What a node has, and what is wrong with it; `here` are the driver's versions."""
    gpus = ", ".join(f"{count} x {name}" for name, count in Counter(there.gpus).items()) or "no GPU"
    has = [f"{node.cpus:g} CPUs", gpus, f"{gib(there.memory_bytes)} memory"]
    if there.shm_free_bytes is not None:
        has.append(f"{gib(there.shm_free_bytes)} shm free")
    if there.cache_free_bytes is not None:
        has.append(f"{gib(there.cache_free_bytes)} cache free")
    wrong = [
        f"{name} {there.versions[name]}, the driver has {version}"
        for name, version in here.items()
        if there.versions[name] != version
    ]
    if len(there.gpus) < node.gpus:
        wrong.append(f"Ray counts {node.gpus:g} GPUs, torch can use {len(there.gpus)}")
    if there.cache_free_bytes is None:
        wrong.append(f"{there.cache}: {there.cache_problem}; {OTHER_CACHE}")
    elif there.cache_free_bytes <= LOW_DISK_BYTES:
        wrong.append(f"{there.cache} is nearly full")
    told = f"{node.host} {node.ip}: {', '.join(has)}"
    return Finding(name=node.name, ok=not wrong, found="; ".join([told, *wrong]))


def same_files(run: str | None, dataset: str | None) -> Iterator[Finding]:
    """Whether workers on all nodes reach the same run directory and data set."""
    from mucs_ray.engine.nodes import check_dataset, check_shared

    for name, url, test, proven in (
        ("shared run", run, check_shared, "read and written by all nodes, each of which sees what the others write"),
        ("dataset", dataset, check_dataset, "the same on all nodes"),
    ):
        if url is None:
            continue
        try:
            test(url)
            yield Finding(name=name, ok=True, found=f"{storage.redacted(url)}: {proven}")
        except (OSError, MucsError) as error:
            yield Finding(name=name, ok=False, found=str(error))


def gib(count: int) -> str:
    """Bytes as GiB."""
    return f"{count / 2**30:.1f} GiB"
