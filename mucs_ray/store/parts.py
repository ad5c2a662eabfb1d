"""Parts of an attribution as tables: the output of a hook for one unit of the training set, one row for each image."""

import io
from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mucs_ray.data.table import Unit, open_parquet
from mucs_ray.store.run import Stage


def unit_part(stage: Stage, unit: Unit) -> str:
    """Return the file name of a unit's part."""
    return stage.part(unit.name, "parquet")


def part_bytes(idx: np.ndarray, columns: Mapping[str, np.ndarray]) -> bytes:
    """Write a Parquet file with idx and, for each column, numbers or lists of one length, e.g. skew[items]."""
    return table_bytes({"idx": idx, **columns})


def table_bytes(columns: Mapping[str, np.ndarray]) -> bytes:
    """Write a Parquet file with numbers or lists of one length in each column."""
    arrays = {name: pa.array(values) if values.ndim == 1 else fixed_lists(values) for name, values in columns.items()}
    buffer = io.BytesIO()
    pq.write_table(pa.table(arrays), buffer, compression="zstd")
    return buffer.getvalue()


def read_part(content: bytes) -> pa.Table:
    """Read the table that `part_bytes` wrote."""
    return open_parquet(io.BytesIO(content)).read()


def score_schema(num_items: int) -> pa.Schema:
    """Return the columns that all methods' scores have: idx and score[items]."""
    return pa.schema([("idx", pa.int64()), ("score", pa.list_(pa.float32(), num_items))])


def fixed_lists(values: np.ndarray) -> pa.FixedSizeListArray:
    """Convert a matrix to a column of fixed-size lists."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def matrix(table: pa.Table, name: str) -> np.ndarray:
    """Convert a column of numbers, or of lists of one length, to a writable array."""
    column = table[name].combine_chunks()
    values = column.flatten() if pa.types.is_nested(column.type) else column
    array = values.to_numpy(zero_copy_only=False).copy()
    return array.reshape(len(column), -1) if pa.types.is_nested(column.type) else array


def stored_scores(attribution: Stage) -> Iterator[pa.Table]:
    """Yield scores.parquet of a finished attribution, one row group at a time."""
    yield from row_groups(open_parquet(io.BytesIO(attribution.checked("scores.parquet"))))


def row_groups(file: pq.ParquetFile) -> Iterator[pa.Table]:
    """Yield the row groups of a file as tables, one at a time."""
    for number in range(file.num_row_groups):
        yield file.read_row_group(number)
