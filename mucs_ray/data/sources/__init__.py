"""Where images come from: one file a source.

A source is a module (or any object) with two functions:
    plan(where, size) -> Listing     reads only what is needed to list the images; InputError/MachineError in one line
    read(task) -> Iterator[Row | Reject]   decodes the images of one task, anywhere in the cluster
A third party adds one through the entry point group `mucs_ray.sources`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from mucs_ray.data.table import Row, Split


@dataclass(frozen=True, slots=True, kw_only=True)
class Reject:
    """An image that could not be used, and why; its idx stays unused."""

    idx: int
    where: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """The work of writing one shard: which images, by a small picklable description that `read` understands."""

    split: Split
    number: int
    payload: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What a source holds, before anything is decoded."""

    name: str
    licence: str
    size: int
    condition: Literal["none", "label", "embedding"]
    condition_dim: int = 0
    classes: tuple[str, ...] = ()
    tasks: tuple[Task, ...]
    rows_per_unit: int = 256
    """Images in a row group: seconds of scoring on the device that the set is meant for."""
    distributed: bool = False
    """Large enough to be decoded through Ray Data; else in this process."""


class Source(Protocol):
    """See the module's docstring."""

    def plan(self, where: str | None, size: int | None) -> Listing:
        """List the images at `where`; `size` is the shorter side in pixels (None = the source's own default)."""
        ...

    def read(self, task: Task) -> Iterator[Row | Reject]:
        """Decode one task's images, in order of idx."""
        ...
