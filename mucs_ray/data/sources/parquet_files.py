"""Parquet files by their footers: where they are, their row groups, and which columns hold what."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

import pyarrow as pa

from mucs_ray import storage
from mucs_ray.data.sources import Choices
from mucs_ray.data.sources.columns import choose, class_name, listed, ordered, tag_columns, unknown
from mucs_ray.data.sources.splits import refuse_configurations
from mucs_ray.data.table import open_parquet
from mucs_ray.errors import InputError, MucsError

MAX_CLASSES = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Footer:
    """The description of a file by its own footer."""

    url: str
    name: str
    row_groups: tuple[int, ...]
    columns: pa.Schema
    class_names: dict[str, tuple[str, ...]]
    """By column, if the library `datasets` wrote the file with a ClassLabel."""
    has_labels: bool = True
    """False if no row has a label that is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """The columns that are read; None for one that there is not."""

    image: str
    label: str | None
    text: str | None
    values: tuple[tuple[object, int], ...]
    """The values of the label column, each with the number of its class; empty without labels."""
    classes: tuple[str, ...]
    notes: tuple[str, ...]
    tags: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """The columns to make groups by, each with the names of its values if these are numbers of classes."""


def corrupt(url: str, error: Exception) -> NoReturn:
    """Raise InputError in one line; an error of the storage stays as it is."""
    if isinstance(error, (MucsError, storage.StoreError)):
        raise error
    raise InputError(f"{url} is not a readable Parquet file ({(str(error).splitlines() or [''])[0]})") from None


def read_footers(files: Sequence[tuple[str, str]], choices: Choices) -> tuple[list[Footer], Columns]:
    """Read the footers and the label column. InputError if columns differ between files, or none holds images."""
    refuse_configurations([name for _, name in files], storage.redacted(files[0][0]).removesuffix(files[0][1]))
    footers = [footer(url, name) for url, name in files]
    first = footers[0]
    for other in footers[1:]:
        if other.columns.names != first.columns.names:
            raise InputError(f"{other.url} has other columns than {first.url}; expected the same in every file")
    image = image_column(first, choices)
    text = choose("text", first.columns.names, choices, first.url)
    if text is not None and not holds_texts(first.columns.field(text).type):
        if choices.text_column == text:
            kind = first.columns.field(text).type
            raise InputError(f"{first.url}: column {text!r} is {kind}; expected strings or lists of them")
        text = None
    label = choose("label", first.columns.names, choices, first.url)
    values, classes, footers = ((), (), footers) if label is None else labels(footers, label)
    tags = tag_columns(first.columns.names, choices, first.url)
    others = [name for name in first.columns.names if name not in (image, text, label, *tags)]
    notes = (f"columns that are not read: {listed(others)}",) if others else ()
    named = tuple((tag, first.class_names.get(tag, ())) for tag in tags)
    columns = Columns(image=image, label=label, text=text, values=values, classes=classes, notes=notes, tags=named)
    return footers, columns


def footer(url: str, name: str) -> Footer:
    """Return the row groups and columns of a file. InputError if it is corrupt."""
    try:
        with storage.opened(url) as file:
            parquet = open_parquet(file)
            metadata, columns = parquet.metadata, parquet.schema_arrow
    except (pa.ArrowException, OSError, ValueError) as error:
        corrupt(url, error)
    groups = tuple(metadata.row_group(number).num_rows for number in range(metadata.num_row_groups))
    return Footer(url=url, name=name, row_groups=groups, columns=columns, class_names=declared(metadata.metadata or {}))


def declared(metadata: dict[bytes, bytes]) -> dict[str, tuple[str, ...]]:
    """Return the names of the classes by column, as the library `datasets` writes them."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"].items()
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}
    named = {column: feature.get("names") for column, feature in features if isinstance(feature, dict)}
    return {column: tuple(map(str, names)) for column, names in named.items() if isinstance(names, list)}


def image_column(file: Footer, choices: Choices) -> str:
    """Return the column of encoded files: by its name, or else the only one of such a type."""
    able = [field.name for field in file.columns if holds_files(field.type)]
    column = choose("image", file.columns.names, choices, file.url)
    if column is None and len(able) == 1:
        return able[0]
    if column is None:
        raise unknown("image", file.columns.names, file.url)
    if column not in able:
        kind = file.columns.field(column).type
        raise InputError(
            f"{file.url}: column {column!r} is {kind}; expected encoded files of images (binary, or a struct with"
            f" `bytes`); --image-column names another one of {listed(file.columns.names)}"
        )
    return column


def holds_files(kind: pa.DataType) -> bool:
    """Return True for binary, and for struct{bytes, ...}."""
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" for field in kind)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def holds_texts(kind: pa.DataType) -> bool:
    """Return True for strings, and for lists of them."""
    inner = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else kind
    return pa.types.is_string(inner) or pa.types.is_large_string(inner)


def labels(
    footers: Sequence[Footer], column: str
) -> tuple[tuple[tuple[object, int], ...], tuple[str, ...], list[Footer]]:
    """Return the values of the label column with their classes, the names of these, and the files that have any.

    The classes are the declared ones, or else all values that occur, sorted; -1 is no class, and blanks do not matter.
    """
    kind, names = footers[0].columns.field(column).type, footers[0].class_names.get(column, ())
    if any(o.columns.field(column).type != kind or o.class_names.get(column, ()) != names for o in footers[1:]):
        raise InputError(
            f"{footers[0].url}: column {column!r} is of another type, or names other classes, in other files"
        )
    occurring: dict[object, str] = {}
    told = []
    for file in footers:
        own = {value: as_class(value, column, file) for value in distinct(file, column)}
        known = {value: name for value, name in own.items() if name is not None}
        if names and pa.types.is_integer(kind):
            known = {value: names[value] for value in known if value in range(len(names))}  # pyright: ignore
        occurring |= known
        told.append(replace(file, has_labels=bool(known)))
        if len(occurring) > MAX_CLASSES:
            raise InputError(
                f"{file.url}: more than {MAX_CLASSES:,} labels in column {column!r}; a class is expected to have many"
                " images, and --label-column names another column, or none"
            )
    if names and pa.types.is_integer(kind):
        return tuple((number, number) for number in range(len(names))), names, told
    if not occurring:
        raise InputError(
            f"{footers[0].url}: column {column!r} holds no label in any file; fill it in, or give --label-column none"
        )
    classes = ordered(set(occurring.values()))
    numbers = {name: number for number, name in enumerate(classes)}
    return tuple((value, numbers[name]) for value, name in occurring.items()), classes, told


def as_class(value: object, column: str, file: Footer) -> str | None:
    """Return a value as the name of a class; InputError if it cannot be one."""
    try:
        return class_name(value)
    except (ValueError, TypeError):
        kind = file.columns.field(column).type
        raise InputError(
            f"{file.url}: column {column!r} is {kind}, e.g. {value!r}; expected whole numbers or strings as labels"
            " (--label-column names another column, or none)"
        ) from None


def distinct(file: Footer, column: str) -> list[object]:
    """Return the different values of a column, without nulls. InputError if they are lists or the like."""
    found: dict[object, None] = {}
    with storage.opened(file.url) as opened:
        parquet = open_parquet(opened)
        for number in range(len(file.row_groups)):
            try:
                values = parquet.read_row_group(number, columns=[column])[column]
            except (pa.ArrowException, OSError) as error:
                corrupt(file.url, error)
            if pa.types.is_nested(values.type):
                raise InputError(
                    f"{file.url}: column {column!r} is {values.type}; expected whole numbers or strings as labels"
                    " (--label-column names another column, or none)"
                )
            found |= dict.fromkeys(value for value in values.unique().to_pylist() if value is not None)
    return list(found)
