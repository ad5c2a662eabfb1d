"""A folder of images as it lies on a disk, by the conventions of ImageFolder and of common tools.

    root/<class>/**         class folders                                              -> labels
    root/**                 with a metadata file (see metadata.py) that lists images   -> labels, or captions, embedded
    root/**                 with captions in x.txt beside x.png                        -> captions, embedded
    root/*                  only images                                                -> no condition
Any of these may be split (see splits.py); without a test split a fixed tenth is held out. The condition is that which
most training images have, captions before labels; images without it are counted and passed over. Images come in order
of their path; nothing outside root is read.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from mucs_ray import storage
from mucs_ray.data import caption_embedding
from mucs_ray.data.decode import DecodeError, decode_upright
from mucs_ray.data.sources import Choices, Listing, Reject, Task
from mucs_ray.data.sources.columns import NONE, ordered
from mucs_ray.data.sources.cutting import tasks_of, with_test_split
from mucs_ray.data.sources.described import describe
from mucs_ray.data.sources.listed import Entry
from mucs_ray.data.sources.metadata import decoded
from mucs_ray.data.table import Row
from mucs_ray.data.understood import Aside, Understood
from mucs_ray.errors import InputError, MachineError

CHOICES = ("image_column", "text_column", "label_column", "keep_text", "group_column", "follow_links")
DEFAULT_SIZE = 64
PER_SHARD = 1024
FEW = 1000
"""As many images are decoded in this process in less time than Ray takes to start."""
Condition = Literal["none", "label", "embedding"]


@dataclass(frozen=True, slots=True)
class Place:
    """What reading needs beside a task's images."""

    root: str
    size: int
    classes: tuple[str, ...]
    embedding: bool


def plan(where: str | None, size: int | None, choices: Choices | None = None) -> Listing:
    """List the images. MachineError at once if they have captions and the CLIP weights are absent."""
    if where is None:
        raise InputError("folder needs --source, a folder of images")
    choices = choices or Choices()
    root, side, aside = storage.absolute(where).rstrip("/"), size or DEFAULT_SIZE, Aside()
    found = describe(root, choices, aside)
    condition = condition_of([entry for entry in found.entries if entry.split == "train"])
    if choices.keep_text and condition == "embedding":
        condition = "none"
    if condition == "embedding":
        demand_weights()
    usable = [entry for entry in found.entries if has(entry, condition)]
    for entry in found.entries:
        if not has(entry, condition):
            aside.add(lacking(entry, condition), entry.path)
    if not any(entry.split == "train" for entry in usable):
        raise InputError(f"no training image of {root} can be used ({aside.sentence()})")
    train, test, splits = with_test_split(usable, aside, name=lambda entry: entry.path)
    classes = ordered({entry.label for entry in (*train, *test) if entry.label is not None})
    return Listing(
        name=PurePosixPath(root).name or "folder",
        licence="unknown: the user's own images",
        size=side,
        condition=condition,
        condition_dim={"none": 0, "label": len(classes), "embedding": caption_embedding.DIM}[condition],
        classes=classes,
        tags=tuple(dict.fromkeys(tag for entry in (*train, *test) for tag in entry.tags)),
        tasks=tasks_of(
            train, test, per_shard=PER_SHARD, extra=Place(root, side, classes, embedding=condition == "embedding")
        ),
        distributed=len(train) + len(test) > FEW,
        understood=Understood(
            splits=splits,
            labels=found.labels if classes else "",
            captions=found.captions,
            passed_over=aside.reasons(),
            notes=found.notes,
        ),
    )


def read(task: Task) -> Iterator[Row | Reject]:
    """Decode a task's images, and embed their captions if these are the condition."""
    first_idx, entries, place = task.payload
    numbers = {name: number for number, name in enumerate(place.classes)}
    captions = [captions_of(place.root, entry) for entry in entries]
    told = [each if isinstance(each, tuple) and place.embedding else () for each in captions]
    conditions = caption_embedding.embed_each(told)
    for idx, (entry, texts, condition) in enumerate(zip(entries, captions, conditions, strict=True), start=first_idx):
        if isinstance(texts, str):
            yield Reject(idx=idx, where=entry.path, reason=texts)
            continue
        try:
            image, turned = decode_upright(storage.read_bytes(storage.join(place.root, entry.path)), size=place.size)
        except DecodeError as error:
            yield Reject(idx=idx, where=entry.path, reason=str(error))
        except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError) as error:
            yield Reject(idx=idx, where=entry.path, reason=error.strerror or "absent")
        else:
            label = None if entry.label is None else numbers[entry.label]
            embedded = condition if place.embedding else None
            yield Row(
                idx=idx, image=image, label=label, text=texts, condition=embedded, name=entry.path,
                tags=entry.tags, turned=turned,
            )  # fmt: skip


def captions_of(root: str, entry: Entry) -> tuple[str, ...] | str:
    """Return an image's captions, a line each where they are in a file beside it; or why that cannot be read."""
    if entry.caption_file is None:
        return entry.captions
    try:
        text = decoded(storage.read_bytes(storage.join(root, entry.caption_file)))
    except (UnicodeDecodeError, FileNotFoundError, PermissionError):
        return "its file of captions cannot be read as UTF-8 or UTF-16"
    lines = tuple(line.strip() for line in text.splitlines() if line.strip())
    return lines or "its file of captions is empty"


def demand_weights() -> None:
    """Raise MachineError, with the alternatives, if the CLIP weights are absent."""
    try:
        caption_embedding.find_weights()
    except MachineError as error:
        alternatives = "class folders, a label column without captions, or a folder of only images need none"
        raise MachineError(
            f"{error}; {alternatives} (--text-column {NONE} leaves captions out; --keep-text keeps them as text, which"
            " pipelines with text encoders of their own read)"
        ) from None


def condition_of(train: Sequence[Entry]) -> Condition:
    """Choose what most training images have, captions before labels."""
    captioned = sum(has(entry, "embedding") for entry in train)
    labelled = sum(has(entry, "label") for entry in train)
    if not captioned and not labelled:
        return "none"
    return "embedding" if captioned >= labelled else "label"


def has(entry: Entry, condition: Condition) -> bool:
    """Return True if an image has what the condition is made from."""
    if condition == "embedding":
        return bool(entry.captions) or entry.caption_file is not None
    return condition == "none" or entry.label is not None


def lacking(entry: Entry, condition: Condition) -> str:
    """Write why an image cannot be used."""
    what = "a caption" if condition == "embedding" else "a label, or hidden ones (-1)"
    return f"{entry.split} images without {what}"
