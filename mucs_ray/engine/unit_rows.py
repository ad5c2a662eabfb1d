"""The rows of a unit travel through a pass as one Arrow table with the columns of every source that is read."""

import pyarrow as pa
import torch

from mucs_ray.attribution.base import Columns
from mucs_ray.diffusion.batch import Batch
from mucs_ray.engine.attributors import AttributeJob, to_rows
from mucs_ray.engine.reading import SEPARATOR


class Rows:
    """These are the rows of a unit as they were read, and, once a method has asked for them, as methods take them."""

    def __init__(self, table: pa.Table) -> None:
        """Keep the table as it was read."""
        self.table = table
        self.on_device: Batch | Columns | None = None

    def to(self, job: AttributeJob, device: torch.device) -> Batch | Columns:
        """Return the rows decoded and on the device. All callers get the same object, so nobody may change it."""
        if self.on_device is None:
            self.on_device = to_rows(job, self.table, device)
        return self.on_device


def rows_by_source(table: pa.Table) -> dict[str, Rows]:
    """Take apart what `with_source` put together, and return the rows by source."""
    columns: dict[str, dict[str, pa.ChunkedArray]] = {}
    for full in table.column_names:
        source, separator, name = full.partition(SEPARATOR)
        if separator:
            columns.setdefault(source, {})[name] = table[full]
    return {source: Rows(pa.table(source_columns)) for source, source_columns in columns.items()}
