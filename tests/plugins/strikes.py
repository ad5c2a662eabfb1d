"""Faults at exact points of the work, laid by a test and suffered, once each, by whatever process comes by first.

A strike is a file in MUCS_RAY_STRIKES, "POINT.KIND.NUMBER" or "POINT@WHERE.KIND.NUMBER"; whoever can delete it suffers
it. Points are in MUCS as it computes (`strikes:StruckMUCS`; WHERE is the first idx of a unit or an item's number), and
around the writes of scores to a URL "struck:///path" (found by fsspec as a plug-in).
"""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem

from mucs_ray.attribution.base import Columns, ItemState, Tensors
from mucs_ray.attribution.mucs import MUCS
from mucs_ray.diffusion.batch import Batch, Item


def lay(point: str, kind: str, count: int = 1, *, about: str = "") -> None:
    """`count` strikes; `about` is the pid to kill for "driver"."""
    for number in range(count):
        (folder() / f"{point}.{kind}.{number}").write_text(about)


def left() -> int:
    """How many have not been suffered."""
    return len(list(folder().iterdir()))


def folder() -> Path:
    found = Path(os.environ["MUCS_RAY_STRIKES"])
    found.mkdir(parents=True, exist_ok=True)
    return found


def strike(point: str, where: int | None = None) -> None:
    """Suffer the first strike that is laid for this point, if there is one."""
    for token in sorted([*folder().glob(f"{point}.*"), *folder().glob(f"{point}@{where}.*")]):
        about = token.read_text() if token.exists() else ""
        try:
            token.unlink()
        except FileNotFoundError:
            continue  # another process was first
        match token.name.split(".")[1]:
            case "error":
                raise OSError(f"struck {point}")
            case "wait":
                time.sleep(4)
            case "hang":
                time.sleep(10_000)
            case "worker":
                os.kill(os.getpid(), signal.SIGKILL)
            case "node":
                os.kill(os.getppid(), signal.SIGKILL)  # the raylet, and with it all its workers
                os.kill(os.getpid(), signal.SIGKILL)
            case "driver":
                os.kill(int(about), signal.SIGKILL)
                time.sleep(10_000)  # Ray ends this process when it sees that its driver has died
        return


class StruckMUCS(MUCS):
    """MUCS, struck before or after it computes a unit."""

    card = replace(MUCS.card, name="struck-mucs")

    def fit_item(self, item: Item, fitted: Tensors, on_update: Callable[[int, float], None]) -> ItemState:
        strike("adapt", item.number)
        return super().fit_item(item, fitted, on_update)

    def columns(self, rows: Batch) -> Columns:
        strike("before-compute", int(rows.idx[0]))
        found = super().columns(rows)
        strike("before-publish", int(rows.idx[0]))
        return found


class StruckFiles(DirFileSystem):
    """Local files with the manners of an object store, struck around the writing of parts of scores."""

    protocol = "struck"

    def __init__(self, **options: Any) -> None:
        super().__init__(path="/", fs=LocalFileSystem(auto_mkdir=True), **options)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path.removeprefix("struck://").rstrip("/")

    def pipe_file(self, path: str, value: bytes, **options: Any) -> None:
        part = "/train-part-" in path
        if part:
            strike("write")
            self.tear(path, value)
        super().pipe_file(path, value, **options)
        if part:
            self.double(path, value)
            strike("after-publish")

    def tear(self, path: str, value: bytes) -> None:
        """Half of a write, and then an error."""
        try:
            strike("tear")
        except OSError:
            super().pipe_file(path, value[: len(value) // 2])
            raise

    def double(self, path: str, value: bytes) -> None:
        """The same write once more, late: the answer to the first got lost, and the client asked again."""
        try:
            strike("double")
        except OSError:
            time.sleep(0.5)
            super().pipe_file(path, value)
