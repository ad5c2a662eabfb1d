"""From a source to a prepared data set: shards first, rejects.parquet, and card.json last."""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mucs_ray import storage
from mucs_ray.data.sources import Listing, Reject, Task
from mucs_ray.data.sources.registry import load_source
from mucs_ray.data.table import Card, Dataset, Row, Shard, schema, to_parquet, to_table
from mucs_ray.errors import InputError

Execute = Callable[[Callable[[Task], "Receipt"], Sequence[Task]], Iterator["Receipt"]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What a written shard came to; `shard` is None if none of its images could be used."""

    shard: Shard | None
    rejects: tuple[Reject, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteShard:
    """Writes one task's shard; small and picklable, so that it runs anywhere in a cluster."""

    source: str
    out: str
    condition_dim: int
    embedding: bool
    rows_per_unit: int

    def __call__(self, task: Task) -> Receipt:
        """Decode and publish."""
        rows: list[Row] = []
        rejects: list[Reject] = []
        for each in load_source(self.source).read(task):
            (rows if isinstance(each, Row) else rejects).append(each)  # pyright: ignore[reportArgumentType]
        if not rows:
            return Receipt(shard=None, rejects=tuple(rejects))
        path = f"{task.split}/part-{task.number:05d}.parquet"
        table = to_table(rows, schema(self.condition_dim, embedding=self.embedding))
        digest = storage.publish(storage.join(self.out, path), to_parquet(table, self.rows_per_unit))
        groups = tuple(min(self.rows_per_unit, len(rows) - at) for at in range(0, len(rows), self.rows_per_unit))
        shard = Shard(path=path, split=task.split, row_groups=groups, sha256=digest)
        return Receipt(shard=shard, rejects=tuple(rejects))


def prepare(
    name: str,
    *,
    where: str | None,
    out: str,
    size: int | None,
    rows_per_unit: int | None = None,
    execute: Execute = map,
) -> Dataset:
    """Write the data set and open it. The same request again does nothing; `execute` maps over large sources' tasks;
    `rows_per_unit` None = as the source proposes.

    InputError if something else is prepared at `out`, or no image can be used. Images that cannot be are listed in
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
    receipts = list(run(write, listing.tasks))
    rejects = sorted((each for receipt in receipts for each in receipt.rejects), key=lambda each: each.idx)
    shards = [receipt.shard for receipt in receipts if receipt.shard is not None]
    if not any(shard.split == "train" for shard in shards):
        told = "; ".join(f"{each.where}: {each.reason}" for each in rejects[:3]) or "there are none"
        raise InputError(f"no training image of {where or name} can be used ({told})")
    publish_rejects(out, rejects)
    storage.publish_json(storage.join(out, "card.json"), card(listing, shards, len(rejects), request).to_json())
    storage.remove(marker)
    return Dataset.open(out)


def refuse_foreign_folder(out: str, marker: str, request: dict[str, str]) -> None:
    """InputError if `out` holds anything but what an interrupted call of the same request left there."""
    if not any(True for _ in storage.names(out)):
        return
    if not storage.exists(marker) or storage.read_json(marker) != request:
        raise InputError(f"{out} is not empty and holds no data set of this request; choose another --out")


def opened_if_same(out: str, request: dict[str, str]) -> Dataset:
    """The data set that is there, if it is what is asked for."""
    dataset = Dataset.open(out)
    if dataset.card.request != request:
        there = dataset.card.request
        raise InputError(
            f"{out} already holds {there.get('name')} from {there.get('source') or 'the package'}"
            f" at size {there.get('size') or 'default'}; choose another --out, or delete it first"
        )
    return dataset


def publish_rejects(out: str, rejects: Sequence[Reject]) -> None:
    """idx, where, reason of every image that was left out; written even if there is none."""
    columns = pa.schema([("idx", pa.int64()), ("where", pa.string()), ("reason", pa.string())])
    values: list[dict[str, Any]] = [{"idx": r.idx, "where": r.where, "reason": r.reason} for r in rejects]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(values, schema=columns), buffer)
    storage.publish(storage.join(out, "rejects.parquet"), buffer.getvalue())


def card(listing: Listing, shards: Sequence[Shard], num_rejected: int, request: dict[str, str]) -> Card:
    """The card, with the shards in order of idx (their numbers grow from five digits)."""
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
        request=request,
    )
