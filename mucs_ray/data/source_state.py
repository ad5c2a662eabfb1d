"""What a source looked like when it was prepared: the size and the time of each file, to tell changes."""

import io
from collections.abc import Mapping
from datetime import datetime

import pyarrow as pa
import pyarrow.parquet as pq

from mucs_ray import storage
from mucs_ray.data.table import open_parquet, printable

FILE = "source.parquet"
COLUMNS = pa.schema([("path", pa.string()), ("bytes", pa.int64()), ("modified", pa.string())])
State = Mapping[str, tuple[int, str]]


def state_of(where: str, *, without: str) -> State:
    """Return size and time of each file at `where`, but of those under `without`; {} if the source is not there."""
    fs, root = storage.filesystem(where)
    own = storage.filesystem(without)[1].rstrip("/") + "/"
    with storage.own_errors(where):
        found = fs.find(root, detail=True)
    assert isinstance(found, dict)
    return {
        printable(path.removeprefix(root).lstrip("/")): (int(facts.get("size") or 0), time_of(facts))
        for path, facts in found.items()
        if not path.startswith(own)
    }


def time_of(facts: Mapping[str, object]) -> str:
    """Return when a file was changed as its store says it, or what else tells one version from another."""
    for key in ("ETag", "etag", "mtime", "LastModified", "updated", "last_modified", "created"):
        if value := facts.get(key):
            return value.isoformat() if isinstance(value, datetime) else str(value)
    return ""


def to_parquet(state: State) -> bytes:
    """Encode a state."""
    buffer = io.BytesIO()
    rows = [{"path": path, "bytes": size, "modified": time} for path, (size, time) in sorted(state.items())]
    pq.write_table(pa.Table.from_pylist(rows, schema=COLUMNS), buffer, compression="zstd")
    return buffer.getvalue()


def changes(before: bytes, now: State) -> str:
    """Write how the files differ from those of an earlier state; "" if they do not."""
    table = open_parquet(io.BytesIO(before)).read().to_pylist()
    old = {row["path"]: (row["bytes"], row["modified"]) for row in table}
    kinds = {
        "new": sorted(now.keys() - old.keys()),
        "gone": sorted(old.keys() - now.keys()),
        "changed": sorted(path for path in now.keys() & old.keys() if now[path] != old[path]),
    }
    return ", ".join(f"{len(paths):,} {kind} ({paths[0]})" for kind, paths in kinds.items() if paths)
