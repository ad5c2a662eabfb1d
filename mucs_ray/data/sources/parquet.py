"""Parquet as data hubs publish it, at a file, a folder or any fsspec URL.

Columns: images, the encoded files as binary or as struct{bytes, path}; optionally labels, whole numbers or names;
optionally captions, a string or a list of them. They are recognised by their names (columns.py) or named by the user.
With labels the condition is the label; without, there is none: texts are kept as text but not embedded (source `coco`
shows how captions are). A file's split is in its name (test-0.parquet) or in that of its folder
(default/validation/0000.parquet); without test files a fixed tenth of all rows is held out.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO

import pyarrow as pa

from mucs_ray import storage
from mucs_ray.data.decode import DecodeError, decode_upright
from mucs_ray.data.sources import Choices, Listing, Reject, Task
from mucs_ray.data.sources.columns import tags_of
from mucs_ray.data.sources.cutting import PER_SHARD, held_out
from mucs_ray.data.sources.files import find_files
from mucs_ray.data.sources.parquet_files import Columns, Footer, corrupt, read_footers
from mucs_ray.data.sources.splits import named_splits
from mucs_ray.data.table import Row, Split, open_parquet
from mucs_ray.data.understood import Aside, Understood

CHOICES = ("image_column", "text_column", "label_column", "group_column", "follow_links")
DEFAULT_SIZE = 64
ROWS_AT_ONCE = 64
ALL, TRAIN_ONLY, TEST_ONLY = "all", "train", "test"


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One row group: its place, the number of its first row in the file, and the number of rows it adds to a split."""

    url: str
    name: str
    row_group: int
    first_row: int
    num_rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Payload:
    """A task's payload: the row groups of which it reads all rows, all but a tenth, or only that tenth."""

    first_idx: int
    pieces: tuple[Piece, ...]
    rows: str
    size: int
    columns: Columns


def plan(where: str | None, size: int | None, choices: Choices | None = None) -> Listing:
    """Read the footers, and the label column."""
    choices, aside = choices or Choices(), Aside()
    files = find_files(where, (".parquet",), aside, source="parquet", follow_links=choices.follow_links)
    footers, columns = read_footers(files, choices)
    of_split, splits = held(footers, where or "", aside)
    side = size or DEFAULT_SIZE
    tasks, idx = [], 0
    for split, (files, rows) in of_split.items():
        for number, pieces in enumerate(shards(files, rows)):
            payload = Payload(first_idx=idx, pieces=pieces, rows=rows, size=side, columns=columns)
            tasks.append(Task(split=split, number=number, payload=payload))
            idx += sum(piece.num_rows for piece in pieces)
    return Listing(
        name="parquet",
        licence="as its publisher states",
        size=side,
        condition="label" if columns.classes else "none",
        condition_dim=len(columns.classes),
        classes=columns.classes,
        tags=tuple(tag for tag, _ in columns.tags),
        tasks=tuple(tasks),
        distributed=True,
        understood=Understood(
            splits=splits,
            labels=f"column {columns.label}" if columns.classes else "",
            captions=f"column {columns.text}" if columns.text else "the class" if columns.classes else "",
            passed_over=aside.reasons(),
            notes=columns.notes,
        ),
    )


def held(
    footers: Sequence[Footer], where: str, aside: Aside
) -> tuple[dict[Split, tuple[list[Footer], str]], dict[str, str]]:
    """Return the files of each split with the rows that are read of them, and where each split is from.

    A held-out file without any known label is of no use; without another one, a tenth of the training rows is held out.
    """
    named = named_splits([file.name for file in footers], where)
    train = [file for file in footers if named[file.name] == "train"]
    usable = [file for file in footers if file not in train and file.has_labels]
    for file in footers:
        if file not in train and file not in usable:
            aside.add("held-out rows whose labels are all hidden", file.name, sum(file.row_groups))
    chosen = next((s for s in ("test", "validation") if any(named[file.name] == s for file in usable)), None)
    origin = names_of(train)
    if chosen is None:
        splits = {"train": origin, "test": f"{origin}, a tenth of its rows held out"}
        return {"train": (train, TRAIN_ONLY), "test": (train, TEST_ONLY)}, splits
    test = [file for file in usable if named[file.name] == chosen]
    for file in usable:
        if file not in test:
            aside.add(f"rows of validation files, since {names_of(test)} is there", file.name, sum(file.row_groups))
    return {"train": (train, ALL), "test": (test, ALL)}, {"train": origin, "test": names_of(test)}


def names_of(files: Sequence[Footer]) -> str:
    """Write the names of files."""
    return f"{files[0].name}{f' and {len(files) - 1:,} more' if len(files) > 1 else ''}"


def read(task: Task) -> Iterator[Row | Reject]:
    """Decode one task's row groups, with a few rows in memory beside the encoded row group."""
    payload: Payload = task.payload
    chosen = payload.columns
    numbers = dict(chosen.values)
    named = (chosen.image, chosen.label if numbers else None, chosen.text, *(tag for tag, _ in chosen.tags))
    columns = list(dict.fromkeys(column for column in named if column))
    idx = payload.first_idx
    for piece in payload.pieces:
        with storage.opened(piece.url) as file:
            row = piece.first_row
            for batch in batches(file, piece, columns):
                for record in batch.to_pylist():
                    name = f"{piece.name}:{row}"
                    row += 1
                    if keeps(payload.rows, name):
                        yield row_of(idx, name, record, payload, numbers)
                        idx += 1


def row_of(
    idx: int, name: str, record: dict[str, object], payload: Payload, numbers: dict[object, int]
) -> Row | Reject:
    """Convert one record to a row, or to a reject with the reason."""
    columns = payload.columns
    image, texts, label = record[columns.image], (), None
    content, path = (image.get("bytes"), image.get("path")) if isinstance(image, dict) else (image, None)
    name = f"{name}:{path}" if path else name
    if not isinstance(content, bytes):
        return Reject(idx=idx, where=name, reason="it holds no bytes of an image")
    if numbers:
        value = record[columns.label or ""]
        label = numbers.get(value)
        if label is None:
            hidden = "has no label" if value is None else f"label {value!r} is hidden or not a class"
            return Reject(idx=idx, where=name, reason=hidden)
        texts = (columns.classes[label],)
    if columns.text is not None:
        value = record[columns.text]
        values = value if isinstance(value, list) else [value]
        texts = tuple(caption for caption in values if isinstance(caption, str))
    try:
        tags = tags_of(record, columns.tags)
        pixels, turned = decode_upright(content, size=payload.size)
    except (DecodeError, ValueError) as error:
        return Reject(idx=idx, where=name, reason=str(error))
    return Row(idx=idx, image=pixels, label=label, text=texts, name=name, tags=tags, turned=turned)


def keeps(rows: str, name: str) -> bool:
    """Return True if the row of this name belongs to the rows that are read."""
    return rows == ALL or held_out(name) == (rows == TEST_ONLY)


def shards(files: list[Footer], rows: str) -> Iterator[tuple[Piece, ...]]:
    """Yield row groups in order, as many to a shard as fit into PER_SHARD rows.

    A larger row group is a shard of its own.
    """
    pending: list[Piece] = []
    for file in files:
        first_row = 0
        for number, count in enumerate(file.row_groups):
            numbers = range(first_row, first_row + count)
            num_rows = count if rows == ALL else sum(keeps(rows, f"{file.name}:{row}") for row in numbers)
            piece = Piece(url=file.url, name=file.name, row_group=number, first_row=first_row, num_rows=num_rows)
            if pending and sum(other.num_rows for other in pending) + num_rows > PER_SHARD:
                yield tuple(pending)
                pending = []
            if num_rows:
                pending.append(piece)
            first_row += count
    if pending:
        yield tuple(pending)


def batches(file: IO[bytes], piece: Piece, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Yield a few rows of a row group at a time."""
    try:
        yield from open_parquet(file).iter_batches(ROWS_AT_ONCE, row_groups=[piece.row_group], columns=columns)
    except (pa.ArrowException, OSError) as error:
        corrupt(piece.url, error)
