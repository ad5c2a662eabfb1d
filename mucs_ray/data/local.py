"""Random access to one split, for training and unlearning: a memory-mapped copy on this node, made once.

The copy is one Arrow file: the rows of all units, as the table has them but uncompressed. All processes of a node share
its pages, so memory does not grow with the number of processes or of images.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from uuid import uuid4

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from mucs_ray.data.batch import as_batch, columns_read
from mucs_ray.data.table import Dataset, Split, StoredImages
from mucs_ray.diffusion.batch import Batch
from mucs_ray.spaces.codec import Codec
from mucs_ray.spaces.pixels import PIXELS


def cache_folder() -> Path:
    """$MUCS_RAY_CACHE, else mucs-ray in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mucs-ray"
    return Path(os.environ.get("MUCS_RAY_CACHE") or default)


class LocalImages:
    """A split of a data set, less removed images; `rows` count from 0 without gaps, in order of idx."""

    def __init__(
        self,
        dataset: Dataset,
        split: Split,
        *,
        codec: Codec = PIXELS,
        removed: frozenset[int] = frozenset(),
        on_unit: Callable[[], None] = lambda: None,
    ) -> None:
        """Copy the split to this node if no whole copy is there, and call `on_unit` for each unit that is copied.

        `codec` makes z of the pictures.
        """
        self.card, self.codec = dataset.card, codec
        if dataset.encoded and dataset.encoded.captions:
            codec.learn(dataset.encoded.captions)
        space = f"-{dataset.encoded.tag}" if dataset.encoded else ""
        path = cache_folder() / dataset.card.fingerprint[:32] / f"{split}{space}.arrow"
        try:
            chunks = read_copy(path, dataset, split)
        except (FileNotFoundError, pa.ArrowInvalid):  # the latter if it is torn, or of another version
            write_copy(path, dataset, split, on_unit)
            chunks = read_copy(path, dataset, split)
        self.images = [StoredImages(chunk) for chunk in chunks]
        self.others = [chunk.select(columns_read(self.card, codec, chunk.schema.names)) for chunk in chunks]
        self.starts = np.cumsum([0, *(len(chunk) for chunk in chunks)])
        """The row of the split that each chunk begins with."""
        idx = np.concatenate([images.idx for images in self.images])
        self.kept = np.flatnonzero(~np.isin(idx, list(removed)))

    def __len__(self) -> int:
        """Images that are left after removal."""
        return len(self.kept)

    def batch(self, rows: Int64[np.ndarray, " b"], stream: np.random.Generator | None = None) -> Batch:
        """With a stream: a random crop and caption of each image; without: the centre and the first caption."""
        of_split = self.kept[rows]
        chunks = np.searchsorted(self.starts, of_split, side="right") - 1
        places = list(zip(chunks.tolist(), (of_split - self.starts[chunks]).tolist(), strict=True))
        images = [self.images[chunk][row] for chunk, row in places]
        others = pa.Table.from_batches([self.others[chunk].slice(row, 1) for chunk, row in places])
        return as_batch(images, others, self.card, self.codec, stream)


def read_copy(path: Path, dataset: Dataset, split: Split) -> list[pa.RecordBatch]:
    """The memory-mapped units of a copy. FileNotFoundError if it is absent, ArrowInvalid if it is not a whole one."""
    file = pa.ipc.open_file(pa.memory_map(str(path)))
    if not file.schema.equals(dataset.columns(split), check_metadata=True):
        raise pa.ArrowInvalid(f"{path} has other columns than the data set")
    chunks = [file.get_batch(number) for number in range(file.num_record_batches)]
    if sum(len(chunk) for chunk in chunks) != dataset.card.num_images(split):
        raise pa.ArrowInvalid(f"{path} has another number of images than the data set")
    return chunks


def write_copy(path: Path, dataset: Dataset, split: Split, on_unit: Callable[[], None]) -> None:
    """Stream the split into one Arrow file. Processes that do so at the same time publish the same rows."""
    columns = dataset.columns(split)
    with published(path) as file, pa.ipc.new_file(file, columns) as writer:
        for table in dataset.stream(split, columns.names):
            on_unit()
            writer.write_table(table.cast(columns))


@contextmanager
def published(path: Path) -> Iterator[IO[bytes]]:
    """A file that is written aside and takes its name, in place of what had it, once it is whole and on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        with aside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
