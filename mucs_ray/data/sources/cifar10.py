"""CIFAR-10 as its authors publish it, in the binary or the pickled layout: 32 px, class = label, text = class name.

Some of the batches are enough; idx counts the images of those that exist. The pickled files are read without running
anything they name: of all that pickle can call, only stand-ins for an array of bytes exist.
"""

import io
import pickle
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any, NoReturn, TypeVar

import numpy as np
from jaxtyping import UInt8

from mucs_ray import storage
from mucs_ray.data.sources import Listing, Reject, Task
from mucs_ray.data.sources.cutting import tasks_of
from mucs_ray.data.table import Row
from mucs_ray.data.understood import Understood
from mucs_ray.errors import InputError

K = TypeVar("K")
SIZE = 32
PIXEL_BYTES = 3 * SIZE * SIZE
PER_BATCH = 10_000
NUM_CLASSES = 10
TRAIN_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
TEST_BATCH = "test_batch"
LAYOUTS = (("cifar-10-batches-bin", ".bin", "batches.meta.txt"), ("cifar-10-batches-py", "", "batches.meta"))
"""For each layout: the folder that the archive unpacks to, the ending of its batches' names, and the file of class
names.
"""


def plan(where: str | None, size: int | None) -> Listing:
    """List the batches in the folder `where`, or in the archive's folder inside it.

    InputError, which says what is expected, if there are none.
    """
    if size not in (None, SIZE):
        raise InputError(f"cifar10 has {SIZE} px; it is not available at {size} px")
    batches, meta = find(where)
    classes = class_names(meta)
    train = [(url, row) for name, url in batches.items() if name != TEST_BATCH for row in range(PER_BATCH)]
    test = [(url, row) for name, url in batches.items() if name == TEST_BATCH for row in range(PER_BATCH)]
    return Listing(
        name="cifar10",
        licence="none stated by its author (A. Krizhevsky 2009); cite the technical report",
        size=SIZE,
        condition="label",
        condition_dim=NUM_CLASSES,
        classes=classes,
        tasks=tasks_of(train, test, extra=classes),
        understood=Understood(
            splits={
                "train": f"{len(train) // PER_BATCH} of its {len(TRAIN_BATCHES)} batches",
                "test": "the test batch" if test else "",
            },
            labels="its batches",
            captions="the class",
        ),
    )


def read(task: Task) -> Iterator[Row | Reject]:
    """Read the images of one shard; each batch that it needs is read once."""
    idx, entries, classes = task.payload
    for url, group in groupby(entries, key=lambda entry: entry[0]):
        labels, images = load(url)
        for _, row in group:
            label = int(labels[row])
            batch = url.rsplit("/", 1)[-1].removesuffix(".bin")
            yield Row(idx=idx, image=images[row], label=label, text=(classes[label],), name=f"{batch}:{row}")
            idx += 1


def find(where: str | None) -> tuple[dict[str, str], str]:
    """Return the URLs of the batches by name, train first, and of the file of class names."""
    expected = " or ".join(
        f"{TRAIN_BATCHES[0]}{ending} .. {TRAIN_BATCHES[-1]}{ending} (at least one), {TEST_BATCH}{ending} and {meta}"
        for _, ending, meta in LAYOUTS
    )
    if where is None:
        raise InputError(f"cifar10 needs --source, a folder with {expected}")
    where = storage.absolute(where)
    for folder, ending, meta in LAYOUTS:
        for root in (where, storage.join(where, folder)):
            files = set(storage.names(root))
            names = [name for name in (*TRAIN_BATCHES, TEST_BATCH) if name + ending in files]
            if meta in files and any(name in TRAIN_BATCHES for name in names):
                return {name: storage.join(root, name + ending) for name in names}, storage.join(root, meta)
    folders = " or ".join(folder for folder, _, _ in LAYOUTS)
    raise InputError(f"no CIFAR-10 in {where} or in its folder {folders}; expected {expected}")


def class_names(meta: str) -> tuple[str, ...]:
    """Read the ten names in the file `meta`."""
    content = read_file(meta)
    if meta.endswith(".txt"):
        names = content.decode("utf-8", "replace").split()
    else:
        names = [text(name) for name in field(unpickle(content, meta), "label_names", list, meta)]
    if len(names) != NUM_CLASSES:
        raise InputError(f"{meta} names {len(names)} classes, expected {NUM_CLASSES}")
    return tuple(names)


def load(url: str) -> tuple[UInt8[np.ndarray, " b"], UInt8[np.ndarray, "b 3 32 32"]]:
    """Read labels and images of one batch."""
    content = read_file(url)
    if url.endswith(".bin"):
        expected = PER_BATCH * (1 + PIXEL_BYTES)
        if len(content) != expected:
            raise InputError(f"{url} has {len(content):,} bytes, expected {expected:,}; unpack CIFAR-10 again")
        records = np.frombuffer(content, dtype=np.uint8).reshape(PER_BATCH, 1 + PIXEL_BYTES)
        labels, pixels = records[:, 0], records[:, 1:]
    else:
        record = unpickle(content, url)
        values, data = field(record, "labels", list, url), field(record, "data", Array, url).content
        if len(data) != PER_BATCH * PIXEL_BYTES or len(values) != PER_BATCH:
            sizes = f"{len(data):,} bytes of pixels and {len(values):,} labels"
            raise InputError(f"{url} has {sizes}, expected {PER_BATCH * PIXEL_BYTES:,} and {PER_BATCH:,}")
        whole = (isinstance(label, int) and 0 <= label <= 255 for label in values)
        labels = np.array(values if all(whole) else [NUM_CLASSES], dtype=np.uint8)
        pixels = np.frombuffer(data, dtype=np.uint8)
    if labels.max() >= NUM_CLASSES:
        raise InputError(f"{url} has labels other than 0 .. {NUM_CLASSES - 1}; unpack CIFAR-10 again")
    return labels, pixels.reshape(PER_BATCH, 3, SIZE, SIZE)


def read_file(url: str) -> bytes:
    """Read the whole file; InputError in one line if that fails."""
    try:
        return storage.read_bytes(url)
    except OSError as error:
        raise InputError(f"{url} cannot be read ({error.strerror or error}); unpack CIFAR-10 again") from None


class Array:
    """A stand-in for numpy.ndarray in unpickling; it keeps the bytes of an array of uint8 and does nothing else."""

    content: bytes = b""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Take (version, shape, dtype, Fortran order, bytes)."""
        _, _, dtype, fortran, content = state
        if not isinstance(dtype, DType) or text(dtype.code) != "u1" or fortran or not isinstance(content, bytes):
            raise pickle.UnpicklingError("an array that is not of uint8 in C order")
        self.content = content


class DType:
    """A stand-in for numpy.dtype, which keeps its code, such as "u1"."""

    def __init__(self, code: str | bytes, *_: object) -> None:
        """Keep the code."""
        self.code = code

    def __setstate__(self, state: object) -> None:
        """Ignore the byte order and the like, which mean nothing for single bytes."""


def reconstruct(*_: object) -> Array:
    """Stand in for numpy's function of this name; __setstate__ brings the content."""
    return Array()


def encode(characters: str, encoding: str) -> bytes:
    """Stand in for _codecs.encode, by which Python 3 writes bytes in protocol 2."""
    if text(encoding) != "latin1":
        raise pickle.UnpicklingError(f"text in {encoding!r}")
    return characters.encode("latin1")


STAND_INS: dict[str, Callable[..., object]] = {
    "numpy.ndarray": Array,
    "numpy.dtype": DType,
    "numpy.core.multiarray._reconstruct": reconstruct,
    "numpy._core.multiarray._reconstruct": reconstruct,
    "_codecs.encode": encode,
}


class Unpickler(pickle.Unpickler):
    """An unpickler that knows no callable but the stand-ins, and imports nothing."""

    def find_class(self, module_name: str, global_name: str, /) -> object:
        """Return the stand-in of this name; refuse a name that has none."""
        name = f"{module_name}.{global_name}"
        if name not in STAND_INS:
            raise pickle.UnpicklingError(f"it asks for {name}, which no CIFAR-10 file needs")
        return STAND_INS[name]

    def persistent_load(self, pid: object, /) -> NoReturn:
        """Refuse every persistent id."""
        raise pickle.UnpicklingError("it refers to something outside itself")


def unpickle(content: bytes, url: str) -> dict[str, Any]:
    """Return the mapping in a pickled file, its keys as str. InputError, in one line, for anything else."""
    try:
        mapping = Unpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a broken pickle can raise nearly anything
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise InputError(f"{url} is refused: {reason}") from None
    if not isinstance(mapping, dict):
        raise InputError(f"{url} is not a pickled CIFAR-10 file (it holds a {type(mapping).__name__})")
    return {text(key): value for key, value in mapping.items()}


def field(record: dict[str, Any], name: str, kind: type[K], url: str) -> K:
    """Return one value of a pickled file; InputError if it is not of type `kind`."""
    value = record.get(name)
    if not isinstance(value, kind):
        raise InputError(f"{url} is not a pickled CIFAR-10 file (its {name!r} is absent or of another type)")
    return value


def text(value: object) -> str:
    """Decode a str of Python 2, which arrives as bytes."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
