"""The images of a folder with all that says something of them: class folders, metadata files, files of captions."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from unicodedata import normalize

from mucs_ray import storage
from mucs_ray.data.decode import EXTENSIONS
from mucs_ray.data.sources import Choices
from mucs_ray.data.sources.columns import NONE, tidy
from mucs_ray.data.sources.files import FOLLOW, leads_out, list_files, pass_over_endings
from mucs_ray.data.sources.listed import Entry, listed_images
from mucs_ray.data.sources.metadata import Metadata, decoded, is_metadata, preferred, read_metadata
from mucs_ray.data.sources.splits import Placed, place
from mucs_ray.data.understood import Aside
from mucs_ray.errors import InputError

CAPTION_ENDINGS = (".txt", ".caption")


@dataclass(frozen=True, slots=True)
class Described:
    """All images of a folder, in order of path, and where their labels and captions are from."""

    entries: list[Entry]
    labels: str
    captions: str
    notes: tuple[str, ...]


def describe(root: str, choices: Choices, aside: Aside) -> Described:
    """Return the images under root; `aside` counts what is passed over. InputError if there are none."""
    files = list_files(root, aside, follow_links=choices.follow_links)
    images = [file for file in files if file.lower().endswith(EXTENSIONS)]
    tables = metadata_files(root, files, choices, aside)
    listed = listed_images(root, tables, images, choices)
    if not images:
        raise InputError(f"no image ({', '.join(EXTENSIONS)}) under {root}{hint(files)}")
    paths = in_order({*images, *listed})
    places = place(paths, root)
    beside = caption_files(root, [path for path in paths if not listed or not listed.get(path)], files, choices)
    if choices.group_column and not any(line.tags for table in tables.values() for line in table.lines):
        raise InputError(f"--group-column {choices.group_column}: no metadata file under {root} has values in it")
    used = {*images, *listed, *beside.values(), *tables}
    pass_over_endings([file for file in files if file not in used], aside)
    told, notes = folder_labels(root, places, covered=bool(tables)) if choices.label_column != NONE else ({}, ())
    labelled_by_table = any(table.label_column for table in tables.values())
    entries, known = [], set(images)
    for path in paths:
        folder, table = table_of(path, tables)
        if path not in places:
            there = path in known
            aside.add(
                "images beside the folders of the splits" if there else "lines of metadata without an image", path
            )
        elif table is not None and table.lists_images and path not in listed:
            aside.add(f"images without a line in {folder}", path)
        elif leads_out(root, path, follow_links=choices.follow_links):
            raise InputError(
                f"{root}/{path} is a link that leads out of the folder; put the image itself there, {FOLLOW}"
            )
        else:
            own = listed.get(path) or Entry(path=path)
            label = own.label if labelled_by_table else told.get(path)
            entries.append(
                replace(
                    own,
                    split=own.split or places[path].split,
                    folder=f"column of splits, {own.split}" if own.split else places[path].folder,
                    label=label,
                    caption_file=None if own.captions else beside.get(path),
                )
            )
    return Described(entries, labels_from(tables, told), captions_from(tables, beside), (*notes, *unread(tables)))


def in_order(paths: set[str]) -> list[str]:
    """Return paths in order of their composed Unicode form, which is the same on every machine."""
    return sorted(paths, key=lambda path: (normalize("NFC", path), path))


def hint(files: Sequence[str]) -> str:
    """Say which source reads these files, if there are no images among them."""
    hints = {
        ".parquet": "*.parquet is read by source parquet",
        ".tar": "*.tar is read by source webdataset",
        ".arrow": "*.arrow must be saved as Parquet first (Dataset.to_parquet), which source parquet reads",
        ".zip": "*.zip must be unpacked first",
    }
    return next((f"; {told}" for ending, told in hints.items() if any(f.lower().endswith(ending) for f in files)), "")


def metadata_files(root: str, files: Sequence[str], choices: Choices, aside: Aside) -> dict[str, Metadata]:
    """Return the content of each metadata file by its path: one a folder."""
    in_folder: dict[str, list[str]] = {}
    for file in files:
        folder, _, name = file.rpartition("/")
        if is_metadata(name):
            in_folder.setdefault(folder, []).append(name)
    tables = {}
    for folder, names in in_folder.items():
        first, *others = [f"{folder}/{name}" if folder else name for name in preferred(names)]
        if leads_out(root, first, follow_links=choices.follow_links):
            raise InputError(
                f"{root}/{first} is a link that leads out of the folder; put the file itself there, {FOLLOW}"
            )
        tables[first] = read_metadata(f"{root}/{first}", choices)
        for other in others:
            aside.add(f"metadata files beside {first}", other)
    return tables


def table_of(path: str, tables: Mapping[str, Metadata]) -> tuple[str, Metadata | None]:
    """Return the metadata file that is nearest above an image, and its content; None if there is none."""
    of_folder = {file.rpartition("/")[0]: file for file in tables}
    for parent in PurePosixPath(path).parents:
        file = of_folder.get("" if str(parent) == "." else str(parent))
        if file is not None:
            return file, tables[file]
    return "", None


def caption_files(root: str, images: Sequence[str], files: Sequence[str], choices: Choices) -> dict[str, str]:
    """Return the files of captions beside images, by image: x.txt beside x.png, unless they hold only numbers."""
    stems = {file.rpartition(".")[0]: file for file in files if file.lower().endswith(CAPTION_ENDINGS)}
    beside = {image: stems[stem] for image in images if (stem := image.rpartition(".")[0]) in stems}
    if not beside or choices.text_column == NONE or is_numeric(root, next(iter(beside.values()))):
        return {}
    return {
        image: file for image, file in beside.items() if not leads_out(root, file, follow_links=choices.follow_links)
    }


def is_numeric(root: str, file: str) -> bool:
    """Return True if a text file holds numbers alone, such as the boxes of a detector."""
    try:
        text = decoded(storage.read_bytes(storage.join(root, file)))
    except (UnicodeDecodeError, FileNotFoundError):
        return False
    return bool(text.strip()) and re.fullmatch(r"[\d\s.,eE+-]+", text) is not None


def folder_labels(root: str, places: Mapping[str, Placed], *, covered: bool) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the class folder of each image by path, and notes on names that are taken as one.

    There are none if all training images lie loose; InputError if only some do, unless metadata says what they are.
    """
    train = {path: placed for path, placed in places.items() if placed.split == "train"}
    loose = [path for path, placed in train.items() if not placed.inside]
    if loose and len(loose) < len(train):
        if covered:
            return {}, ()
        raise InputError(f"{root} holds both class folders and images beside them ({loose[0]}); keep one kind")
    labels = {path: tidy(placed.inside[0]) for path, placed in places.items() if placed.inside and not loose}
    spellings: dict[str, set[str]] = {}
    for path, label in labels.items():
        spellings.setdefault(label, set()).add(places[path].inside[0])
    merged = sorted(label for label, names in spellings.items() if len(names) > 1)
    return labels, tuple(
        f"{len(spellings[label])} class folders that differ only in blanks or in Unicode's form are one class, {label}"
        for label in merged
    )


def labels_from(tables: Mapping[str, Metadata], told: Mapping[str, str]) -> str:
    """Write where the labels are from."""
    columns = [f"column {table.label_column} of {file}" for file, table in tables.items() if table.label_column]
    return few(columns) if columns else "class folders" if told else ""


def captions_from(tables: Mapping[str, Metadata], beside: Mapping[str, str]) -> str:
    """Write where the captions are from."""
    columns = [f"column {table.text_column} of {file}" for file, table in tables.items() if table.text_column]
    files = [f"files beside the images ({next(iter(beside.values()))}, ...)"] if beside else []
    return few([*columns, *files])


def unread(tables: Mapping[str, Metadata]) -> tuple[str, ...]:
    """Write which columns were not read, by metadata file."""
    told = [f"columns of {file} that are not read: {', '.join(t.not_read)}" for file, t in tables.items() if t.not_read]
    return (few(told),) if told else ()


def few(told: Sequence[str]) -> str:
    """Join the first of several."""
    return "; ".join(told[:2]) + (f" and {len(told) - 2} more" if len(told) > 2 else "")
