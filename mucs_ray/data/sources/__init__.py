"""The sources of images, one file for each.

A source is a module (or any object) with two functions:
    plan(where, size) -> Listing     reads only what is needed to list the images; InputError/MachineError in one line
    read(task) -> Iterator[Row | Reject]   decodes the images of one task, anywhere in the cluster
A third party adds a source through the entry point group `mucs_ray.sources`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from mucs_ray.data.table import Row, Split


@dataclass(frozen=True, slots=True, kw_only=True)
class Reject:
    """An image that could not be used, with the reason; its idx stays unused."""

    idx: int
    where: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """The images of one shard, as a small picklable payload that the source's `read` understands."""

    split: Split
    number: int
    payload: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The content of a source, before anything is decoded."""

    name: str
    licence: str
    size: int
    condition: Literal["none", "label", "embedding"]
    condition_dim: int = 0
    classes: tuple[str, ...] = ()
    tasks: tuple[Task, ...]
    rows_per_unit: int = 256
    """The number of images in a row group: seconds of scoring on the device that the set is meant for."""
    distributed: bool = False
    """Whether the images are decoded through Ray Data, because there are many, or else in this process."""


class Source(Protocol):
    """A source, as described in the module's docstring."""

    def plan(self, where: str | None, size: int | None) -> Listing:
        """List the images at `where`; `size` is the shorter side in pixels (None = the source's own default)."""
        ...

    def read(self, task: Task) -> Iterator[Row | Reject]:
        """Decode one task's images, in order of idx."""
        ...
