"""What one machine says of itself, asked of the driver's and each node of a cluster; and how a worker uses memory."""

import ctypes
import os
import platform
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

from mucs_ray import __version__

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - looked at, not written to
MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Names of glibc's malloc.h."""
KEPT_BYTES, LARGEST_KEPT_BYTES = 2**30, 2**25
"""What a worker keeps of what it has freed; one piece of it, at most (glibc takes no more)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What differs between nodes, and what must not."""

    versions: dict[str, str]
    """What must be equal everywhere: Python (to the minor version), mucs-ray, ray, torch."""
    gpus: tuple[str, ...]
    """Names of those that torch can use."""
    memory_bytes: int
    shm_free_bytes: int | None
    """None where there is no /dev/shm."""
    cache: str
    cache_free_bytes: int | None
    """None if nothing can be written there, for this reason:"""
    cache_problem: str = ""


def keep_freed_memory() -> None:
    """Let this process keep what one forward frees for the next one, instead of taking fresh pages each time.

    Small forwards on a CPU take a quarter less time by it. Elsewhere than with glibc nothing is changed.
    """
    with suppress(AttributeError, OSError, TypeError):
        malloc = ctypes.CDLL(None)
        malloc.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
        malloc.mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT_BYTES)


def describe_machine() -> Machine:
    """This machine, as this process sees it."""
    from mucs_ray.data.local import cache_folder

    free, problem = None, ""
    try:
        free = free_cache_bytes()
    except OSError as error:
        problem = error.strerror or str(error)
    return Machine(
        versions=versions(),
        gpus=gpu_names(),
        memory_bytes=memory_bytes(),
        shm_free_bytes=free_shared_memory_bytes(),
        cache=str(cache_folder()),
        cache_free_bytes=free,
        cache_problem=problem,
    )


def versions() -> dict[str, str]:
    """What must be equal on all nodes. Not torch's "+cpu" or "+cu130": nodes with and without GPUs work together."""
    major, minor, _ = platform.python_version_tuple()
    others = {name: version(name).partition("+")[0] for name in ("ray", "torch")}
    return {"python": f"{major}.{minor}", "mucs-ray": f"{__version__} (code {code_digest()})", **others}


def code_digest() -> str:
    """Tells two checkouts apart: the version is not raised with every change."""
    files = sorted(Path(__file__).parents[1].rglob("*.py"))
    return sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:8]


def gpu_names() -> tuple[str, ...]:
    """GPUs that torch can use."""
    import torch

    if not torch.cuda.is_available():
        return ()
    return tuple(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count()))


def memory_bytes() -> int:
    """Main memory, or as much of it as this container may use."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(total, int(MEMORY_LIMIT.read_text()))
    except (OSError, ValueError):  # no such file, or "max"
        return total


def free_shared_memory_bytes() -> int | None:
    """Where Ray's object store lives; None where there is none."""
    return shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.exists() else None


def free_cache_bytes() -> int:
    """Space for copies of training images. OSError if nothing can be written there."""
    from mucs_ray.data.local import cache_folder

    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        return shutil.disk_usage(folder).free
