"""Machines write and read small files, called probes, to find out whether a folder is the same place for all of them.

This runs on every node at the start of a command, so nothing is imported here that takes long.
"""

from collections.abc import Iterable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from mucs_ray import storage


def write(url: str) -> list[str]:
    """Publish a probe, and return the local folders that had to be created, the deepest first."""
    path = Path(storage.filesystem(url)[1])
    created = [str(folder) for folder in path.parents if not folder.exists()] if storage.is_local(url) else []
    storage.publish(url, content(url))
    return created


def unreadable_probes(probe: str, writers: Iterable[str]) -> list[str]:
    """Return the writers whose probes cannot be read here."""
    return [writer for writer in writers if not readable(probe + writer)]


def readable(url: str) -> bool:
    """Return True if this probe is seen here.

    Nobody looked for it before, so a file system cannot answer from its cache.
    """
    try:
        return storage.read_bytes(url) == content(url)
    except (FileNotFoundError, NotADirectoryError):
        return False


def content(url: str) -> bytes:
    """Return the content of a probe, which is its name."""
    return url.rpartition("/")[2].encode()


def remove(url: str, folders: Iterable[str]) -> None:
    """Delete a probe if it exists, and the folders created for it if nothing else is in them."""
    with suppress(OSError):
        storage.remove(url)
    for folder in folders:
        with suppress(OSError):
            Path(folder).rmdir()


def dataset_probe(url: str, shard: str) -> tuple[str, Any]:
    """Return the digest of a data set's card, and the first bytes of a shard."""
    digest = sha256(storage.read_bytes(storage.join(url, "card.json"))).hexdigest()
    fs, path = storage.filesystem(storage.join(url, shard))
    with storage.own_errors(url):
        return digest, fs.cat_file(path, start=0, end=4)
