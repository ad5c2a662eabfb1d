"""Which column of a table holds the images, the captions, the labels: told by the user, or recognised by its name."""

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal
from unicodedata import normalize

from mucs_ray.data.sources import Choices
from mucs_ray.data.table import OWN_COLUMNS
from mucs_ray.errors import InputError

Kind = Literal["file", "image", "text", "label", "split"]
NAMES: dict[Kind, tuple[str, ...]] = {
    "file": (
        "file_name", "filename", "file", "file_path", "filepath", "image_path", "image_file", "image_name", "image",
        "img", "img_path", "path", "picture",
    ),
    "image": ("image", "img", "images", "picture", "photo", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes"),
    "text": (
        "text", "caption", "captions", "prompt", "prompts", "texts", "txt", "description", "descriptions", "sentence",
        "sentences", "alt_text", "additional_feature",
    ),
    "label": (
        "label", "labels", "class", "class_name", "fine_label", "category", "target", "cls", "class_id", "label_name",
        "coarse_label", "class_label",
    ),
    "split": ("split", "subset", "partition", "set"),
}  # fmt: skip
"""The names by which a column is recognised, small letters with _ for anything else; the first of them comes first."""
OPTIONS: dict[Kind, str] = {
    "file": "--image-column", "image": "--image-column", "text": "--text-column", "label": "--label-column",
}  # fmt: skip
NONE = "none"
"""What the user says where no column is to be used."""
HIDDEN = "-1"
"""The label that data hubs give to images whose class is not published."""


def choose(kind: Kind, columns: Collection[str], choices: Choices, where: str) -> str | None:
    """Return the column of this kind; None if none is recognised, or the user wants none.

    InputError, which lists the columns, if the user names one that is not there.
    """
    images = choices.image_column if kind in ("file", "image") else None
    asked = {"text": choices.text_column, "label": choices.label_column}.get(kind, images)
    if asked == NONE and kind in ("text", "label"):
        return None
    if asked is not None:
        if asked not in columns:
            raise InputError(f"{where} has no column {asked!r} for {OPTIONS[kind]}; its columns: {listed(columns)}")
        return asked
    names = {normal(column): column for column in reversed(list(columns))}
    return next((names[name] for name in NAMES[kind] if name in names), None)


def tag_columns(columns: Collection[str], choices: Choices, where: str) -> tuple[str, ...]:
    """Return the columns that are kept as tags. InputError if one is not there, or is known by that name anyway."""
    asked = tuple(dict.fromkeys(name.strip() for name in (choices.group_column or "").split(",") if name.strip()))
    for name in asked:
        if name in OWN_COLUMNS:
            raise InputError(f"--group-column {name}: a data set has its own {name}; name another column, or rename it")
        if name not in columns:
            raise InputError(f"{where} has no column {name!r} for --group-column; its columns: {listed(columns)}")
    return asked


def tags_of(record: Mapping[str, Any], tags: Iterable[tuple[str, Sequence[str]]]) -> dict[str, str]:
    """Return the values that a record has in columns to make groups by, each given with the names of its numbers.

    ValueError, with the reason, if one is no name.
    """
    found = {}
    for tag, names in tags:
        value = record.get(tag)
        try:
            name = names[value] if names and isinstance(value, int) and value >= 0 else class_name(value)
        except (ValueError, IndexError):
            raise ValueError(f"{tag} is {value!r}, expected a name or a whole number") from None
        if name is not None:
            found[tag] = name
    return found


def unknown(kind: Kind, columns: Iterable[str], where: str) -> InputError:
    """Return the error that lists the columns there are, and names the option that picks one."""
    what = {"file": "names of files", "image": "images", "text": "captions"}.get(kind, "labels")
    known = ", ".join(NAMES[kind][:4])
    told = f"none of the columns ({listed(columns)}) is known to hold {what} ({known}, ...)"
    return InputError(f"{where}: {told}; name it with {OPTIONS[kind]}")


def listed(columns: Iterable[str]) -> str:
    """Write the names of columns."""
    return ", ".join(str(column) for column in columns) or "none"


def normal(column: str) -> str:
    """Return a column's name in small letters, with _ for blanks and the like."""
    return re.sub(r"[^a-z0-9]+", "_", str(column).strip().lower()).strip("_")


def class_name(value: object) -> str | None:
    """Return a label as the name of a class, without outer and double blanks, in Unicode's composed form.

    None if there is no label, or it is hidden (-1). ValueError if it is neither a name nor a whole number.
    """
    if isinstance(value, float):
        if math.isnan(value):
            return None
        value = int(value) if value.is_integer() else value
    if isinstance(value, list):
        value = one_hot(value)
    if value is not None and not isinstance(value, str | int):
        raise ValueError
    name = "" if value is None else tidy(str(value))
    return None if name in ("", HIDDEN) else name


def one_hot(value: list[Any]) -> int:
    """Return the place of the only 1 among zeros; ValueError if it is not such a vector."""
    if len(value) < 2 or sorted(value) != [0] * (len(value) - 1) + [1]:
        raise ValueError
    return value.index(1)


def tidy(name: str) -> str:
    """Return a name without outer and double blanks, in Unicode's composed form."""
    return normalize("NFC", " ".join(name.split()))


def texts(value: object) -> tuple[str, ...]:
    """Return the captions in a cell: a string, or a list of them. ValueError if it holds anything else."""
    values: list[Any] = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(caption, str) for caption in values):
        raise ValueError
    return tuple(caption for caption in values if caption.strip())


def ordered(names: Iterable[str]) -> tuple[str, ...]:
    """Return class names sorted; numbers are sorted by their value."""
    in_order = sorted(names)
    return tuple(sorted(in_order, key=int) if all(name.isdecimal() for name in in_order) else in_order)
