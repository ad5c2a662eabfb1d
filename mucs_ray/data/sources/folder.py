"""A folder of images, by the conventions of ImageFolder.

    root/<class>/**         class folders                                              -> labels
    root/*                  with metadata.jsonl or .csv: file_name, and label          -> labels
                            or text (or caption; several lines a file, or a list)      -> captions, embedded
    root/*                  only images                                                -> no condition
    root/{train,test}/...   any of these, split; val or validation is used where there is no test
Without a test split a fixed tenth is held out. Images come in order of their path; nothing outside root is read.
"""

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, Literal

from mucs_ray import storage
from mucs_ray.data import caption_embedding
from mucs_ray.data.decode import EXTENSIONS, DecodeError, decode
from mucs_ray.data.sources import Listing, Reject, Task
from mucs_ray.data.sources.cutting import held_out, tasks_of
from mucs_ray.data.table import Row
from mucs_ray.errors import InputError, MachineError

DEFAULT_SIZE = 64
PER_SHARD = 1024
METADATA = ("metadata.jsonl", "metadata.csv")
TEST_FOLDERS = ("test", "val", "validation")


@dataclass(frozen=True, slots=True)
class Entry:
    """One image, by its path under root, with its label and captions."""

    path: str
    label: str | None = None
    captions: tuple[str, ...] = ()


def plan(where: str | None, size: int | None) -> Listing:
    """List the images. MachineError at once if they have captions and the CLIP weights are absent."""
    if where is None:
        raise InputError("folder needs --source, a folder of images")
    root, side = storage.absolute(where).rstrip("/"), size or DEFAULT_SIZE
    train, test = search(root)
    condition = condition_of([*train, *test])
    if condition == "embedding":
        demand_weights()
    classes = ordered({entry.label for entry in (*train, *test) if entry.label is not None})
    return Listing(
        name=PurePosixPath(root).name or "folder",
        licence="unknown: the user's own images",
        size=side,
        condition=condition,
        condition_dim={"none": 0, "label": len(classes), "embedding": caption_embedding.DIM}[condition],
        classes=classes,
        tasks=tasks_of(train, test, per_shard=PER_SHARD, extra=(root, side, classes)),
        distributed=True,
    )


def read(task: Task) -> Iterator[Row | Reject]:
    """Decode a task's images, and embed their captions if they have any."""
    first_idx, entries, (root, size, classes) = task.payload
    numbers = {name: number for number, name in enumerate(classes)}
    conditions = caption_embedding.embed_each([entry.captions for entry in entries])
    for idx, (entry, condition) in enumerate(zip(entries, conditions, strict=True), start=first_idx):
        try:
            image = decode(storage.read_bytes(storage.join(root, entry.path)), size=size)
        except DecodeError as error:
            yield Reject(idx=idx, where=entry.path, reason=str(error))
        except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError) as error:
            yield Reject(idx=idx, where=entry.path, reason=error.strerror or "absent")
        else:
            label = None if entry.label is None else numbers[entry.label]
            embedded = condition if entry.captions else None
            yield Row(idx=idx, image=image, label=label, text=entry.captions, condition=embedded, name=entry.path)


def demand_weights() -> None:
    """Raise MachineError, with the alternatives, if the CLIP weights are absent."""
    try:
        caption_embedding.find_weights()
    except MachineError as error:
        alternatives = "class folders, a label column without captions, or a folder of only images need none"
        raise MachineError(f"{error}; {alternatives}") from None


def search(root: str) -> tuple[list[Entry], list[Entry]]:
    """Return the images of both splits, each in order of path."""
    files = files_of(root)
    images = [file for file in files if file.lower().endswith(EXTENSIONS)]
    if not images:
        raise InputError(f"no image ({', '.join(EXTENSIONS)}) under {root}")
    train_folder, test_folder, unused = split_folders(images)
    entries = []
    for folder in [""] if metadata_in("", files) else [train_folder, *filter(None, [test_folder])]:
        name = metadata_in(folder, files)
        entries += described(root, folder, name) if name else by_folder(root, folder, images)
    entries = sorted((entry for entry in entries if not entry.path.startswith(unused)), key=lambda entry: entry.path)
    if test_folder:
        test = [entry for entry in entries if entry.path.startswith(f"{test_folder}/")]
    else:
        test = [entry for entry in entries if held_out(entry.path)] or entries[1:][-1:]
    test_paths = {entry.path for entry in test}
    return [entry for entry in entries if entry.path not in test_paths], test


def files_of(root: str) -> list[str]:
    """Return the paths under root of all files that are not hidden, sorted."""
    fs, path = storage.filesystem(root)
    with storage.own_errors(root):
        if not fs.isdir(path):
            raise InputError(f"no folder {root}; expected one of images")
        base = fs.info(path)["name"].rstrip("/")
        paths = sorted(str(file)[len(base) + 1 :] for file in fs.find(path))
    files = [file for file in paths if not any(part.startswith(".") for part in file.split("/"))]
    for file in files if storage.is_local(root) else ():
        if os.path.isdir(os.path.join(path, file)):  # noqa: PTH112, PTH118 (this runs for every image)
            raise InputError(f"{root}/{file} is a link to a folder, which is not followed; put the folder itself there")
    return files


def split_folders(images: Sequence[str]) -> tuple[str, str | None, tuple[str, ...]]:
    """Return (train's folder, test's folder or None, prefixes of paths that are in neither)."""
    tops = {image.partition("/")[0] if "/" in image else "" for image in images}
    if "train" not in tops or not tops <= {"train", *TEST_FOLDERS}:
        return "", None, ()
    test_folders = [folder for folder in TEST_FOLDERS if folder in tops]
    return "train", test_folders[0] if test_folders else None, tuple(f"{folder}/" for folder in test_folders[1:])


def by_folder(root: str, folder: str, images: Iterable[str]) -> list[Entry]:
    """Return the images under a folder, labelled by the first folder below it if they are in any."""
    start = f"{folder}/" if folder else ""
    inside = [image for image in images if image.startswith(start)]
    for image in inside:
        if leads_out(root, image):
            raise InputError(f"{root}/{image} is a link that leads out of the folder; put the image itself there")
    loose = [image for image in inside if "/" not in image[len(start) :]]
    if not loose:
        return [Entry(path=image, label=image[len(start) :].partition("/")[0]) for image in inside]
    if len(loose) < len(inside):
        raise InputError(f"{root}/{folder} holds both class folders and images beside them ({loose[0]}); keep one kind")
    return [Entry(path=image) for image in inside]


def metadata_in(folder: str, files: Iterable[str]) -> str | None:
    """Return the path of the folder's metadata file; None if it has none."""
    candidates = [f"{folder}/{name}" if folder else name for name in METADATA]
    return next((name for name in candidates if name in set(files)), None)


def described(root: str, folder: str, name: str) -> list[Entry]:
    """Return the images that a metadata file lists; InputError, naming the line, if one cannot be used."""
    entries: dict[str, Entry] = {}
    if leads_out(root, name):
        raise InputError(f"{root}/{name} is a link that leads out of the folder; put the file itself there")
    for number, record in records(f"{root}/{name}"):
        at = f"{root}/{name} line {number}"
        path = path_of(root, folder, record.get("file_name"), at)
        label, captions = label_of(record, at), captions_of(record, at)
        if path in entries and entries[path].label != label:
            raise InputError(f"{at}: {path} has label {label}, and {entries[path].label} above; keep one")
        above = entries[path].captions if path in entries else ()
        entries[path] = Entry(path=path, label=label, captions=above + captions)
    return list(entries.values())


def records(url: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield line number and content of each record of a metadata file."""
    number = 1
    try:
        text = storage.read_bytes(url).decode("utf-8-sig")
        if url.endswith(".csv"):
            reader = csv.DictReader(io.StringIO(text, newline=""))
            for record in reader:
                number = reader.line_num
                yield number, record
            return
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                record = json.loads(line)
                if not isinstance(record, dict):
                    raise InputError(f"{url} line {number}: expected a JSON object")
                yield number, record
    except InputError:
        raise
    except (ValueError, csv.Error, RecursionError, OSError) as error:
        reason = getattr(error, "msg", None) or str(error).splitlines()[0]
        raise InputError(f"{url} line {number} cannot be read ({reason})") from None


def path_of(root: str, folder: str, name: object, at: str) -> str:
    """Return a file_name as a path under root; InputError if it is none or leads out of root."""
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        raise InputError(f"{at}: file_name is {name!r}, expected the path of an image")
    parts = [(flavour(name).anchor, flavour(name).parts) for flavour in (PurePosixPath, PureWindowsPath)]
    path = str(PurePosixPath(folder, name))
    if any(anchor or ".." in steps for anchor, steps in parts) or leads_out(root, path):
        raise InputError(f"{at}: file_name {name!r} leads out of {root}; list only images inside it")
    return path


def leads_out(root: str, path: str) -> bool:
    """Return True if links on this machine take a path under root out of it."""
    if not storage.is_local(root):
        return False
    inside = os.path.realpath(root).rstrip("/") + "/"
    return not os.path.realpath(f"{root}/{path}").startswith(inside)


def captions_of(record: dict[str, Any], at: str) -> tuple[str, ...]:
    """Return the record's text or caption, which is a string or a list of them."""
    value = record.get("text", record.get("caption"))
    values = value if isinstance(value, list) else [] if value in (None, "") else [value]
    if not all(isinstance(caption, str) for caption in values):
        raise InputError(f"{at}: text is {value!r}, expected a caption or a list of captions")
    return tuple(values)


def label_of(record: dict[str, Any], at: str) -> str | None:
    """Return the record's label as a class name."""
    value = record.get("label")
    if value is not None and not isinstance(value, str | int):
        raise InputError(f"{at}: label is {value!r}, expected a name or a whole number")
    return None if value in (None, "") else str(value)


def condition_of(entries: Sequence[Entry]) -> Literal["none", "label", "embedding"]:
    """Choose captions before labels; InputError if only some images have them."""
    for kind, has in (
        ("caption", lambda entry: bool(entry.captions)),
        ("label", lambda entry: entry.label is not None),
    ):
        lacking = next((entry.path for entry in entries if not has(entry)), None)
        having = next((entry.path for entry in entries if has(entry)), None)
        if lacking and having:
            raise InputError(f"{lacking} has no {kind}, {having} has one; give one to every image or to none")
    if not entries or entries[0].captions:
        return "embedding" if entries else "none"
    return "none" if entries[0].label is None else "label"


def ordered(names: Iterable[str]) -> tuple[str, ...]:
    """Return class names sorted; numbers are sorted by their value."""
    in_order = sorted(names)
    return tuple(sorted(in_order, key=int) if all(name.isdecimal() for name in in_order) else in_order)
