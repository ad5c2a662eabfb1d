"""The sources of images, one file for each.

A source is a module (or any object) with two functions:
    plan(where, size) -> Listing     reads only what is needed to list the images; InputError/MachineError in one line
    read(task) -> Iterator[Row | Reject]   decodes the images of one task, anywhere in the cluster
A source that lets the user choose names in CHOICES the fields of `Choices` that it knows, and `plan` takes them third.
A third party adds a source through the entry point group `mucs_ray.sources`.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

from mucs_ray.data.table import Row, Split
from mucs_ray.data.understood import Understood


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What the user says about a source where its files alone do not say it, or say it otherwise."""

    image_column: str | None = None
    """The column of file names or of images."""
    text_column: str | None = None
    """The column of captions; "none" for no captions at all."""
    label_column: str | None = None
    """The column of labels; "none" for no labels at all."""
    keep_text: bool = False
    """Whether captions stay text and are not embedded, for models that have text encoders of their own."""
    group_column: str | None = None
    """The columns to make groups by, such as the artist, with commas between them; they are kept as tags."""
    follow_links: bool = False
    """Whether soft links may lead out of the source."""

    def given(self) -> dict[str, str]:
        """Return what was said, as text; nothing for what was left open."""
        return {name: str(value) for name, value in asdict(self).items() if value}


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
    tags: tuple[str, ...] = ()
    """What the source knows beside that and groups can be made by, such as the style; none of OWN_COLUMNS."""
    tasks: tuple[Task, ...]
    rows_per_unit: int = 256
    """The number of images in a row group: seconds of scoring on the device that the set is meant for."""
    distributed: bool = False
    """Whether the images are decoded through Ray Data, because there are many, or else in this process."""
    understood: Understood = field(default_factory=Understood)
    """What the source took its files for."""


class Source(Protocol):
    """A source, as described in the module's docstring."""

    def plan(self, where: str | None, size: int | None) -> Listing:
        """List the images at `where`; `size` is the shorter side in pixels (None = the source's own default)."""
        ...

    def read(self, task: Task) -> Iterator[Row | Reject]:
        """Decode one task's images, in order of idx."""
        ...


class ChoosingSource(Protocol):
    """A source that lets the user choose."""

    def plan(self, where: str | None, size: int | None, choices: Choices | None = None) -> Listing:
        """List the images as the user says."""
        ...
