"""The members of WebDataset tars, by key: a stream with an allow-list of endings and bounds on sizes.

Nothing is extracted to disk and nothing is unpickled; a member's name is data, never a path. Links, devices and members
with other endings are counted and stay unread.
"""

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO

from mucs_ray import storage
from mucs_ray.data.decode import EXTENSIONS
from mucs_ray.data.sources.files import HIDDEN, is_junk
from mucs_ray.data.understood import Aside
from mucs_ray.errors import InputError, MucsError

ENDINGS = (".txt", ".caption", ".cls", ".json")
"""The endings of members that are read beside images."""
TARS = (".tar", ".tar.gz", ".tgz")
MAX_IMAGE_BYTES, MAX_TEXT_BYTES = 256 * 2**20, 2**20
MAX_MEMBERS = 10_000_000


@dataclass(slots=True)
class Sample:
    """The members with one key."""

    key: str
    ending: str = ""
    """The ending of the image's name; "" if there is no image."""
    image: bytes = b""
    files: dict[str, bytes] = field(default_factory=dict)
    """The content of the other members by ending."""


def samples(url: str, aside: Aside, *, images: bool) -> Iterator[Sample]:
    """Yield the samples of a tar that have an image, in order; without `images` the content of the image is not read.

    Members of one key stand together, as the format demands.
    """
    current: Sample | None = None
    for member, tar in members(url):
        key, ending = split_name(member.name)
        reason = why_not(member, ending)
        if reason:
            aside.add(reason, member.name)
            continue
        if current is None or current.key != key:
            yield from complete(current, aside)
            current = Sample(key=key)
        if ending in EXTENSIONS and current.ending:
            aside.add("further images of a key that has one", member.name)
        elif ending in EXTENSIONS:
            current.ending = ending
            current.image = content(tar, member) if images else b""
        else:
            current.files[ending] = content(tar, member)
    yield from complete(current, aside)


def complete(sample: Sample | None, aside: Aside) -> Iterator[Sample]:
    """Yield a sample that has an image, and count one that has none."""
    if sample is not None and sample.ending:
        yield sample
    elif sample is not None:
        aside.add("keys without an image", sample.key)


def members(url: str) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
    """Yield the members of a tar as they come. InputError, in one line, if it is damaged."""
    try:
        with storage.opened(url) as file, tarfile.open(fileobj=seekable(file), mode="r:*") as tar:
            number = 0
            while (member := tar.next()) is not None:
                number += 1
                if number > MAX_MEMBERS:
                    raise InputError(f"{url} has more than {MAX_MEMBERS:,} members; cut it into several tars")
                yield member, tar
                tar.members = []  # pyright: ignore[reportAttributeAccessIssue] - it would keep all of them
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        if isinstance(error, MucsError | storage.StoreError | FileNotFoundError):
            raise
        raise InputError(f"{url} is not a readable tar ({(str(error).splitlines() or [''])[0]})") from None


def seekable(file: IO[bytes]) -> IO[bytes]:
    """Return the file itself if one can move in it, and else its content."""
    return file if file.seekable() else io.BytesIO(file.read())


def content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """Read a member, whose size was checked."""
    opened = tar.extractfile(member)
    return opened.read(member.size) if opened is not None else b""


def split_name(name: str) -> tuple[str, str]:
    """Return key and ending: the key ends at the first dot of the last part."""
    folder, _, file = name.rpartition("/")
    stem, dot, ending = file.partition(".")
    return (f"{folder}/{stem}" if folder else stem), f"{dot}{ending}".lower()


def why_not(member: tarfile.TarInfo, ending: str) -> str:
    """Return why a member is not read; "" if it is."""
    if any(is_junk(part) for part in member.name.split("/") if part not in (".", "..")):
        return HIDDEN
    if not member.isreg():
        return "members that are folders, links or devices"
    if ending not in (*ENDINGS, *EXTENSIONS):
        return f"members ending in {ending}, which are never opened" if ending else "members without an ending"
    bound = MAX_IMAGE_BYTES if ending in EXTENSIONS else MAX_TEXT_BYTES
    return f"members above {bound:,} bytes" if member.size > bound else ""
