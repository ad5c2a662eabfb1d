"""The files under a folder, at any URL: what is hidden or junk is counted, and links do not lead out of it."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from unicodedata import normalize

from mucs_ray import storage
from mucs_ray.data.understood import Aside
from mucs_ray.errors import InputError, MucsError

JUNK = ("__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin")
HIDDEN = "hidden or junk files"
HUB_FOLDERS = ("datasets--", "models--", "spaces--")
FOLLOW = "or give --follow-links"


def find_files(
    where: str | None, endings: tuple[str, ...], aside: Aside, *, source: str, follow_links: bool = False
) -> list[tuple[str, str]]:
    """Return URL and name under `where` of every file with one of these endings, in order; or `where`, if it is a file.

    `aside` counts all others. InputError if there is none, or one is a link that leads out and is not to be followed.
    """
    kind = f"*{endings[0]}"
    if where is None:
        raise InputError(f"{source} needs --source: a {kind} file, a folder of them, or an fsspec URL of either")
    where = storage.absolute(where)
    fs, root = storage.filesystem(where)
    try:
        with storage.own_errors(where):
            if fs.isfile(root):
                return [(where, root.rsplit("/", 1)[-1])]
        files = list_files(where, aside, follow_links=follow_links, expected=f"a {kind} file, or a folder of them")
    except (MucsError, storage.StoreError):
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"{where} cannot be listed ({str(error).splitlines()[0]})") from None
    names = [file for file in files if file.lower().endswith(endings)]
    if not names:
        raise InputError(f"no {kind} at {where}; expected such a file, or a folder of them")
    for name in names:
        if leads_out(where, name, follow_links=follow_links):
            raise InputError(
                f"{where}/{name} is a link that leads out of the folder; put the file itself there, {FOLLOW}"
            )
    pass_over_endings([file for file in files if not file.lower().endswith(endings)], aside)
    return [(storage.join(where, name), name) for name in names]


def pass_over_endings(files: Sequence[str], aside: Aside) -> None:
    """Count files that are neither images nor anything that describes them."""
    for file in files:
        name = file.rpartition("/")[2]
        ending = name[name.rfind(".") :].lower() if "." in name else ""
        aside.add(f"files ending in {ending}" if ending else "files without an ending", file)


def list_files(root: str, aside: Aside, *, follow_links: bool = False, expected: str = "one of images") -> list[str]:
    """Return the paths under root, in order of their composed Unicode form; `aside` counts hidden files and junk.

    InputError if there is no such folder, or a link to a folder in it is not to be followed.
    """
    fs, path = storage.filesystem(root)
    with storage.own_errors(root):
        if not fs.isdir(path):
            archive = "; unpack an archive first, or read *.tar as source webdataset" if fs.exists(path) else ""
            raise InputError(f"no folder {root}; expected {expected}{archive}")
        if storage.is_local(root):
            paths = list(local_files(path, "", aside, follow_links=follow_links, above=(os.path.realpath(path),)))
        else:
            base = fs.info(path)["name"].rstrip("/")
            paths = [str(file)[len(base) + 1 :] for file in fs.find(path)]
            hidden = [file for file in paths if any(map(is_junk, file.split("/")))]
            aside.add(HIDDEN, hidden[0] if hidden else "", len(hidden))
            paths = [file for file in paths if not any(map(is_junk, file.split("/")))]
    return sorted(paths, key=lambda file: (normalize("NFC", file), file))


def local_files(root: str, folder: str, aside: Aside, *, follow_links: bool, above: tuple[str, ...]) -> Iterator[str]:
    """Yield the paths of files under a folder on this machine; `above` are the real folders that it is in."""
    with os.scandir(os.path.join(root, folder)) as entries:  # noqa: PTH118 (this runs for every file)
        for entry in entries:
            path = f"{folder}/{entry.name}" if folder else entry.name
            if is_junk(entry.name):
                aside.add(HIDDEN, path)
            elif not entry.is_dir():
                yield path
            elif not entry.is_symlink():
                yield from local_files(root, path, aside, follow_links=follow_links, above=above)
            elif not follow_links:
                raise InputError(
                    f"{root}/{path} is a link to a folder, which is not followed; put the folder itself there, {FOLLOW}"
                )
            elif (real := os.path.realpath(entry.path)) in above:
                aside.add("links to a folder that they are in", path)
            else:
                yield from local_files(root, path, aside, follow_links=True, above=(*above, real))


def is_junk(name: str) -> bool:
    """Return True for hidden files and for what file managers and archivers leave behind."""
    return name.startswith(".") or name.lower() in JUNK


def leads_out(root: str, path: str, *, follow_links: bool = False) -> bool:
    """Return True if links on this machine take a path under root out of it, and none may.

    In the cache of a data hub, whose snapshots are links to files beside them, a path may lead to those.
    """
    if follow_links or not storage.is_local(root):
        return False
    inside = os.path.realpath(root)
    for parent in Path(inside).parents:
        if parent.name.startswith(HUB_FOLDERS) and Path(inside).relative_to(parent).parts[0] == "snapshots":
            inside = str(parent)
    return not os.path.realpath(f"{root}/{path}").startswith(inside.rstrip("/") + "/")
