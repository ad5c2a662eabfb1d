"""This module describes one machine, the driver's or a node's, and sets how a worker keeps freed memory."""

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
"""These are parameters of mallopt in glibc's malloc.h."""
KEPT_BYTES, LARGEST_KEPT_BYTES = 2**30, 2**25
"""A worker keeps so much freed memory, in pieces of at most the second size (glibc takes no more)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """These facts may differ between nodes, except for the versions, which must not."""

    versions: dict[str, str]
    """The versions that must be equal everywhere: Python (to the minor version), mucs-ray, ray, torch."""
    gpus: tuple[str, ...]
    """The names of the GPUs that torch can use."""
    memory_bytes: int
    shm_free_bytes: int | None
    """The free space of /dev/shm, or None where there is none."""
    cache: str
    cache_free_bytes: int | None
    """The free space of the cache, or None if nothing can be written there; `cache_problem` says why."""
    cache_problem: str = ""


def keep_freed_memory() -> None:
    """Let this process keep the memory that one forward frees for the next one, instead of taking fresh pages each
    time.

    Small forwards on a CPU take a quarter less time. Nothing changes where the C library is not glibc.
    """
    with suppress(AttributeError, OSError, TypeError):
        malloc = ctypes.CDLL(None)
        malloc.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
        malloc.mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT_BYTES)


def describe_machine() -> Machine:
    """Describe this machine as this process sees it."""
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
    """Return the versions that must be equal on all nodes.

    torch's "+cpu" or "+cu130" is left out, because nodes with and without GPUs work together.
    """
    major, minor, _ = platform.python_version_tuple()
    packages = {name: version(name).partition("+")[0] for name in ("ray", "torch")}
    return {"python": f"{major}.{minor}", "mucs-ray": f"{__version__} (code {code_digest()})", **packages}


def code_digest() -> str:
    """Return a digest of the package's code, which differs between checkouts of the same version."""
    files = sorted(Path(__file__).parents[1].rglob("*.py"))
    return sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:8]


def gpu_names() -> tuple[str, ...]:
    """Return the names of the GPUs that torch can use."""
    import torch

    if not torch.cuda.is_available():
        return ()
    return tuple(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count()))


def memory_bytes() -> int:
    """Return the size of the main memory, or of as much of it as this container may use."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(total, int(MEMORY_LIMIT.read_text()))
    except (OSError, ValueError):  # no such file, or "max"
        return total


def free_shared_memory_bytes() -> int | None:
    """Return the free space for Ray's object store, or None where there is no /dev/shm."""
    return shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.exists() else None


def free_cache_bytes() -> int:
    """Return the free space for copies of training images. It raises OSError if nothing can be written there."""
    from mucs_ray.data.local import cache_folder

    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        return shutil.disk_usage(folder).free
