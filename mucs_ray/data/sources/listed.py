"""The images that metadata files list, found by whatever the files call them; none leads out of the root."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath, PureWindowsPath
from unicodedata import normalize

from mucs_ray.data.sources import Choices
from mucs_ray.data.sources.files import FOLLOW, leads_out
from mucs_ray.data.sources.metadata import Metadata
from mucs_ray.data.sources.splits import Named
from mucs_ray.errors import InputError


@dataclass(frozen=True, slots=True)
class Entry:
    """One image, by its path under root, with its split, label and captions."""

    path: str
    split: Named | None = None
    """None until it is known."""
    folder: str = ""
    """The folder that says the split; "" if none does."""
    label: str | None = None
    captions: tuple[str, ...] = ()
    caption_file: str | None = None
    """The path of a file with its captions, which is read with the image."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """The columns to make groups by, with their values."""


def listed_images(
    root: str, tables: Mapping[str, Metadata], images: Sequence[str], choices: Choices
) -> dict[str, Entry]:
    """Return the images that metadata files list; InputError, naming the line, if one cannot be used."""
    by_name = lookup(images)
    entries: dict[str, Entry] = {}
    for file, table in tables.items():
        folder = file.rpartition("/")[0]
        for line in table.lines:
            path = path_of(root, folder, line.file_name, line.at, by_name, follow_links=choices.follow_links)
            above = entries.get(path)
            if above is not None and above.label != line.label:
                raise InputError(f"{line.at}: {path} has label {line.label}, and {above.label} above; keep one")
            captions = (above.captions if above else ()) + line.captions
            entries[path] = Entry(path=path, split=line.split, label=line.label, captions=captions, tags=line.tags)
    return entries


def lookup(images: Sequence[str]) -> dict[str, str]:
    """Return images by what metadata may call them: their path, or what is theirs alone of their name or its stem."""
    exact = {normalize("NFC", image): image for image in reversed(images)}
    shorter: dict[str, set[str]] = {}
    for name, image in exact.items():
        last = name.rpartition("/")[2]
        for short in (name.rpartition(".")[0], last, last.rpartition(".")[0]):
            shorter.setdefault(short, set()).add(image)
    return {short: next(iter(found)) for short, found in shorter.items() if len(found) == 1} | exact


def path_of(
    root: str, folder: str, name: object, at: str, by_name: Mapping[str, str], *, follow_links: bool = False
) -> str:
    """Return a file name in a metadata file as a path under root; InputError if it is none or leads out of root.

    It is relative to the metadata file, or else to root; either kind of slash and of Unicode's forms will do.
    """
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        raise InputError(f"{at}: file_name is {name!r}, expected the path of an image")
    anchored = [(flavour(name).anchor, flavour(name).parts) for flavour in (PurePosixPath, PureWindowsPath)]
    if any(anchor or ".." in steps for anchor, steps in anchored):
        raise InputError(f"{at}: file_name {name!r} leads out of {root}; list only images inside it")
    tried = [
        str(PurePosixPath(start, spelling)) for spelling in (name, name.replace("\\", "/")) for start in (folder, "")
    ]
    found = next((by_name[path] for path in (normalize("NFC", each) for each in tried) if path in by_name), None)
    path = found or tried[0]
    if leads_out(root, path, follow_links=follow_links):
        raise InputError(f"{at}: file_name {name!r} leads out of {root}; list only images inside it, {FOLLOW}")
    return path
