"""CIFAR-10 as its authors publish it: the binary layout (data_batch_1.bin ...) or the pickled one (data_batch_1 ...).

A set with fewer training batches is fine: what is there is used.
"""

import io
import pickle  # read through Restricted below, which can build arrays and nothing else
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from mucs_ray.data.decode import to_array
from mucs_ray.data.sources import Listing, Reject, Task
from mucs_ray.data.sources.files import cut, folder_at
from mucs_ray.data.table import Row, Split
from mucs_ray.errors import InputError

PIXELS = 3 * 32 * 32
FOLDERS = (".", "cifar-10-batches-bin", "cifar-10-batches-py")
ARRAY_PARTS = {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")} | {
    (f"numpy.{core}.{module}", part)
    for core in ("core", "_core")
    for module, part in (("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer"))
}


def plan(where: str | None, size: int | None) -> Listing:
    """CIFAR-10 at `size` px (default 32: as it is). InputError if `where` holds neither layout, or a damaged file."""
    size = size or 32
    folder = find_batches(folder_at(where, "data_batch_1.bin ... or data_batch_1 ..."))
    suffix = ".bin" if (folder / "data_batch_1.bin").is_file() else ""
    names = [f"data_batch_{number}{suffix}" for number in range(1, 6)]
    files: dict[Split, list[Path]] = {
        "train": [folder / name for name in names if (folder / name).is_file()],
        "test": [path for path in [folder / f"test_batch{suffix}"] if path.is_file()],
    }
    classes = read_classes(folder)
    tasks, first_idx = [], 0
    for split, paths in files.items():
        rows = [(str(path), row) for path in paths for row in range(len(read_batch(path)[1]))]
        for number, part in cut(len(rows)):
            payload = (size, first_idx + part.start, pieces(rows[part]))
            tasks.append(Task(split=split, number=number, payload=payload))
        first_idx += len(rows)
    return Listing(
        name="cifar10",
        licence="none stated by its author (A. Krizhevsky 2009); cite the technical report",
        size=size,
        condition="label",
        condition_dim=len(classes),
        classes=classes,
        tasks=tuple(tasks),
    )


def read(task: Task) -> Iterator[Row | Reject]:
    """The images of some rows of some batches; text = the class's name."""
    size, idx, parts = task.payload
    classes = read_classes(Path(parts[0][0]).parent)
    for name, start, stop in parts:
        images, labels = read_batch(Path(name))
        for row in range(start, stop):
            image, label = images[row], int(labels[row])
            if label >= len(classes):
                yield Reject(idx=idx, where=f"{name} row {row}", reason=f"label {label} of {len(classes)} classes")
            else:
                picture = image if size == 32 else to_array(Image.fromarray(image.transpose(1, 2, 0)), size)
                yield Row(idx=idx, image=picture, label=label, text=(classes[label],))
            idx += 1


def find_batches(root: Path) -> Path:
    """The folder that holds data_batch_1: `root` itself or the folder of the official archive in it."""
    for name in FOLDERS:
        if any((root / name / f"data_batch_1{suffix}").is_file() for suffix in (".bin", "")):
            return root / name
    raise InputError(f"no data_batch_1.bin or data_batch_1 in {root} or in the folder of the official archive there")


def pieces(rows: list[tuple[str, int]]) -> list[tuple[str, int, int]]:
    """Consecutive rows as (file, start, stop)."""
    found: list[tuple[str, int, int]] = []
    for name, row in rows:
        if found and found[-1][0] == name:
            found[-1] = (name, found[-1][1], row + 1)
        else:
            found.append((name, row, row + 1))
    return found


def read_batch(path: Path) -> tuple[UInt8[np.ndarray, "b 3 32 32"], UInt8[np.ndarray, " b"]]:
    """One file of either layout: images and labels. InputError if it is damaged."""
    content = read_file(path)
    if path.suffix == ".bin":
        if not content or len(content) % (1 + PIXELS):
            raise InputError(f"{path} has {len(content)} bytes, not a multiple of {1 + PIXELS}; unpack CIFAR-10 again")
        records = np.frombuffer(content, dtype=np.uint8).reshape(-1, 1 + PIXELS)
        return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0]
    record = read_pickle(path, content)
    data, labels = np.asarray(field(path, record, "data")), field(path, record, "labels")
    if data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != PIXELS or len(labels) != len(data):
        raise InputError(f"{path} is not a CIFAR-10 batch: expected uint8 rows of {PIXELS} values and as many labels")
    if not all(isinstance(label, int) and 0 <= label < 256 for label in labels):
        raise InputError(f"{path} is not a CIFAR-10 batch: its labels are not small whole numbers")
    return data.reshape(-1, 3, 32, 32), np.array(labels, dtype=np.uint8)


def read_classes(folder: Path) -> tuple[str, ...]:
    """The class names, from batches.meta.txt or batches.meta."""
    text = folder / "batches.meta.txt"
    if text.is_file():
        return tuple(line.strip() for line in read_file(text).decode("utf-8", "replace").splitlines() if line.strip())
    path = folder / "batches.meta"
    names = field(path, read_pickle(path, read_file(path)), "label_names")
    return tuple(name.decode() if isinstance(name, bytes) else str(name) for name in names)


def read_file(path: Path) -> bytes:
    """The whole file; InputError in one line."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); unpack CIFAR-10 again") from None


def field(path: Path, record: dict[Any, Any], name: str) -> Any:
    """A field of a pickled record, whichever Python wrote it."""
    for key in (name.encode(), name):
        if key in record and isinstance(record[key], (list, np.ndarray)):
            return record[key]
    raise InputError(f"{path} has no field {name!r}; expected the pickled layout of CIFAR-10")


class Restricted(pickle.Unpickler):
    """Builds numbers, strings, lists, dicts and numpy arrays; refuses every other name."""

    def find_class(self, module: str, name: str) -> Any:
        """Only the parts of a numpy array."""
        if (module, name) not in ARRAY_PARTS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR-10 file needs")
        return super().find_class(module, name)


def read_pickle(path: Path, content: bytes) -> dict[Any, Any]:
    """A pickled record of the official layout; InputError if it is damaged or asks for code."""
    try:
        record = Restricted(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a damaged pickle can raise almost anything
        reason = (str(error).splitlines() or [""])[0][:200]
        raise InputError(f"{path} is refused: {reason or type(error).__name__}") from None
    if not isinstance(record, dict):
        raise InputError(f"{path} is not a CIFAR-10 file: expected a pickled dict")
    return record
