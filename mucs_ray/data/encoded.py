"""A training set that was encoded once: z of each image in a part for each unit, and the tensors of unique captions.

    <folder>/<unit>.<tag>.parquet        idx int64 | z list<float32>
    <folder>/captions.<tag>.safetensors  what text encoders make of each caption, under its sha256

The stage that writes them is in the run directory (mucs_ray.run.stages.encode). Who reads a unit gets z as a column.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32, Int64

from mucs_ray import storage
from mucs_ray.errors import InputError

Z = "z"
"""The column of latents."""
CAPTIONS = "captions"
"""The name of the table of captions, without its tag and its ending."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """Where the encoded training set is."""

    folder: str
    tag: str
    """The tag in the names of the parts."""
    digests: Mapping[str, str]
    """The sha256 of each part, by its file's name."""

    def part(self, unit: str) -> tuple[str, str]:
        """Return the URL and the sha256 of a unit's part."""
        file = f"{unit}.{self.tag}.parquet"
        return storage.join(self.folder, file), self.digests[file]

    @property
    def captions(self) -> str | None:
        """The URL of the table of captions; None if there is none."""
        file = f"{CAPTIONS}.{self.tag}.safetensors"
        return storage.join(self.folder, file) if file in self.digests else None


def to_part(idx: Int64[np.ndarray, " b"], z: Float32[np.ndarray, "b d"]) -> bytes:
    """Write a unit's part."""
    latents = pa.FixedSizeListArray.from_arrays(pa.array(z.reshape(-1)), z.shape[1])
    buffer = io.BytesIO()
    pq.write_table(pa.table({"idx": pa.array(idx), Z: latents}), buffer, compression="zstd")
    return buffer.getvalue()


def with_z(table: pa.Table, part: tuple[str, str]) -> pa.Table:
    """Return a unit's rows with the column of z. InputError if its part is not what was written."""
    url, digest = part
    again = "delete the folder, and run the command again"
    try:
        content = storage.read_bytes(url)
    except FileNotFoundError:
        raise InputError(f"{url} is in the manifest but absent; {again}") from None
    if sha256(content).hexdigest() != digest:
        raise InputError(f"{url} is corrupt: its sha256 differs from the manifest's; {again}")
    encoded = pq.read_table(io.BytesIO(content))
    if encoded["idx"].to_pylist() != table["idx"].to_pylist():
        raise InputError(f"{url} was encoded from another data set; {again}")
    return table.append_column(Z, encoded[Z])


def latents(table: pa.Table, shape: tuple[int, ...]) -> Float32[np.ndarray, "b *shape"]:
    """Return z of a table's rows, in this shape."""
    column = table[Z].combine_chunks()
    column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(table), *shape).copy()
