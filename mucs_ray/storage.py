"""Files at any fsspec URL: read whole, publish whole.

A published file is complete or absent: local files are written aside and renamed, object stores take a single PUT.
URLs are `str`, never `Path` (a Path mangles "s3://").
"""

import json
import os
import shutil
from collections.abc import Iterator
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from mucs_ray.errors import InputError, MachineError


def join(url: str, *parts: str) -> str:
    """Append path parts to a URL or a local path."""
    return "/".join([url.rstrip("/"), *parts])


def filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The filesystem of a URL and the path inside it. MachineError if its package is missing, InputError if unknown."""
    try:
        return url_to_fs(url)
    except ImportError as error:
        raise MachineError(f"{redacted(url)}: {error}") from None
    except ValueError as error:
        raise InputError(f"{redacted(url)}: {error}") from None


def is_local(url: str) -> bool:
    """True for a path on this machine."""
    return isinstance(filesystem(url)[0], LocalFileSystem)


def absolute(url: str) -> str:
    """A local path made absolute, so that worker processes with another working directory find it."""
    fs, path = filesystem(url)
    return path if isinstance(fs, LocalFileSystem) else url


def redacted(url: str) -> str:
    """A URL without what may be secret in it: user, password, query."""
    parts = urlsplit(url)
    if not parts.scheme:
        return url
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def exists(url: str) -> bool:
    """True if there is a file (or folder) at `url`."""
    fs, path = filesystem(url)
    return fs.exists(path)


def read_bytes(url: str) -> bytes:
    """The whole file; FileNotFoundError if absent."""
    fs, path = filesystem(url)
    content = fs.cat_file(path)
    assert isinstance(content, bytes)
    return content


def publish(url: str, content: bytes) -> str:
    """Write `content` so that a reader sees all of it or nothing; returns its sha256. May be repeated."""
    fs, path = filesystem(url)
    if isinstance(fs, LocalFileSystem):
        final = Path(path)
        final.parent.mkdir(parents=True, exist_ok=True)
        aside = final.with_name(f".{final.name}.{uuid4().hex}.tmp")
        try:
            with aside.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(final)
        finally:
            aside.unlink(missing_ok=True)
    else:
        fs.pipe_file(path, content)
    return sha256(content).hexdigest()


def publish_file(url: str, path: Path) -> str:
    """Publish a local file's content without holding it in memory; returns its sha256."""
    with path.open("rb") as file:
        digest = file_digest(file, "sha256").hexdigest()
    fs, target = filesystem(url)
    if isinstance(fs, LocalFileSystem):
        aside = Path(target).with_name(f".{Path(target).name}.{uuid4().hex}.tmp")
        shutil.copyfile(path, aside)
        aside.replace(target)
    else:
        fs.put_file(str(path), target)
    return digest


def read_json(url: str) -> Any:  # noqa: ANN401 - any JSON value
    """A JSON document; FileNotFoundError if absent."""
    return json.loads(read_bytes(url))


def publish_json(url: str, document: Any) -> str:  # noqa: ANN401 - any JSON value
    """Publish a JSON document, indented and with sorted keys so that equal content is equal bytes."""
    return publish(url, (json.dumps(document, indent=1, sort_keys=True) + "\n").encode())


def names(url: str) -> Iterator[str]:
    """File names in a folder; none if it is absent. For planning and clean-up: readers follow manifests."""
    fs, path = filesystem(url)
    fs.invalidate_cache(path)  # object stores remember listings, and other processes write here too
    if not fs.exists(path):
        return
    for entry in fs.ls(path, detail=False):
        yield entry.rstrip("/").rsplit("/", 1)[-1]


def remove(url: str) -> None:
    """Delete one file, if it is there."""
    fs, path = filesystem(url)
    if fs.exists(path):
        fs.rm_file(path)
