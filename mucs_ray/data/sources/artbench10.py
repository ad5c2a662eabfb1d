"""ArtBench-10: its metadata CSV beside the folders of images, split/label/name; class = artistic style (spec 2)."""

import csv
import io
from collections.abc import Iterator

from mucs_ray import storage
from mucs_ray.data.decode import DecodeError, decode_upright
from mucs_ray.data.sources import Listing, Reject, Task
from mucs_ray.data.sources.cutting import tasks_of
from mucs_ray.data.table import Row
from mucs_ray.data.understood import Aside, Understood
from mucs_ray.errors import InputError

DEFAULT_SIZE = 64
NAME, LABEL, SPLIT = 0, 6, 7
"""The columns of the CSV that are read; its first row is a header."""
SPLITS = ("train", "test")


def plan(where: str | None, size: int | None) -> Listing:
    """List the images that are in the CSV and in the folder; class ids follow the first appearance in the CSV."""
    (root, table), aside = find(where), Aside()
    names_in: dict[str, set[str]] = {}
    classes: dict[str, int] = {}
    images: dict[str, list[tuple[str, int]]] = {split: [] for split in SPLITS}
    for line, (name, label, split) in rows(table):
        for part in (name, label):
            if part in ("", ".", "..") or "/" in part or "\\" in part:
                raise InputError(f"{table}, line {line}: {part!r} is not a plain name; expected a file of split/label/")
        if split not in images:
            raise InputError(f"{table}, line {line}: split {split!r}, expected train or test")
        number = classes.setdefault(label, len(classes))
        folder = f"{split}/{label}"
        if folder not in names_in:
            names_in[folder] = set(storage.names(storage.join(root, folder)))
        if name in names_in[folder]:
            images[split].append((f"{folder}/{name}", number))
        else:
            aside.add("images of the CSV that are not there", f"{folder}/{name}")
    if not images["train"]:
        raise InputError(f"{root} holds none of the training images of {table}; expected train/<label>/<file name>")
    listed = {path for of_split in images.values() for path, _ in of_split}
    for folder, names in sorted(names_in.items()):
        unlisted = [name for name in names if f"{folder}/{name}" not in listed]
        aside.add("files that are not in the CSV", f"{folder}/{min(unlisted, default='')}", len(unlisted))
    classes_in_order, side = tuple(classes), size or DEFAULT_SIZE
    return Listing(
        name="artbench10",
        licence="ArtBench-10, Liao et al. 2022; fair use of works in the public domain, for research",
        size=side,
        condition="label",
        condition_dim=len(classes_in_order),
        classes=classes_in_order,
        tasks=tasks_of(images["train"], images["test"], extra=(root, classes_in_order, side)),
        distributed=True,
        understood=Understood(
            splits={"train": "train/", "test": "test/"},
            labels="the CSV",
            captions="the style",
            passed_over=aside.reasons(),
        ),
    )


def read(task: Task) -> Iterator[Row | Reject]:
    """Decode the images of one shard; the text is the style."""
    first_idx, entries, (root, classes, side) = task.payload
    for idx, (path, label) in enumerate(entries, start=first_idx):
        try:
            image, turned = decode_upright(storage.read_bytes(storage.join(root, path)), size=side)
        except (DecodeError, OSError) as error:
            yield Reject(idx=idx, where=path, reason=str(error))
        else:
            yield Row(idx=idx, image=image, label=label, text=(classes[label],), name=path, turned=turned)


def find(where: str | None) -> tuple[str, str]:
    """Return the folder and the CSV in it."""
    expected = "a folder with ArtBench-10.csv and train/<label>/<file name>, test/<label>/<file name>"
    if where is None:
        raise InputError(f"artbench10 needs --source, {expected}")
    root = storage.absolute(where)
    tables = sorted(name for name in storage.names(root) if name.lower().endswith(".csv"))
    if len(tables) != 1:
        raise InputError(f"{root} holds {len(tables)} files *.csv, expected one: {expected}")
    return root, storage.join(root, tables[0])


def rows(table: str) -> Iterator[tuple[int, tuple[str, str, str]]]:
    """Yield line number, and name, label and split, of every row after the header."""
    lines = csv.reader(io.StringIO(storage.read_bytes(table).decode("utf-8-sig", "replace"), newline=""))
    try:
        next(lines, None)
        for row in lines:
            if not row:
                continue
            if len(row) <= SPLIT:
                raise InputError(f"{table}, line {lines.line_num}: {len(row)} columns, expected at least {SPLIT + 1}")
            yield lines.line_num, (row[NAME].strip(), row[LABEL].strip(), row[SPLIT].strip())
    except csv.Error as error:
        raise InputError(f"{table}, line {lines.line_num} is not CSV ({error})") from None
