"""Parts of an attribution as tables: what a hook made of one unit of the training set, a row an image."""

import io
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mucs_ray.data.table import Unit, open_parquet
from mucs_ray.store.run import Stage


def unit_part(stage: Stage, unit: Unit) -> str:
    """File name of a unit's part."""
    return stage.part(unit.name, "parquet")


def part_bytes(idx: np.ndarray, columns: Mapping[str, np.ndarray]) -> bytes:
    """Parquet: idx, and each column as numbers or as lists of one length, e.g. skew[items]."""
    arrays = {name: pa.array(each) if each.ndim == 1 else fixed_lists(each) for name, each in columns.items()}
    buffer = io.BytesIO()
    pq.write_table(pa.table({"idx": pa.array(idx), **arrays}), buffer, compression="zstd")
    return buffer.getvalue()


def read_part(content: bytes) -> pa.Table:
    """The table that `part_bytes` wrote."""
    return open_parquet(io.BytesIO(content)).read()


def score_schema(num_items: int) -> pa.Schema:
    """The columns that everyone reads: idx, score[items]."""
    return pa.schema([("idx", pa.int64()), ("score", pa.list_(pa.float32(), num_items))])


def fixed_lists(values: np.ndarray) -> pa.FixedSizeListArray:
    """A matrix as a column of fixed-size lists."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def matrix(table: pa.Table, name: str) -> np.ndarray:
    """A column of numbers, or of lists of one length, as an array that can be written to."""
    column = table[name].combine_chunks()
    values = column.flatten() if pa.types.is_nested(column.type) else column
    array = values.to_numpy(zero_copy_only=False).copy()
    return array.reshape(len(column), -1) if pa.types.is_nested(column.type) else array
