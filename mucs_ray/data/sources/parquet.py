"""Parquet as data hubs publish it, at a file, a folder or any fsspec URL.

Columns: `image`, the encoded file as binary or as struct{bytes, path}; optionally `label`, whole numbers or strings;
optionally `text`, `caption` or `captions`, a string or a list of them. With labels the condition is the label; without,
there is none: texts are kept as text but not embedded (source `coco` shows how captions are). Files whose names begin
with test, val or validation are the test split; if there are none, a fixed tenth of all rows is.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, NoReturn

import pyarrow as pa

from mucs_ray import storage
from mucs_ray.data.decode import DecodeError, decode
from mucs_ray.data.sources import Listing, Reject, Task
from mucs_ray.data.sources.cutting import PER_SHARD, held_out
from mucs_ray.data.table import Row, Split, open_parquet
from mucs_ray.errors import InputError, MucsError

DEFAULT_SIZE = 64
MAX_CLASSES = 10_000
TEXT_COLUMNS = ("text", "caption", "captions")
TEST_NAME = re.compile(r"(test|val|validation)(?![a-z])", re.IGNORECASE)
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
    column: str | None
    """The name of the column of texts."""
    values: tuple[int | str, ...]
    """The values of the label column, in order of class; empty without labels."""
    classes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Footer:
    """The description of a file by its own footer."""

    url: str
    name: str
    row_groups: tuple[int, ...]
    columns: pa.Schema
    class_names: tuple[str, ...]


def plan(where: str | None, size: int | None) -> Listing:
    """Read the footers, and the label column where no class names are declared."""
    footers = [footer(url, name) for url, name in find(where)]
    columns = footers[0].columns
    for other in footers[1:]:
        if other.columns.names != columns.names:
            raise InputError(f"{other.url} has other columns than {footers[0].url}; expected the same in every file")
    values, classes = labels(footers) if "label" in columns.names else ((), ())
    test = [file for file in footers if TEST_NAME.match(file.name.rsplit("/", 1)[-1])]
    train = [file for file in footers if file not in test]
    if not train:
        raise InputError(f"{where}: every file is named as a test split; expected a training file beside them")
    of_split: dict[Split, tuple[list[Footer], str]]
    if test:
        of_split = {"train": (train, ALL), "test": (test, ALL)}
    else:
        of_split = {"train": (train, TRAIN_ONLY), "test": (train, TEST_ONLY)}
    side = size or DEFAULT_SIZE
    column = next((name for name in TEXT_COLUMNS if name in columns.names), None)
    tasks, idx = [], 0
    for split, (files, rows) in of_split.items():
        for number, pieces in enumerate(shards(files, rows)):
            payload = Payload(
                first_idx=idx, pieces=pieces, rows=rows, size=side, column=column, values=values, classes=classes
            )
            tasks.append(Task(split=split, number=number, payload=payload))
            idx += sum(piece.num_rows for piece in pieces)
    return Listing(
        name="parquet",
        licence="as its publisher states",
        size=side,
        condition="label" if classes else "none",
        condition_dim=len(classes),
        classes=classes,
        tasks=tuple(tasks),
        distributed=True,
    )


def read(task: Task) -> Iterator[Row | Reject]:
    """Decode one task's row groups, with a few rows in memory beside the encoded row group."""
    payload: Payload = task.payload
    ids = {value: number for number, value in enumerate(payload.values)}
    columns = ["image", *(["label"] if ids else []), *([payload.column] if payload.column else [])]
    idx = payload.first_idx
    for piece in payload.pieces:
        with storage.opened(piece.url) as file:
            row = piece.first_row
            for batch in batches(file, piece, columns):
                for record in batch.to_pylist():
                    name = f"{piece.name}:{row}"
                    row += 1
                    if keeps(payload.rows, name):
                        yield row_of(idx, name, record, payload, ids)
                        idx += 1


def row_of(idx: int, name: str, record: dict[str, object], payload: Payload, ids: dict[int | str, int]) -> Row | Reject:
    """Convert one record to a row, or to a reject with the reason."""
    image, texts, label = record["image"], (), None
    content = image.get("bytes") if isinstance(image, dict) else image
    if not isinstance(content, bytes):
        return Reject(idx=idx, where=name, reason="it holds no bytes of an image")
    if ids:
        label = ids.get(record["label"])  # pyright: ignore[reportArgumentType]
        if label is None:
            return Reject(idx=idx, where=name, reason=f"label {record['label']!r} is not a class")
        texts = (payload.classes[label],)
    if payload.column is not None:
        value = record[payload.column]
        values = value if isinstance(value, list) else [value]
        texts = tuple(caption for caption in values if isinstance(caption, str))
    try:
        return Row(idx=idx, image=decode(content, size=payload.size), label=label, text=texts, name=name)
    except DecodeError as error:
        return Reject(idx=idx, where=name, reason=str(error))


def find(where: str | None) -> list[tuple[str, str]]:
    """Return URL and name under `where` of every Parquet file, sorted by name."""
    if where is None:
        raise InputError("parquet needs --source: a *.parquet file, a folder of them, or an fsspec URL of either")
    where = storage.absolute(where)
    fs, root = storage.filesystem(where)
    try:
        with storage.own_errors(where):
            if fs.isfile(root):
                return [(where, root.rsplit("/", 1)[-1])]
            paths = sorted(path for path in fs.find(root) if path.endswith(".parquet"))
    except (MucsError, storage.StoreError):
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"{where} cannot be listed ({str(error).splitlines()[0]})") from None
    names = [path.removeprefix(root).lstrip("/") for path in paths]
    if not names:
        raise InputError(f"no *.parquet at {where}; expected such a file, or a folder of them")
    return [(storage.join(where, name), name) for name in names]


def corrupt(url: str, error: Exception) -> NoReturn:
    """Raise InputError in one line; an error of the storage stays as it is."""
    if isinstance(error, (MucsError, storage.StoreError)):
        raise error
    raise InputError(f"{url} is not a readable Parquet file ({(str(error).splitlines() or [''])[0]})") from None


def footer(url: str, name: str) -> Footer:
    """Return the row groups and columns of a file. InputError if it is corrupt or has no column of images."""
    try:
        with storage.opened(url) as file:
            parquet = open_parquet(file)
            metadata, columns = parquet.metadata, parquet.schema_arrow
    except (pa.ArrowException, OSError, ValueError) as error:
        corrupt(url, error)
    kind = columns.field("image").type if "image" in columns.names else None
    in_struct = kind is not None and pa.types.is_struct(kind) and "bytes" in [field.name for field in kind]
    if kind is None or not (in_struct or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise InputError(f"{url} has no column `image` of encoded files (binary, or a struct with `bytes`)")
    groups = tuple(metadata.row_group(number).num_rows for number in range(metadata.num_row_groups))
    return Footer(url=url, name=name, row_groups=groups, columns=columns, class_names=declared(metadata.metadata or {}))


def declared(metadata: dict[bytes, bytes]) -> tuple[str, ...]:
    """Return the names of the classes, if the library `datasets` wrote the file with a ClassLabel."""
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"]["label"]["names"]
    except (KeyError, TypeError, ValueError):
        return ()
    return tuple(str(name) for name in names) if isinstance(names, list) else ()


def labels(footers: list[Footer]) -> tuple[tuple[int | str, ...], tuple[str, ...]]:
    """Return the values of the label column, and the names of these classes.

    They are the declared ones, or else all values that occur, sorted.
    """
    kind, names = footers[0].columns.field("label").type, footers[0].class_names
    whole = pa.types.is_integer(kind)
    if not whole and not pa.types.is_string(kind) and not pa.types.is_large_string(kind):
        raise InputError(f"{footers[0].url}: column `label` is {kind}; expected whole numbers or strings")
    if any(other.columns.field("label").type != kind or other.class_names != names for other in footers[1:]):
        raise InputError(f"{footers[0].url}: column `label` is of another type, or names other classes, in other files")
    if whole and names:
        return tuple(range(len(names))), names
    occurring: set[int | str] = set()
    for file in footers:
        with storage.opened(file.url) as opened:
            parquet = open_parquet(opened)
            for number in range(len(file.row_groups)):
                try:
                    column = parquet.read_row_group(number, columns=["label"])["label"]
                except (pa.ArrowException, OSError) as error:
                    corrupt(file.url, error)
                occurring.update(value for value in column.unique().to_pylist() if value is not None)
        if len(occurring) > MAX_CLASSES:
            raise InputError(f"{file.url}: more than {MAX_CLASSES:,} labels; a class is expected to have many images")
    if not occurring:
        raise InputError(f"{footers[0].url}: column `label` is empty in every file; leave it out, or fill it in")
    values = tuple(sorted(occurring))  # pyright: ignore[reportArgumentType]
    return values, tuple(str(value) for value in values)


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
