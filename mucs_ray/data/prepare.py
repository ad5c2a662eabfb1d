"""The way from a source to a prepared data set: shards first, then rejects.parquet, and card.json last."""

import io
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from mucs_ray import storage
from mucs_ray.data.source_state import FILE as STATE_FILE
from mucs_ray.data.source_state import State, changes, state_of
from mucs_ray.data.source_state import to_parquet as state_bytes
from mucs_ray.data.sources import Choices, ChoosingSource, Listing, Reject, Task
from mucs_ray.data.sources.registry import load_source
from mucs_ray.data.table import OWN_COLUMNS, Card, Dataset, Row, Shard, printable, schema, to_parquet, to_table
from mucs_ray.data.understood import Counts, summary
from mucs_ray.errors import InputError, MucsError

SPLITS = ("train", "test")
MARKER = "preparing.json"
"""A file that is there while a set is prepared, and after that was cut off."""
Execute = Callable[[Callable[[Task], "WrittenShard"], Sequence[Task]], Iterator["WrittenShard"]]


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenShard:
    """A written shard and its rejected images; `shard` is None if none of its images could be used."""

    shard: Shard | None
    rejects: tuple[Reject, ...]
    counts: Counts


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteShard:
    """A function that writes one task's shard; it is small and picklable, so that it runs anywhere in a cluster."""

    source: str
    out: str
    condition_dim: int
    embedding: bool
    tags: tuple[str, ...]
    rows_per_unit: int

    def __call__(self, task: Task) -> WrittenShard:
        """Decode the task's images and publish the shard."""
        rows: list[Row] = []
        rejects: list[Reject] = []
        for outcome in load_source(self.source).read(task):
            (rows if isinstance(outcome, Row) else rejects).append(outcome)  # pyright: ignore[reportArgumentType]
        counts = count(rows, task.split)
        if not rows:
            return WrittenShard(shard=None, rejects=tuple(rejects), counts=counts)
        path = f"{task.split}/part-{task.number:05d}.parquet"
        table = to_table(rows, schema(self.condition_dim, embedding=self.embedding, named=True, tags=self.tags))
        digest = storage.publish(storage.join(self.out, path), to_parquet(table, self.rows_per_unit))
        groups = tuple(min(self.rows_per_unit, len(rows) - at) for at in range(0, len(rows), self.rows_per_unit))
        shard = Shard(path=path, split=task.split, row_groups=groups, sha256=digest)
        return WrittenShard(shard=shard, rejects=tuple(rejects), counts=counts)


def count(rows: Sequence[Row], split: str) -> Counts:
    """Count what the images of a shard have."""
    return Counts(
        images=Counter({split: len(rows)}),
        labels=Counter((split, row.label) for row in rows if row.label is not None),
        captioned=sum(bool(row.text) for row in rows),
        turned=sum(row.turned for row in rows),
    )


def prepare(
    name: str,
    *,
    where: str | None,
    out: str,
    size: int | None,
    choices: Choices | None = None,
    rows_per_unit: int | None = None,
    execute: Execute = map,
) -> Dataset:
    """Write the data set and open it; the same request again does nothing.

    `execute` maps over the tasks of large sources; `rows_per_unit` of None means what the source proposes. InputError
    if something else is prepared at `out`, the source is no longer what was prepared, or no image can be used; a call
    that fails leaves nothing behind. Images that cannot be used are listed in rejects.parquet.
    """
    out = storage.absolute(out)
    where = storage.absolute(where) if where else None
    choices = choices or Choices()
    request = {
        "name": name,
        "source": storage.redacted(where) if where else "",
        "size": str(size or ""),
        "rows_per_unit": str(rows_per_unit or ""),
        **choices.given(),
    }
    if storage.exists(storage.join(out, "card.json")):
        return opened_if_same(out, request, where)
    refuse_foreign_folder(out)
    listing = planned(name, where, size, choices)
    state = state_of(where, without=out) if where else {}
    storage.publish_json(storage.join(out, MARKER), request)
    try:
        write = WriteShard(
            source=name,
            out=out,
            condition_dim=listing.condition_dim,
            embedding=listing.condition == "embedding",
            tags=listing.tags,
            rows_per_unit=rows_per_unit or listing.rows_per_unit,
        )
        run = execute if listing.distributed else map
        written = list(run(write, listing.tasks))
        publish_card(out, listing, written, request, state)
    except MucsError:
        remove_own_files(out)
        raise
    storage.remove(storage.join(out, MARKER))
    return Dataset.open(out)


def planned(name: str, where: str | None, size: int | None, choices: Choices) -> Listing:
    """Ask the source for its listing. InputError if it does not know one of the choices."""
    source = load_source(name)
    given, known = choices.given(), getattr(source, "CHOICES", ())
    if unknown := [choice for choice in given if choice not in known]:
        option = f"--{unknown[0].replace('_', '-')}"
        others = ", ".join(f"--{choice.replace('_', '-')}" for choice in known) or "none"
        raise InputError(f"source {name} has no use for {option}; what can be said of it: {others}")
    listing = cast(ChoosingSource, source).plan(where, size, choices) if given else source.plan(where, size)
    if taken := [tag for tag in listing.tags if tag in OWN_COLUMNS or listing.tags.count(tag) > 1]:
        raise InputError(f"source {name} has a tag {taken[0]!r}, a name that is taken; expected another one")
    return listing


def publish_card(
    out: str, listing: Listing, written: Sequence[WrittenShard], request: dict[str, str], state: State
) -> None:
    """Publish what belongs to a set beside its shards, the card last. InputError if there is no training image."""
    rejects = sorted((reject for part in written for reject in part.rejects), key=lambda reject: reject.idx)
    shards = [part.shard for part in written if part.shard is not None]
    if not any(shard.split == "train" for shard in shards):
        reasons = "; ".join(f"{reject.where}: {reject.reason}" for reject in rejects[:3]) or "there are none"
        raise InputError(f"no training image of {request['source'] or listing.name} can be used ({reasons})")
    counts = Counts()
    for part in written:
        counts += part.counts
    told = summary(listing.understood, counts, listing.classes, (reject.reason for reject in rejects))
    publish_rejects(out, rejects)
    storage.publish(storage.join(out, STATE_FILE), state_bytes(state))
    document = card(listing, shards, len(rejects), request, told).to_json()
    storage.publish_json(storage.join(out, "card.json"), document)


def refuse_foreign_folder(out: str) -> None:
    """Raise InputError if `out` holds anything but what an earlier call left unfinished, which is removed."""
    names = [name for name in storage.names(out) if name not in SPLITS or storage.names(storage.join(out, name))]
    if not names:
        return
    if MARKER not in names:
        raise InputError(f"{out} is not empty and holds no data set; choose another --out")
    remove_own_files(out)


def remove_own_files(out: str) -> None:
    """Remove the files of an unfinished data set, and nothing else."""
    for split in SPLITS:
        for name in storage.names(storage.join(out, split)):
            if re.fullmatch(r"part-\d{5,}\.parquet", name):
                storage.remove(storage.join(out, split, name))
    for name in ("rejects.parquet", STATE_FILE, MARKER):
        storage.remove(storage.join(out, name))


def opened_if_same(out: str, request: dict[str, str], where: str | None) -> Dataset:
    """Open the existing data set if it is the requested one; InputError if it is another, or its source has changed."""
    dataset = Dataset.open(out)
    if dataset.card.request != request:
        existing = dataset.card.request
        said = ", ".join(f"{key} {value}" for key, value in existing.items() if key not in ("name", "source", "size"))
        raise InputError(
            f"{out} already holds {existing.get('name')} from {existing.get('source') or 'the package'}"
            f" at size {existing.get('size') or 'default'}{f' ({said})' if said else ''};"
            " choose another --out, or delete it first"
        )
    if where and storage.exists(storage.join(out, STATE_FILE)):
        now = state_of(where, without=out)
        told = changes(storage.read_bytes(storage.join(out, STATE_FILE)), now)
        if now and told:
            raise InputError(
                f"{request['source']} has changed since {out} was prepared from it: {told}; delete {out} to prepare it"
                " again there, or choose another --out (runs that use the old set need it as it is)"
            )
    return dataset


def publish_rejects(out: str, rejects: Sequence[Reject]) -> None:
    """Publish idx, where and reason of every image that was left out; the file is written even if it is empty."""
    columns = pa.schema([("idx", pa.int64()), ("where", pa.string()), ("reason", pa.string())])
    values: list[dict[str, Any]] = [{"idx": r.idx, "where": printable(r.where), "reason": r.reason} for r in rejects]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(values, schema=columns), buffer)
    storage.publish(storage.join(out, "rejects.parquet"), buffer.getvalue())


def card(
    listing: Listing, shards: Sequence[Shard], num_rejected: int, request: dict[str, str], told: dict[str, Any]
) -> Card:
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
        tags=listing.tags,
        request=request,
        understood=told,
    )
