"""The units of the training set are read for a pass in tasks of their own, which run ahead of the scorers.

Nothing here imports torch, because a reader would take longer to import it than to read most units.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from mucs_ray.data.table import Unit, read_unit
from mucs_ray.engine.attempts import AttemptTracker
from mucs_ray.engine.coordinator import Coordinator, last_line
from mucs_ray.errors import MucsError
from mucs_ray.store.parts import read_part, unit_part
from mucs_ray.store.run import Stage

UNIT_COLUMN = "mucs_ray_unit"
"""The column that carries the name of the unit."""
SEPARATOR = ":"
"""This separates the source of a column from its name there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """A reader says what one stage of a pass needs to have read."""

    source: str
    """The name of what the stage streams: the training images, or features that an earlier stage made of them."""
    features: Stage | None
    """The stage whose parts are read in place of images."""
    timeout: float
    """Seconds after which a source that does not answer is given up."""
    coordinator: Coordinator
    units: frozenset[str]
    """The names of the units that the stage has no part of yet."""


def read_units(names: pa.Table, units: Mapping[str, Unit], readers: Sequence[Reader]) -> pa.Table:
    """Read a unit's rows from every source that a stage of the pass needs, with the unit's name as a column.

    A source that cannot be read has no columns in the table, and the coordinators of its stages record why.
    """
    unit = units[names["item"][0].as_py()]
    table = pa.table({UNIT_COLUMN: [unit.name] * unit.rows})
    by_source: dict[str, list[Reader]] = {}
    for reader in readers:
        if unit.name in reader.units:
            by_source.setdefault(reader.source, []).append(reader)
    for source, stage_readers in by_source.items():
        try:
            table = with_source(
                table, source, with_timeout(stage_readers[0].timeout, read_rows, stage_readers[0].features, unit)
            )
        except Exception as error:
            mucs_error = error if isinstance(error, MucsError) else None
            for reader in stage_readers:
                cause = str(mucs_error or f"it could not be read: {last_line(error)}")
                reader.coordinator.call(AttemptTracker.record_error, unit.name, cause, mucs_error)
    return table


def read_rows(features: Stage | None, unit: Unit) -> pa.Table:
    """Return the images of a unit, or what a stage of features has made of them."""
    return read_unit(unit) if features is None else read_part(features.checked(unit_part(features, unit)))


def with_source(table: pa.Table, source: str, rows: pa.Table) -> pa.Table:
    """Return the table with the columns of `rows` beside those of other sources."""
    for name in rows.column_names:
        table = table.append_column(f"{source}{SEPARATOR}{name}", rows[name])
    return table


def with_timeout(seconds: float, function: Callable[..., pa.Table], *arguments: Any) -> pa.Table:  # noqa: ANN401
    """Return function(*arguments), or raise TimeoutError.

    A file system that hangs cannot be interrupted, so its call is left behind in a thread.
    """
    result = Future[pa.Table]()

    def run() -> None:
        try:
            result.set_result(function(*arguments))
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return result.result(timeout=seconds)
    except TimeoutError as error:
        raise error if result.done() else TimeoutError(f"no answer for {seconds:g} s") from None
