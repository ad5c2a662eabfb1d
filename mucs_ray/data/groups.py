"""Groups of training images, such as all images of an artist: from what the data set knows, or from a file.

Images may be in several groups, or in none.
Axes: p memberships, which are pairs of an image and a group.
"""

import csv
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from mucs_ray import storage
from mucs_ray.data.table import Dataset, open_parquet
from mucs_ray.errors import InputError

COLUMNS = ("label", "text", "folder")
"""What any data set may know of an image: its class, its texts (each is a group), and the folder in its name."""
FILES = (".csv", ".parquet")
Membership = tuple[int, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """Groups of training images, as memberships in order of idx and then of group."""

    by: str
    """The column or the file that they were made from."""
    names: tuple[str, ...]
    idx: Int64[np.ndarray, " p"]
    group: Int64[np.ndarray, " p"]
    """The number of the group, which is its place in `names`."""
    num_images: int
    """The number of all training images, of which some may be in no group."""

    @property
    def sizes(self) -> list[int]:
        """The number of images in each group."""
        return np.bincount(self.group, minlength=len(self.names)).tolist()

    @property
    def num_grouped(self) -> int:
        """The number of images that are in a group."""
        return len(np.unique(self.idx))

    @property
    def overlapping(self) -> bool:
        """Whether an image is in several groups; then the effects of the groups do not add up."""
        return self.num_grouped < len(self.idx)

    def members(self, number: int) -> frozenset[int]:
        """Return the idx of the images of a group, which its leave-one-group-out model does without."""
        return frozenset(self.idx[self.group == number].tolist())


def find_groups(dataset: Dataset, by: str) -> Groups:
    """Return the groups of a column (label, text, folder or a tag), or of a CSV or Parquet file with columns idx and
    group.

    InputError if there are fewer than two, or one of them has no image or is the whole training set.
    """
    if by.lower().endswith(FILES):
        all_idx = {idx for table in dataset.stream("train", ["idx"]) for idx in table["idx"].to_pylist()}
        memberships, named = in_file(by, all_idx)
    elif by in (*COLUMNS, *dataset.card.tags):
        memberships, named = list(in_column(dataset, by)), set()
        if not memberships:
            raise not_there(dataset, by)
    else:
        raise not_there(dataset, by)
    named |= {name for _, name in memberships}
    if by == "label" and dataset.card.classes:
        names = tuple(name for name in dataset.card.classes if name in named)
    else:
        names = tuple(sorted(named, key=in_order))
    number = {name: place for place, name in enumerate(names)}
    pairs = sorted({(idx, number[name]) for idx, name in memberships})
    idx, group = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    groups = Groups(by=by, names=names, idx=idx, group=group, num_images=dataset.card.num_images("train"))
    check(groups)
    return groups


def in_order(name: str) -> tuple[bool, int, str]:
    """Return what names are ordered by: numbers by their value, then the others."""
    number = name.isascii() and name.isdigit()
    return not number, int(name) if number else 0, name


def check(groups: Groups) -> None:
    """Raise InputError unless there are groups to compare, each with images and without some."""
    for name, size in zip(groups.names, groups.sizes, strict=True):
        if size == 0:
            raise InputError(f"group {name!r} of {groups.by} has no training image; leave it out")
        if size == groups.num_images:
            raise InputError(
                f"group {name!r} of {groups.by} is the whole training set of {size} images, so that nothing is left to"
                " train on without it; choose smaller groups"
            )
    if len(groups.names) < 2:
        only = ", ".join(map(repr, groups.names))
        raise InputError(f"{groups.by} makes one group only, {only}; expected two or more to compare")


def in_column(dataset: Dataset, column: str) -> Iterator[Membership]:
    """Yield the idx of each training image with each of its values in a column; none where it has no value."""
    if column == "folder" and not dataset.card.named:
        return
    stored = "name" if column == "folder" else column
    for table in dataset.stream("train", ["idx", stored]):
        for idx, value in zip(table["idx"].to_pylist(), table[stored].to_pylist(), strict=True):
            yield from ((idx, name) for name in values_of(dataset, column, value))


def values_of(dataset: Dataset, column: str, value: object) -> Iterable[str]:
    """Return the names of the groups that a stored value stands for."""
    classes = dataset.card.classes
    match column, value:
        case "label", int():
            return [classes[value] if classes else str(value)]
        case "text", list():
            return filter(None, value)
        case "folder", str():
            folder = value.rpartition("/")[0]
            return [folder] if folder else []
        case _, str():
            return [value] if value else []
        case _:
            return []


def not_there(dataset: Dataset, by: str) -> InputError:
    """Return the error about a column that is not there, or has no value; it lists those that have."""
    known = [column for column in (*COLUMNS, *dataset.card.tags) if next(in_column(dataset, column), None) is not None]
    return InputError(
        f"{dataset.url} has no column {by!r} to make groups by; there {'are' if len(known) > 1 else 'is'}"
        f" {', '.join(known) or 'none'}, or give a .csv or .parquet file with the columns idx and group"
    )


def in_file(url: str, known: set[int]) -> tuple[list[Membership], set[str]]:
    """Return the memberships in a file, and all groups that it names, of which some may have no image.

    InputError, naming the place, if a line is not understood or an idx is not that of a training image.
    """
    try:
        content = storage.read_bytes(url)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise InputError(f"no file of groups at {url}; expected a .csv or .parquet file with idx and group") from None
    memberships, named = [], set()
    for place, idx, name in (csv_lines if url.lower().endswith(".csv") else parquet_rows)(url, content):
        if name == "":
            raise InputError(f"{place}: expected the name of a group; found none")
        named.add(name)
        if idx == "":
            continue
        if not idx.isascii() or not idx.isdigit() or int(idx) not in known:
            raise InputError(f"{place}: expected the idx of a training image; found {idx!r}")
        memberships.append((int(idx), name))
    if not named:
        raise InputError(f"{url} names no group; expected lines of idx and group")
    return memberships, named


def csv_lines(url: str, content: bytes) -> Iterator[tuple[str, str, str]]:
    """Yield the place, the idx and the group of each line, as text."""
    try:
        reader = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        need_columns(url, [name.strip() for name in reader.fieldnames or ()])
        reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
        for row in reader:
            yield f"{url}, line {reader.line_num}", (row["idx"] or "").strip(), (row["group"] or "").strip()
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{url} is not a CSV in UTF-8 ({error})") from None


def parquet_rows(url: str, content: bytes) -> Iterator[tuple[str, str, str]]:
    """Yield the place, the idx and the group of each row, as text."""
    try:
        file = open_parquet(io.BytesIO(content))
        need_columns(url, file.schema_arrow.names)
        rows = file.read(columns=["idx", "group"]).to_pylist()
    except InputError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{url} is not a Parquet file ({str(error).splitlines()[0]})") from None
    for number, row in enumerate(rows):
        idx, name = ("" if row[column] is None else str(row[column]).strip() for column in ("idx", "group"))
        yield f"{url}, row {number}", idx, name


def need_columns(url: str, found: list[str]) -> None:
    """Raise InputError unless a file has the columns idx and group."""
    for column in ("idx", "group"):
        if column not in found:
            raise InputError(f"{url} has no column {column!r}; there are {', '.join(found) or 'none'}")
