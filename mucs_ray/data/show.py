"""Images of a prepared data set to look at: found by idx or by name, described, and drawn on a sheet.

Axes: c h w image, uint8, RGB.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from unicodedata import normalize

import pyarrow as pa
from PIL import Image, ImageDraw
from pyarrow.compute import SetLookupOptions, call_function

from mucs_ray.data.table import Dataset, Row, Split, Unit, read_unit
from mucs_ray.errors import InputError

FIRST = 12
"""The number of images that are shown if none is named."""
SPLITS: tuple[Split, ...] = ("train", "test")
CELL_PX, LINE_PX, MARGIN_PX, COLUMNS = 96, 14, 6, 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """One image of a data set with what is known of it."""

    split: Split
    row: Row
    label: str
    """The class; "" if there is none."""

    def facts(self) -> dict[str, object]:
        """Return everything but the pixels, which are told by their size and a digest."""
        _, height, width = self.row.image.shape
        return {
            "idx": self.row.idx,
            "name": self.row.name,
            "split": self.split,
            "class": self.label or None,
            "captions": list(self.row.text),
            "height": height,
            "width": width,
            "sha256": sha256(self.row.image.tobytes()).hexdigest(),
        }


def find_images(dataset: Dataset, *, idx: Sequence[int] = (), names: Sequence[str] = ()) -> list[Shown]:
    """Return the images with these idx or names, in order of idx; the first training images if neither is given.

    A name is the whole one, its last part, or a pattern with * in it. InputError if one of them is not in the set.
    """
    wanted = set(idx)
    if names:
        wanted |= idx_by_name(dataset, names)
    elif not idx:
        wanted = set(first_idx(dataset))
    found = [
        Shown(split=split, row=row, label=label_of(row, dataset.card.classes))
        for split in SPLITS
        for row in dataset.find(wanted, split).values()
    ]
    missing = sorted(set(idx) - {shown.row.idx for shown in found})
    if missing:
        raise InputError(f"{dataset.url} has no image with idx {missing[0]}; images left out are in rejects.parquet")
    return sorted(found, key=lambda shown: shown.row.idx)


def descriptions(dataset: Dataset, wanted: set[int]) -> dict[int, tuple[str, str, str]]:
    """The label, the first text and the name in the source of training images, by idx; "" for what there is not."""
    classes, rows = dataset.card.classes, pa.array(sorted(wanted), pa.int64())
    described = {}
    for table in dataset.stream("train", ["idx", "label", "text", *dataset.card.name_column]):
        for row in table.filter(call_function("is_in", [table["idx"]], SetLookupOptions(rows))).to_pylist():
            label = classes[row["label"]] if classes and row["label"] is not None else ""
            described[row["idx"]] = (label, (row["text"] or [""])[0], row.get("name") or "")
    return described


def idx_by_name(dataset: Dataset, names: Sequence[str]) -> set[int]:
    """Return the idx of all images with one of these names; only the columns of idx and name are read."""
    if not dataset.card.named:
        raise InputError(f"{dataset.url} was prepared before names were kept; prepare it again, or give --idx")
    patterns = {name: pattern(name) for name in names}
    matched: dict[str, list[int]] = {name: [] for name in names}
    for table in (table for split in SPLITS for table in dataset.stream(split, ["idx", "name"])):
        for row in table.to_pylist():
            own = normalize("NFC", row["name"] or "")
            for name, expression in patterns.items():
                if expression.search(own):
                    matched[name].append(row["idx"])
    for name, found in matched.items():
        if not found:
            raise InputError(f"{dataset.url} has no image named {name!r}; a part of a name is given as *part*")
    return {idx for found in matched.values() for idx in found}


def pattern(name: str) -> re.Pattern[str]:
    """Return what matches a whole name or its last part (after "/" or ":"); a * stands for any characters."""
    parts = (re.escape(part) for part in normalize("NFC", name).split("*"))
    return re.compile(rf"(?:\A|[/:])(?:{'.*'.join(parts)})\Z", re.DOTALL)


def first_idx(dataset: Dataset) -> Iterator[int]:
    """Yield the idx of the first training images; no unit is read that is not needed."""
    left = FIRST
    for unit in dataset.units("train"):
        yield from ids_of(unit)[:left].to_pylist()
        left -= unit.rows
        if left <= 0:
            return


def ids_of(unit: Unit) -> pa.ChunkedArray:
    """Return the idx of a unit's images."""
    return read_unit(unit, ["idx"])["idx"]


def label_of(row: Row, classes: Sequence[str]) -> str:
    """Return the name of an image's class; "" if it has none."""
    return classes[row.label] if row.label is not None and classes else ""


def middle(row: Row, size: int) -> Image.Image:
    """Return the middle square of an image, which is what a model sees without a random crop."""
    picture = Image.fromarray(row.image.transpose(1, 2, 0))
    left, top = (picture.width - size) // 2, (picture.height - size) // 2
    return picture.crop((left, top, left + size, top + size))


def sheet(images: Iterable[Shown], size: int) -> Image.Image:
    """Draw the images as models see them, cropped to a square, side by side with their idx."""
    drawn = list(images)
    scale = max(1, CELL_PX // size)
    side = size * scale if size <= CELL_PX else CELL_PX
    columns = min(COLUMNS, len(drawn))
    width, height = side + MARGIN_PX, side + LINE_PX + MARGIN_PX
    page = Image.new("RGB", (columns * width + MARGIN_PX, -(-len(drawn) // columns) * height + MARGIN_PX), "white")
    pen = ImageDraw.Draw(page)
    for number, shown in enumerate(drawn):
        left, top = MARGIN_PX + number % columns * width, MARGIN_PX + number // columns * height
        picture = middle(shown.row, size)
        how = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX
        page.paste(picture.resize((side, side), how), (left, top))
        pen.text((left, top + side + 1), str(shown.row.idx), fill="black")
    return page
