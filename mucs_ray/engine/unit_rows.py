"""The rows of a unit on their way through a pass: one Arrow table with the columns of every source that is read."""

import pyarrow as pa
import torch

from mucs_ray.attribution.base import Columns
from mucs_ray.diffusion.batch import Batch
from mucs_ray.engine.attributors import AttributeJob, to_rows
from mucs_ray.engine.reading import SEPARATOR


class Rows:
    """The rows of a unit as they were read, and as methods take them once the first has asked."""

    def __init__(self, table: pa.Table) -> None:
        """As they were read."""
        self.table = table
        self.on_device: Batch | Columns | None = None

    def to(self, job: AttributeJob, device: torch.device) -> Batch | Columns:
        """Decoded and on the device; the same object for all who ask, so nobody may change it."""
        if self.on_device is None:
            self.on_device = to_rows(job, self.table, device)
        return self.on_device


def rows_by_source(table: pa.Table) -> dict[str, Rows]:
    """What `with_source` put together, by source."""
    columns: dict[str, dict[str, pa.ChunkedArray]] = {}
    for full in table.column_names:
        source, separator, name = full.partition(SEPARATOR)
        if separator:
            columns.setdefault(source, {})[name] = table[full]
    return {source: Rows(pa.table(each)) for source, each in columns.items()}
