"""How should images lie in Parquet? Raw uint8 under several compressions, PNG, lossless WebP: side by side, in one run.

    python benchmarks/storage.py [FOLDER_OF_CIFAR10] [--images 4096] [--rounds 5]

Each is written in the units of a prepared data set and streamed back, unit by unit, to uint8 arrays. Rates are those
of the fastest round, on one core, from a file in the page cache; the rounds of all candidates take turns.
"""

import argparse
import io
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from mucs_ray.data.sources.registry import load_source
from mucs_ray.data.table import Row

ROWS_PER_UNIT = 256
"""The number of rows per unit that sources propose."""

Decode = Callable[[bytes, tuple[int, ...]], np.ndarray]


def raw(content: bytes, shape: tuple[int, ...]) -> np.ndarray:
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)


def by_pillow(content: bytes, shape: tuple[int, ...]) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content))).transpose(2, 0, 1)


def encoder(kind: str) -> Callable[[np.ndarray], bytes]:
    def encode(image: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(image.transpose(1, 2, 0)).save(buffer, kind, lossless=True)
        return buffer.getvalue()

    return encode


CANDIDATES: dict[str, tuple[Callable[[np.ndarray], bytes], Decode, str]] = {
    "raw, none": (np.ndarray.tobytes, raw, "none"),
    "raw, snappy": (np.ndarray.tobytes, raw, "snappy"),
    "raw, lz4": (np.ndarray.tobytes, raw, "lz4"),
    "raw, zstd": (np.ndarray.tobytes, raw, "zstd"),
    "PNG": (encoder("PNG"), by_pillow, "none"),
    "WebP lossless": (encoder("WEBP"), by_pillow, "none"),
}


def images(source: str, where: str | None, size: int | None, count: int) -> list[np.ndarray]:
    """Return the first training images of a source."""
    reader = load_source(source)
    train = [task for task in reader.plan(where, size).tasks if task.split == "train"]
    rows = (row for task in train for row in reader.read(task) if isinstance(row, Row))
    return [np.ascontiguousarray(row.image) for row in islice(rows, count)]


def write(path: Path, pictures: list[np.ndarray], encode: Callable[[np.ndarray], bytes], compression: str) -> None:
    table = pa.table({"image": pa.array([encode(image) for image in pictures], pa.binary())})
    pq.write_table(table, path, row_group_size=ROWS_PER_UNIT, compression=compression, use_dictionary=False)


def stream(path: Path, decode: Decode, shape: tuple[int, ...]) -> float:
    """Time the reading of every unit into memory as one array."""
    start = time.perf_counter()
    with path.open("rb") as file:
        parquet = pq.ParquetFile(file)
        for number in range(parquet.num_row_groups):
            column = parquet.read_row_group(number, columns=["image"], use_threads=False)["image"]
            np.stack([decode(content, shape) for content in column.to_pylist()])
    return time.perf_counter() - start


def measure(title: str, pictures: list[np.ndarray], folder: Path, rounds: int) -> None:
    shape = pictures[0].shape
    paths: dict[str, Path] = {}
    writing: dict[str, float] = {}
    write(folder / "warm-up.parquet", pictures, np.ndarray.tobytes, "none")
    for name, (encode, decode, compression) in CANDIDATES.items():
        paths[name] = folder / f"{title}-{name}.parquet".replace(" ", "_")
        start = time.perf_counter()
        write(paths[name], pictures, encode, compression)
        writing[name] = time.perf_counter() - start
        first = pq.read_table(paths[name])["image"][0].as_py()
        assert (decode(first, shape) == pictures[0]).all(), f"{name} is not lossless"
    seconds = {name: [] for name in CANDIDATES}
    for _ in range(rounds):
        for name, (_, decode, _) in CANDIDATES.items():
            seconds[name].append(stream(paths[name], decode, shape))
    print(f"\n{title}: {len(pictures):,} images of {shape[1]} x {shape[2]} px, {pictures[0].nbytes:,} bytes raw")
    print(f"{'':16}{'bytes/image':>12}{'read images/s':>15}{'(median)':>12}{'write images/s':>16}")
    for name in CANDIDATES:
        fast, middle = (len(pictures) / value for value in (min(seconds[name]), float(np.median(seconds[name]))))
        size, wrote = paths[name].stat().st_size / len(pictures), len(pictures) / writing[name]
        print(f"{name:16}{size:>12,.0f}{fast:>15,.0f}{middle:>12,.0f}{wrote:>16,.0f}")


def machine() -> str:
    """Describe the processor and the number of cores."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    return f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}, pyarrow {pa.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cifar10", nargs="?", help="folder of CIFAR-10, either layout; without it only emoji")
    parser.add_argument("--images", type=int, default=4096, help="of each set, at most")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    pa.set_cpu_count(1)
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        if options.cifar10:
            measure("CIFAR-10", images("cifar10", options.cifar10, None, options.images), Path(folder), options.rounds)
        for size in (16, 64):
            pictures = images("emoji", None, size, options.images)
            measure(f"emoji {size} px", pictures, Path(folder), options.rounds)


if __name__ == "__main__":
    sys.exit(main())
