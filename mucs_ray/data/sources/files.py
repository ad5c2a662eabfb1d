"""What the sources of image files share: cutting a listing into shards, holding out a tenth, reading files one by one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from mucs_ray.data.caption_embedding import with_embeddings
from mucs_ray.data.decode import DecodeError, decode
from mucs_ray.data.sources import Reject, Task
from mucs_ray.data.table import Row, Split
from mucs_ray.errors import InputError

ROWS_PER_SHARD = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One image file of a listing; `path` is relative to the listing's root."""

    path: str
    label: int | None = None
    text: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """A task's payload: consecutive entries, numbered from `first_idx`."""

    root: str
    size: int
    first_idx: int
    entries: tuple[Entry, ...]
    weights: str | None = None
    """The text encoder's file; None = captions are not embedded."""


def held_out(key: str) -> bool:
    """True for a fixed tenth of all keys: the same one on every machine, for life."""
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "little") % 10 == 0


def split_by_hash(entries: Sequence[Entry]) -> dict[Split, list[Entry]]:
    """Train and test, for a source without a test split of its own."""
    test = [held_out(entry.path) for entry in entries]
    return {
        "train": [entry for entry, held in zip(entries, test, strict=True) if not held],
        "test": [entry for entry, held in zip(entries, test, strict=True) if held],
    }


def cut(num_rows: int) -> Iterator[tuple[int, slice]]:
    """Number and rows of each shard of a split."""
    for number, start in enumerate(range(0, num_rows, ROWS_PER_SHARD)):
        yield number, slice(start, min(start + ROWS_PER_SHARD, num_rows))


def file_tasks(
    splits: dict[Split, list[Entry]], *, root: str, size: int, weights: str | None = None
) -> tuple[Task, ...]:
    """The shards of a listing of files: idx counts train first, then test."""
    tasks, first_idx = [], 0
    for split in ("train", "test"):
        entries = splits[split]
        for number, rows in cut(len(entries)):
            payload = Files(
                root=root, size=size, first_idx=first_idx + rows.start, entries=tuple(entries[rows]), weights=weights
            )
            tasks.append(Task(split=split, number=number, payload=payload))
        first_idx += len(entries)
    return tuple(tasks)


def read_files(task: Task) -> Iterator[Row | Reject]:
    """Decode a task of `file_tasks`; a file that is absent, unreadable or outside the root is a Reject."""
    work: Files = task.payload
    rows = read_entries(work)
    return rows if work.weights is None else with_embeddings(rows, work.weights)


def read_entries(work: Files) -> Iterator[Row | Reject]:
    """The images, without embeddings."""
    root = Path(work.root).resolve()
    for idx, entry in enumerate(work.entries, start=work.first_idx):
        try:
            path = (root / entry.path).resolve()
            if not path.is_relative_to(root):
                raise DecodeError("leads outside the folder")
            image = decode(path.read_bytes(), size=work.size)
        except DecodeError as error:
            yield Reject(idx=idx, where=entry.path, reason=str(error))
        except (OSError, RuntimeError, ValueError) as error:  # resolve() raises RuntimeError on a loop of links
            reason = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read: {error}"
            yield Reject(idx=idx, where=entry.path, reason=reason)
        else:
            yield Row(idx=idx, image=image, label=entry.label, text=entry.text)


def folder_at(where: str | None, expected: str) -> Path:
    """`where` as an existing local folder; `expected` says what should be in it."""
    if where is None:
        raise InputError(f"this source needs --source FOLDER: a folder with {expected}")
    folder = Path(where.removeprefix("file://"))
    if not folder.is_dir():
        raise InputError(f"no folder at {where}; expected a folder with {expected}")
    return folder.absolute()
