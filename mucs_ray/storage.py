"""This module reads and publishes whole files at any fsspec URL.

A published file is complete or absent: local files are written under another name and renamed; object stores take a
single PUT or, above 100 MB, an upload in parts, which appears once it is completed. Timeouts and retries are those of
the store's client and of the user's settings for it; its final error becomes one line (`own_errors`).

URLs are `str`, never `Path` (a Path mangles "s3://").
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import file_digest, sha256
from pathlib import Path
from typing import IO, Any, cast
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import fsspec
from fsspec.core import split_protocol, url_to_fs
from fsspec.implementations.local import LocalFileSystem

from mucs_ray.errors import InputError, MachineError, MucsError

READ_AHEAD_BYTES = 2**16
"""The number of bytes read beyond a request to an open remote file; s3fs's own 50 MB would be many units of a shard."""
S3_RETRIES = 3
"""The attempts of s3fs, each of which makes five of botocore's; a read makes all of them three times. With s3fs's
timeout of 15 s a server that never answers is given up after 12 minutes, before `engine.timeout`; with its own 5
attempts, after half an hour.
"""
ABSENT = (FileNotFoundError, NotADirectoryError)


class StoreError(OSError):
    """This failure of a store may pass. It is no MucsError, because those are final and this work is tried again."""


def join(url: str, *parts: str) -> str:
    """Append path parts to a URL or a local path."""
    return "/".join([url.rstrip("/"), *parts])


def filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the filesystem of a URL and the path inside it.

    It raises MachineError if the protocol's package is missing, and InputError if the protocol is unknown. The
    filesystem does not cache listings, because other processes write too.
    """
    try:
        if "::" in url and "://" not in url.rpartition("::")[2]:
            fs, path = unchained(url)
        else:
            fs, path = url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        raise MachineError(f"{redacted(url)}: {error}") from None
    except ValueError as error:
        raise InputError(f"{redacted(url)}: {error}") from None
    if is_s3(fs):
        cast(Any, fs).retries = S3_RETRIES
    return fs, path


def unchained(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return filesystem and path of a URL with "::" in the name of a file, which fsspec takes for a chain of URLs."""
    protocol = split_protocol(url)[0] or "file"
    kind = cast(Any, fsspec.get_filesystem_class(protocol))
    options = kind._get_kwargs_from_urls(url)
    return fsspec.filesystem(protocol, **options, use_listings_cache=False), kind._strip_protocol(url)


def is_s3(fs: fsspec.AbstractFileSystem) -> bool:
    """Return True for s3fs."""
    return "s3" in fs.protocol


def is_local(url: str) -> bool:
    """Return True for a path on this machine."""
    return isinstance(filesystem(url)[0], LocalFileSystem)


def absolute(url: str) -> str:
    """Make a local path absolute, so that worker processes with another working directory find it."""
    fs, path = filesystem(url)
    return path if isinstance(fs, LocalFileSystem) else url


def redacted(url: str) -> str:
    """Return a URL without the parts that may be secret: user, password and query."""
    parts = urlsplit(url)
    if not parts.scheme:
        return url
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


@contextmanager
def own_errors(url: str) -> Iterator[None]:
    """Turn any error of a store's client, whether it is an OSError or not, into one line of this package.

    It becomes InputError if no file can have the URL, MachineError if the store denies access, and else StoreError. An
    absent file, and all errors of local files, keep Python's own exceptions.
    """
    try:
        yield
    except (*ABSENT, MucsError, StoreError):
        raise
    except Exception as error:  # each client has its own: botocore's BotoCoreError, gcsfs's HttpError, aiohttp's, ...
        if is_local(url):
            raise
        kind, reason = type(error).__name__, getattr(error, "strerror", None) or str(error)
        message = f"{redacted(url)}: {kind}: {' '.join(reason.split())}"
        if isinstance(error, ValueError) or kind == "ParamValidationError":  # botocore's, of the name of a bucket
            raise InputError(message) from error
        if isinstance(error, PermissionError) or "Credentials" in kind:
            raise MachineError(f"{message}; check your credentials for this store") from error
        raise StoreError(f"{message}; check the store's address, or run the command again later") from error


def exists(url: str) -> bool:
    """Return True if there is a file (or folder) at `url`."""
    fs, path = filesystem(url)
    with own_errors(url):
        try:
            fs.info(path)  # fs.exists may answer "no" where it should fail
        except ABSENT:
            return False
        return True


def read_bytes(url: str) -> bytes:
    """Read the whole file. It raises FileNotFoundError if the file is absent."""
    fs, path = filesystem(url)
    # in one request: above 50 MB s3fs makes several, which may see different versions and are not retried
    at_once = {"max_concurrency": 1} if is_s3(fs) else {}
    with own_errors(url):
        content = fs.cat_file(path, **at_once)
    assert isinstance(content, bytes)
    return content


@contextmanager
def opened(url: str) -> Iterator[IO[bytes]]:
    """Open a file to read parts of it. It raises FileNotFoundError if the file is absent."""
    fs, path = filesystem(url)
    with own_errors(url):
        file = fs.open(path, "rb", block_size=READ_AHEAD_BYTES)
    with file:
        yield cast(IO[bytes], file if isinstance(fs, LocalFileSystem) else OpenedRemote(cast(IO[bytes], file), url))


class OpenedRemote:
    """This is an open remote file that reports its store's errors as `own_errors` does."""

    def __init__(self, file: IO[bytes], url: str) -> None:
        """Wrap an open file."""
        self.file, self.url = file, url

    def read(self, size: int = -1) -> bytes:
        """Read at most `size` bytes, or all that are left."""
        with own_errors(self.url):
            return self.file.read(size)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - everything else of a file
        """Return any other attribute of the file itself."""
        return getattr(self.file, name)


def publish(url: str, content: bytes) -> str:
    """Write `content` so that a reader sees all of it or nothing, and return its sha256. The call may be repeated."""
    fs, path = filesystem(url)
    if isinstance(fs, LocalFileSystem):
        final = Path(path)
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = final.with_name(f".{final.name}.{uuid4().hex}.tmp")
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(final)
        finally:
            temporary.unlink(missing_ok=True)
    else:
        with publishing(url):
            fs.pipe_file(path, content)
    return sha256(content).hexdigest()


def publish_file(url: str, path: Path) -> str:
    """Publish a local file's content without holding it in memory, and return its sha256."""
    with path.open("rb") as file:
        digest = file_digest(file, "sha256").hexdigest()
    fs, target = filesystem(url)
    if isinstance(fs, LocalFileSystem):
        temporary = Path(target).with_name(f".{Path(target).name}.{uuid4().hex}.tmp")
        shutil.copyfile(path, temporary)
        temporary.replace(target)
    else:
        with publishing(url):
            fs.put_file(str(path), target)
    return digest


@contextmanager
def publishing(url: str) -> Iterator[None]:
    """Translate the errors of a remote write.

    It raises InputError if there is no such bucket, because a store creates folders but no buckets.
    """
    try:
        with own_errors(url):
            yield
    except FileNotFoundError as error:
        raise InputError(f"{redacted(url)} cannot be written: {error}; does the bucket exist?") from error


def read_json(url: str) -> Any:  # noqa: ANN401 - any JSON value
    """Read a JSON document. It raises FileNotFoundError if the file is absent."""
    return json.loads(read_bytes(url))


def publish_json(url: str, document: Any) -> str:  # noqa: ANN401 - any JSON value
    """Publish a JSON document, indented and with sorted keys so that equal content is equal bytes."""
    return publish(url, (json.dumps(document, indent=1, sort_keys=True) + "\n").encode())


def names(url: str) -> list[str]:
    """Return the names of the files in a folder, or none if the folder is absent.

    This is for planning and clean-up: readers follow manifests.
    """
    fs, path = filesystem(url)
    with own_errors(url):
        try:
            entries = fs.ls(path, detail=False)
        except ABSENT:
            return []
    return [entry.rstrip("/").rsplit("/", 1)[-1] for entry in entries]


def digest(url: str, suffixes: tuple[str, ...] = (".json", ".safetensors", ".ckpt", ".pt", ".pth")) -> str:
    """Return the sha256 of a file; of a folder, that of its files with these endings, also in folders inside it."""
    fs, path = filesystem(url)
    with own_errors(url):
        if not fs.isdir(path):
            return sha256(read_bytes(url)).hexdigest()
        found = sorted(file for file in fs.find(path) if file.endswith(suffixes))
    whole = sha256()
    for file in found:
        inside = file.removeprefix(path.rstrip("/"))
        whole.update(f"{inside}\0".encode() + sha256(cast(bytes, fs.cat_file(file))).digest())
    return whole.hexdigest()


def remove(url: str) -> None:
    """Delete one file if it exists."""
    fs, path = filesystem(url)
    with own_errors(url), suppress(*ABSENT):
        fs.rm_file(path)


def remove_folder(url: str) -> None:
    """Delete a folder with all that is in it if it exists."""
    fs, path = filesystem(url)
    with own_errors(url), suppress(*ABSENT):
        fs.rm(path, recursive=True)
