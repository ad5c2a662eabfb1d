"""The way from a source to a prepared data set: shards first, then rejects.parquet, and card.json last."""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mucs_ray import storage
from mucs_ray.data.sources import Listing, Reject, Task
from mucs_ray.data.sources.registry import load_source
from mucs_ray.data.table import Card, Dataset, Row, Shard, printable, schema, to_parquet, to_table
from mucs_ray.errors import InputError

Execute = Callable[[Callable[[Task], "WrittenShard"], Sequence[Task]], Iterator["WrittenShard"]]


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenShard:
    """A written shard and its rejected images; `shard` is None if none of its images could be used."""

    shard: Shard | None
    rejects: tuple[Reject, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteShard:
    """A function that writes one task's shard; it is small and picklable, so that it runs anywhere in a cluster."""

    source: str
    out: str
    condition_dim: int
    embedding: bool
    rows_per_unit: int

    def __call__(self, task: Task) -> WrittenShard:
        """Decode the task's images and publish the shard."""
        rows: list[Row] = []
        rejects: list[Reject] = []
        for outcome in load_source(self.source).read(task):
            (rows if isinstance(outcome, Row) else rejects).append(outcome)  # pyright: ignore[reportArgumentType]
        if not rows:
            return WrittenShard(shard=None, rejects=tuple(rejects))
        path = f"{task.split}/part-{task.number:05d}.parquet"
        table = to_table(rows, schema(self.condition_dim, embedding=self.embedding, named=True))
        digest = storage.publish(storage.join(self.out, path), to_parquet(table, self.rows_per_unit))
        groups = tuple(min(self.rows_per_unit, len(rows) - at) for at in range(0, len(rows), self.rows_per_unit))
        shard = Shard(path=path, split=task.split, row_groups=groups, sha256=digest)
        return WrittenShard(shard=shard, rejects=tuple(rejects))


def prepare(
    name: str,
    *,
    where: str | None,
    out: str,
    size: int | None,
    rows_per_unit: int | None = None,
    execute: Execute = map,
) -> Dataset:
    """Write the data set and open it; the same request again does nothing.

    `execute` maps over the tasks of large sources; `rows_per_unit` of None means what the source proposes. InputError
    if something else is prepared at `out`, or no image can be used. Images that cannot be used are listed in
    rejects.parquet.
    """
    out = storage.absolute(out)
    where = storage.absolute(where) if where else None
    source = storage.redacted(where) if where else ""
    request = {"name": name, "source": source, "size": str(size or ""), "rows_per_unit": str(rows_per_unit or "")}
    if storage.exists(storage.join(out, "card.json")):
        return opened_if_same(out, request)
    marker = storage.join(out, "preparing.json")
    refuse_foreign_folder(out, marker, request)
    listing = load_source(name).plan(where, size)
    storage.publish_json(marker, request)
    write = WriteShard(
        source=name,
        out=out,
        condition_dim=listing.condition_dim,
        embedding=listing.condition == "embedding",
        rows_per_unit=rows_per_unit or listing.rows_per_unit,
    )
    run = execute if listing.distributed else map
    written = list(run(write, listing.tasks))
    rejects = sorted((reject for part in written for reject in part.rejects), key=lambda reject: reject.idx)
    shards = [part.shard for part in written if part.shard is not None]
    if not any(shard.split == "train" for shard in shards):
        reasons = "; ".join(f"{reject.where}: {reject.reason}" for reject in rejects[:3]) or "there are none"
        raise InputError(f"no training image of {where or name} can be used ({reasons})")
    publish_rejects(out, rejects)
    storage.publish_json(storage.join(out, "card.json"), card(listing, shards, len(rejects), request).to_json())
    storage.remove(marker)
    return Dataset.open(out)


def refuse_foreign_folder(out: str, marker: str, request: dict[str, str]) -> None:
    """Raise InputError if `out` holds anything but the files of an interrupted call of the same request."""
    if not any(True for _ in storage.names(out)):
        return
    if not storage.exists(marker) or storage.read_json(marker) != request:
        raise InputError(f"{out} is not empty and holds no data set of this request; choose another --out")


def opened_if_same(out: str, request: dict[str, str]) -> Dataset:
    """Open the existing data set if it is the requested one; InputError if it is another."""
    dataset = Dataset.open(out)
    if dataset.card.request != request:
        existing = dataset.card.request
        raise InputError(
            f"{out} already holds {existing.get('name')} from {existing.get('source') or 'the package'}"
            f" at size {existing.get('size') or 'default'}; choose another --out, or delete it first"
        )
    return dataset


def publish_rejects(out: str, rejects: Sequence[Reject]) -> None:
    """Publish idx, where and reason of every image that was left out; the file is written even if it is empty."""
    columns = pa.schema([("idx", pa.int64()), ("where", pa.string()), ("reason", pa.string())])
    values: list[dict[str, Any]] = [{"idx": r.idx, "where": printable(r.where), "reason": r.reason} for r in rejects]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(values, schema=columns), buffer)
    storage.publish(storage.join(out, "rejects.parquet"), buffer.getvalue())


def card(listing: Listing, shards: Sequence[Shard], num_rejected: int, request: dict[str, str]) -> Card:
    """Make the card, with the shards in order of idx (their numbers grow from five digits)."""
    in_order = sorted(shards, key=lambda shard: (shard.split == "test", len(shard.path), shard.path))
    return Card(
        name=listing.name,
        source=request["source"] or "embedded",
        licence=listing.licence,
        size=listing.size,
        condition=listing.condition,
        condition_dim=listing.condition_dim,
        classes=listing.classes,
        shards=tuple(in_order),
        num_rejected=num_rejected,
        named=True,
        request=request,
    )
