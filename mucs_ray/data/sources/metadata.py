"""Files that describe images: metadata.jsonl, .json, .csv, .tsv or .parquet, and the dataset.json of EDM-type tools.

Text may be UTF-8 or UTF-16, with or without a byte order mark; cells of a CSV may be separated by commas, semicolons,
tabs or bars, with blanks around them.
"""

import codecs
import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from mucs_ray import storage
from mucs_ray.data.sources import Choices
from mucs_ray.data.sources.columns import choose, class_name, tag_columns, tags_of, texts, unknown
from mucs_ray.data.sources.splits import Named, split_of
from mucs_ray.data.table import open_parquet
from mucs_ray.errors import InputError

STEMS = ("metadata", "captions", "labels", "annotations", "dataset")
"""The names of metadata files, in the order in which one of several is chosen."""
ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
EDM = "dataset.json"
SEPARATORS = ",;\t|"
TECHNICAL = ("width", "height", "size", "id", "index", "md5", "sha256", "hash", "url", "licence", "license")
Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Line:
    """What one line of a metadata file says of an image; `at` names the file and the line."""

    at: str
    file_name: object
    label: str | None
    captions: tuple[str, ...]
    split: Named | None = None
    """What a column of splits says; None if it says nothing that is understood."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """The values in the columns to make groups by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    """A metadata file: its lines, and the columns that were read (None = there is no such column)."""

    lines: tuple[Line, ...]
    text_column: str | None
    label_column: str | None
    not_read: tuple[str, ...] = ()
    lists_images: bool = True
    """False for a dataset.json without labels, which does not list the images."""


def is_metadata(name: str) -> bool:
    """Return True if a file of this name describes images."""
    return re.fullmatch(f"({'|'.join(STEMS)})({'|'.join(map(re.escape, ENDINGS))})", name.lower()) is not None


def preferred(names: Iterable[str]) -> list[str]:
    """Return the metadata files of one folder, that which is read first."""
    known = [f"{stem}{ending}" for stem in STEMS for ending in ENDINGS]
    return sorted(names, key=lambda name: (known.index(name.lower()), name))


def read_metadata(url: str, choices: Choices) -> Metadata:
    """Read a metadata file. InputError, naming the line or the columns, if it cannot be understood."""
    if url.lower().rsplit("/", 1)[-1] == EDM and (edm := edm_labels(url)) is not None:
        lines = tuple(line_of(url, n, record, "file_name", None, "label", None) for n, record in edm)
        return Metadata(lines=lines, text_column=None, label_column="label", lists_images=bool(lines))
    numbered = list(records(url))
    columns = list(dict.fromkeys(key for _, record in numbered for key in record))
    file = choose("file", columns, choices, url)
    if file is None:
        raise unknown("file", columns, url)
    text, label = (choose(kind, columns, choices, url) for kind in ("text", "label"))
    split = choose("split", columns, choices, url)
    tags = tag_columns(columns, choices, url)
    others = [column for column in columns if column not in (file, text, label, split, *tags)]
    if text is None and label is None and "none" not in (choices.text_column, choices.label_column):
        telling = [column for column in others if column.lower() not in TECHNICAL]
        if telling:
            raise InputError(
                f"{unknown('text', telling, url)}, or the one of labels with --label-column, or give --text-column none"
            )
    return Metadata(
        lines=tuple(line_of(url, number, record, file, text, label, split, tags) for number, record in numbered),
        text_column=text,
        label_column=label,
        not_read=tuple(others),
    )


def line_of(
    url: str,
    number: int,
    record: Record,
    file: str,
    text: str | None,
    label: str | None,
    split: str | None,
    tags: Iterable[str] = (),
) -> Line:
    """Return what a record says. InputError, naming its line, if a cell is of another kind."""
    at = f"{url} line {number}"
    try:
        named = class_name(record.get(label)) if label else None
    except ValueError:
        raise InputError(f"{at}: {label} is {record.get(label or '')!r}, expected a name or a whole number") from None
    try:
        captions = texts(record.get(text)) if text else ()
    except ValueError:
        told = f"{text} is {record.get(text or '')!r}, expected a caption or a list of captions"
        raise InputError(f"{at}: {told}") from None
    try:
        tagged = tags_of(record, ((tag, ()) for tag in tags))
    except ValueError as error:
        raise InputError(f"{at}: {error}") from None
    said = split_of(str(record.get(split))) if split else None
    return Line(at, record.get(file), named, captions, said, tagged)


def records(url: str) -> Iterator[tuple[int, Record]]:
    """Yield line number and content of each record of a metadata file."""
    number, ending = 1, url.lower()[url.rfind(".") :]
    try:
        content = storage.read_bytes(url)
        if ending == ".parquet":
            yield from enumerate(open_parquet(io.BytesIO(content)).read().to_pylist(), start=1)
            return
        text = decoded(content)
        rows = csv_records(text) if ending in (".csv", ".tsv") else json_records(text, lines=ending != ".json")
        for number, record in rows:
            if not isinstance(record, dict):
                raise InputError(f"{url} line {number}: expected a JSON object")
            yield number, record
    except InputError:
        raise
    except (ValueError, csv.Error, RecursionError, OSError, pa.ArrowException) as error:
        reason = getattr(error, "msg", None) or (str(error).splitlines() or [""])[0]
        reason = "it is neither UTF-8 nor UTF-16; save it as UTF-8" if isinstance(error, UnicodeError) else reason
        number = getattr(error, "lineno", number)
        raise InputError(f"{url} line {number} cannot be read ({reason})") from None


def decoded(content: bytes) -> str:
    """Decode UTF-16 if a byte order mark says so, and else UTF-8."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16")
    return content.decode("utf-8-sig")


def csv_records(text: str) -> Iterator[tuple[int, Record]]:
    """Yield the records of a CSV; the separator is the one that its header has most of."""
    header = text.partition("\n")[0]
    separator = max(SEPARATORS, key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
    columns: list[str] = []
    for row in reader:
        cells = [cell.strip() for cell in row]
        if not columns:
            columns = cells
        elif any(cells):
            yield reader.line_num, dict(zip(columns, cells, strict=False))


def json_records(text: str, *, lines: bool) -> Iterator[tuple[int, Any]]:
    """Yield the records of a JSON file: one a line, a list of them, or a mapping from the files' names."""
    if lines:
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except ValueError as error:
                    raise LineError(getattr(error, "msg", str(error)), number) from None
        return
    try:
        document = json.loads(text)
    except ValueError as error:
        if "\n" in text.strip() and getattr(error, "msg", "") == "Extra data":
            yield from json_records(text, lines=True)
            return
        raise
    if isinstance(document, dict) and len(document) == 1 and isinstance(only := next(iter(document.values())), list):
        document = only
    if isinstance(document, dict):
        document = [by_name(name, value) for name, value in document.items()]
    if not isinstance(document, list):
        raise LineError("expected a list of records, or a mapping from file names", 1)
    yield from enumerate(document, start=1)


def by_name(name: str, value: object) -> Record:
    """Return a record out of a mapping from file names: to a record, a label, or captions."""
    if isinstance(value, dict):
        return {"file_name": name, **value}
    return {"file_name": name, "label" if isinstance(value, int) else "text": value}


class LineError(ValueError):
    """A line that cannot be read."""

    def __init__(self, reason: str, number: int) -> None:
        """Keep both."""
        super().__init__(reason)
        self.msg, self.lineno = reason, number


def edm_labels(url: str) -> list[tuple[int, Record]] | None:
    """Return the labels in a dataset.json, [[file name, label], ...]; None if the file is of another kind."""
    try:
        document = json.loads(decoded(storage.read_bytes(url)))
    except (ValueError, RecursionError, OSError):
        return None
    if not isinstance(document, dict) or "labels" not in document:
        return None
    labels = document["labels"]
    pairs = list(labels.items()) if isinstance(labels, dict) else labels or []
    if not isinstance(pairs, list) or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise InputError(f'{url}: expected "labels" as [[file name, label], ...], or null')
    return [(number, {"file_name": name, "label": label}) for number, (name, label) in enumerate(pairs, start=1)]
