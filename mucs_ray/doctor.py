"""What `mucs-ray doctor` looks at."""

import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mucs_ray.errors import MucsError

PACKAGES = ("ray", "torch", "torchvision", "pyarrow", "numpy", "open_clip_torch", "lpips", "timm")
LOW_MEMORY_BYTES = 4 * 2**30
LOW_DISK_BYTES = 2 * 2**30
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - looked at, not written to


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the doctor's."""

    name: str
    ok: bool
    found: str
    optional: bool = False


def check(run: str | None, *, verbose: bool) -> list[Finding]:
    """All findings; none of them raises."""
    checks: list[Callable[[], Iterator[Finding]]] = [packages, processors, memory, folders, pretrained_weights]
    found = [finding for each in checks for finding in each()]
    if run is not None:
        found += list(run_directory(run))
    return [*found, *ray_session(verbose=verbose)]


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
    import torch

    from mucs_ray.engine.session import usable_cpus

    yield Finding(name="cpus", ok=True, found=f"{usable_cpus()} usable of {os.cpu_count()}")
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count()))
        yield Finding(name="gpus", ok=True, found=names)
    else:
        yield Finding(name="gpus", ok=False, found="none: everything runs on the CPU", optional=True)


def memory() -> Iterator[Finding]:
    """Main memory, and the shared memory that Ray's object store lives in."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    yield Finding(name="memory", ok=total > LOW_MEMORY_BYTES, found=f"{total / 2**30:.1f} GiB", optional=True)
    if SHARED_MEMORY.exists():
        free = shutil.disk_usage(SHARED_MEMORY).free
        enough = free > LOW_MEMORY_BYTES / 2
        yield Finding(name="shm", ok=enough, found=f"{free / 2**30:.1f} GiB free", optional=True)


def folders() -> Iterator[Finding]:
    """The cache that training images are memory-mapped from."""
    from mucs_ray.data.local import cache_folder

    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            free = shutil.disk_usage(folder).free
        yield Finding(name="cache", ok=free > LOW_DISK_BYTES, found=f"{folder}, {free / 2**30:.1f} GiB free")
    except OSError as error:
        yield Finding(
            name="cache", ok=False, found=f"{folder}: {error.strerror}; set MUCS_RAY_CACHE to a writable folder"
        )


def pretrained_weights() -> Iterator[Finding]:
    """The networks that similarities are measured by, and captions embedded with (CLIP); all can be done without."""
    from mucs_ray.evaluation.pretrained import find_weights
    from mucs_ray.evaluation.similarity import METRICS

    for metric in METRICS.values():
        if metric.weights is None:
            continue
        try:
            yield Finding(name=metric.name, ok=True, found=find_weights(metric.weights), optional=True)
        except MucsError as error:
            yield Finding(name=metric.name, ok=False, found=str(error), optional=True)


def run_directory(run: str) -> Iterator[Finding]:
    """Whether a run directory can be written."""
    from mucs_ray.store.run import open_run

    try:
        yield Finding(name="run", ok=True, found=f"{open_run(run)} can be written")
    except MucsError as error:
        yield Finding(name="run", ok=False, found=str(error))


def ray_session(*, verbose: bool) -> Iterator[Finding]:
    """Whether Ray starts (or the cluster answers)."""
    from mucs_ray.engine.session import session

    try:
        with session(verbose=verbose) as cluster:
            found = f"{cluster.nodes} node(s), {cluster.cpus} CPUs, {cluster.gpus} GPUs"
        yield Finding(name="ray", ok=True, found=found)
    except Exception as error:
        yield Finding(name="ray", ok=False, found=str(error).splitlines()[0])
