"""The canonical form of a training set: Parquet shards and a card, at any fsspec URL.

    <url>/card.json                   the set's description, its shards and row groups, a fingerprint of the content
    <url>/train/part-00000.parquet    idx int64 | image binary, uint8 c*h*w | height, width int32 | label int32?
    <url>/test/part-00000.parquet     | condition list<float32[d]>?, one for each caption | text list<string>?
                                      | name string? | a string for each tag?
    <url>/rejects.parquet             images that could not be read, and the reasons

`idx` is the number of an image for life, and `name` says what it was in the source: a path, or a file and a row or key.
A *tag* is anything else that the source knows of an image and groups can be made by, such as its style or artist.
A *unit* is one row group: the grain of streaming, scoring and retrying.
Axes: b images, c h w image (stored uint8 c-first, shorter side = card.size), d condition.
"""

import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from errno import EINVAL
from functools import cached_property
from hashlib import sha256
from typing import IO, TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32, UInt8
from pydantic import TypeAdapter, ValidationError

from mucs_ray import storage
from mucs_ray.data.encoded import Encoded, Z, with_z
from mucs_ray.errors import InputError, MucsError

if TYPE_CHECKING:
    from mucs_ray.diffusion.batch import Batch
    from mucs_ray.spaces.codec import Codec

SCHEMA_VERSION = 1
OWN_COLUMNS = ("idx", "image", "height", "width", "label", "text", "condition", "name", "folder", "group")
"""The names that no tag may have."""
Split = Literal["train", "test"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One image on its way into the table."""

    idx: int
    image: UInt8[np.ndarray, "c h w"]
    label: int | None = None
    text: tuple[str, ...] = ()
    condition: Float32[np.ndarray, "captions d"] | None = None
    name: str | None = None
    """What the image is called in its source; None in sets that were prepared before names were kept."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """The values of the set's tags that the image has."""
    turned: bool = False
    """Whether it was turned upright as its EXIF orientation says; counted, not stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One Parquet file of the set, by its path under the set's URL."""

    path: str
    split: Split
    row_groups: tuple[int, ...]
    """The number of rows in each row group."""
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """One row group; `name` is stable for life and independent of any cluster."""

    name: str
    url: str
    row_group: int
    rows: int
    encoded: tuple[str, str] | None = None
    """The URL and the sha256 of the part with z of its images, if they were encoded before."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """The description of a prepared data set."""

    name: str
    source: str
    licence: str
    size: int
    """The shorter side of the stored images in pixels; everything is cropped to size x size on reading."""
    condition: Literal["none", "label", "embedding"]
    condition_dim: int
    """The number of classes, or the width of the embedding; 0 if there is no condition."""
    classes: tuple[str, ...] = ()
    shards: tuple[Shard, ...]
    num_rejected: int = 0
    named: bool = False
    """Whether the shards have a column of names."""
    tags: tuple[str, ...] = ()
    """The columns of the shards that hold tags."""
    schema_version: int = SCHEMA_VERSION
    request: dict[str, str] = field(default_factory=dict)
    """The arguments of `data prepare`; the same request again does nothing."""
    understood: dict[str, Any] = field(default_factory=dict)
    """What was made of the source's files (mucs_ray.data.understood); {} for sets of earlier versions."""

    @cached_property
    def fingerprint(self) -> str:
        """A digest of the content, which is equal for equal shards, wherever they are."""
        digests = "".join(shard.sha256 for shard in self.shards)
        facts = f"{self.schema_version}/{self.size}/{self.condition}/{self.condition_dim}/{digests}"
        return sha256(facts.encode()).hexdigest()

    @cached_property
    def columns(self) -> pa.Schema:
        """The columns of every shard."""
        return schema(self.condition_dim, embedding=self.condition == "embedding", named=self.named, tags=self.tags)

    @property
    def name_column(self) -> list[str]:
        """The column of names, if the shards have one."""
        return ["name"] if self.named else []

    def num_images(self, split: Split) -> int:
        """Return the number of images in a split."""
        return sum(sum(shard.row_groups) for shard in self.shards if shard.split == split)

    def to_json(self) -> dict[str, object]:
        """Return the content of card.json."""
        counts = {split: self.num_images(split) for split in ("train", "test")}
        return {**asdict(self), "counts": counts, "fingerprint": self.fingerprint}


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A prepared data set: its card and its place."""

    url: str
    card: Card
    encoded: Encoded | None = None
    """Where the training images are encoded, in the space of a model that does not work on pictures."""

    @classmethod
    def open(cls, url: str) -> "Dataset":
        """Read the card. InputError if there is none, or it has another schema version."""
        url = storage.absolute(url)
        try:
            document = storage.read_json(storage.join(url, "card.json"))
        except MucsError:
            raise
        except (FileNotFoundError, NotADirectoryError):
            hint = "prepare one with: mucs-ray data prepare NAME --source WHERE --out URL"
            raise InputError(f"no data set at {url} (expected card.json there); {hint}") from None
        except (ValueError, UnicodeDecodeError) as error:
            raise InputError(f"{url}/card.json is not readable JSON ({error}); prepare the data set again") from None
        if document.get("schema_version") != SCHEMA_VERSION:
            version = document.get("schema_version")
            raise InputError(
                f"{url}/card.json has schema version {version}, expected {SCHEMA_VERSION}; prepare it again"
            )
        facts = {key: value for key, value in document.items() if key not in ("counts", "fingerprint")}
        try:
            card = TypeAdapter(Card).validate_python(facts)
        except ValidationError as error:
            where = ".".join(str(part) for part in error.errors()[0]["loc"])
            raise InputError(f"{url}/card.json: {where}: {error.errors()[0]['msg']}; prepare it again") from None
        return cls(url=url, card=card)

    def units(self, split: Split) -> list[Unit]:
        """Return all row groups of a split, in order of idx."""
        units = []
        for shard in self.card.shards:
            if shard.split != split:
                continue
            stem = shard.path.removesuffix(".parquet").replace("/", "-")
            for number, rows in enumerate(shard.row_groups):
                name, url = f"{stem}-{number:04d}", storage.join(self.url, shard.path)
                encoded = self.encoded.part(name) if self.encoded and split == "train" else None
                units.append(Unit(name=name, url=url, row_group=number, rows=rows, encoded=encoded))
        return units

    def columns(self, split: Split) -> pa.Schema:
        """Return the columns of a split's rows, with z where the split is encoded."""
        units = self.units(split)
        if not units or units[0].encoded is None:
            return self.card.columns
        table = read_unit(units[0], ["idx", Z])
        return self.card.columns.append(table.schema.field(Z))

    def stream(self, split: Split, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Yield the units of a split as Arrow tables, one in memory at a time."""
        for unit in self.units(split):
            yield read_unit(unit, columns)

    def find(self, ids: set[int], split: Split) -> dict[int, Row]:
        """Return the images with these idx, as stored but without conditions.

        Only units that hold one are read as a whole.
        """
        images: dict[int, Row] = {}
        for unit in self.units(split):
            matches = ids.intersection(read_unit(unit, ["idx"])["idx"].to_pylist())
            if not matches:
                continue
            table = read_unit(unit, ["idx", "image", "height", "width", "label", "text", *self.card.name_column])
            table = table.filter(pa.array([idx in matches for idx in table["idx"].to_pylist()]))
            described = table.select(["idx", "label", "text", *self.card.name_column]).to_pylist()
            for row, image in zip(described, stored_images(table), strict=True):
                text, name = tuple(row["text"] or ()), row.get("name")
                images[row["idx"]] = Row(idx=row["idx"], image=image, label=row["label"], text=text, name=name)
        return images

    def batch(self, table: pa.Table, codec: "Codec | None" = None) -> "Batch":
        """Convert Arrow rows to tensors: centre crop, first caption (spec 2).

        `codec` makes z of the pictures; without one, z is their pixels in [-1, 1].
        """
        from mucs_ray.data.batch import as_batch  # it imports torch, without which a card is read and a run looked at
        from mucs_ray.spaces.pixels import PIXELS

        codec = codec or PIXELS
        if self.encoded and self.encoded.captions:
            codec.learn(self.encoded.captions)
        return as_batch(stored_images(table), table, self.card, codec)


def schema(condition_dim: int, *, embedding: bool, named: bool = False, tags: Iterable[str] = ()) -> pa.Schema:
    """Return the columns of a shard; `condition` is there only for embeddings (a label's one-hot is not stored)."""
    fields = [("idx", pa.int64()), ("image", pa.binary()), ("height", pa.int32()), ("width", pa.int32())]
    fields += [("label", pa.int32()), ("text", pa.list_(pa.string()))]
    if embedding:
        fields.append(("condition", pa.list_(pa.list_(pa.float32(), condition_dim))))
    if named:
        fields.append(("name", pa.string()))
    fields += [(tag, pa.string()) for tag in tags]
    return pa.schema(fields, metadata={"mucs_ray.schema_version": str(SCHEMA_VERSION)})


def to_table(rows: Iterable[Row], columns: pa.Schema) -> pa.Table:
    """Convert rows to one Arrow table with these columns."""
    images = list(rows)
    data: dict[str, list[object]] = {
        "idx": [row.idx for row in images],
        "image": [np.ascontiguousarray(row.image).tobytes() for row in images],
        "height": [row.image.shape[1] for row in images],
        "width": [row.image.shape[2] for row in images],
        "label": [row.label for row in images],
        "text": [list(row.text) for row in images],
    }
    if "condition" in columns.names:
        data["condition"] = [None if row.condition is None else row.condition.tolist() for row in images]
    if "name" in columns.names:
        data["name"] = [None if row.name is None else printable(row.name) for row in images]
    for tag in columns.names:
        if tag not in data:
            data[tag] = [printable(row.tags[tag]) if tag in row.tags else None for row in images]
    return pa.Table.from_pydict(data, schema=columns)


def printable(name: str) -> str:
    """Return a file's name as text that can be stored; bytes that are not UTF-8 become escapes such as \\xff."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def to_parquet(table: pa.Table, rows_per_unit: int) -> bytes:
    """Encode a shard. Images are stored raw: decoding PNG costs more than reading (benchmarks/storage.py)."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=rows_per_unit, compression="zstd", use_dictionary=False)
    return buffer.getvalue()


def open_parquet(file: IO[bytes]) -> pq.ParquetFile:
    """Open a Parquet file by its own types alone and ignore the Arrow schema that it may carry beside them.

    That schema can declare a column to be of any registered extension type. Ray registers one whose values are
    unpickled on access, so that a foreign file could run code.
    """
    file.seek(-8, io.SEEK_END)
    end = file.read(8)
    length = int.from_bytes(end[:4], "little")
    file.seek(-8 - length, io.SEEK_END)
    footer = file.read(length).replace(b"ARROW:schema", b"arrow-schema")
    alone = pq.ParquetFile(io.BytesIO(b"PAR1" + footer + end))
    file.seek(0)
    return pq.ParquetFile(file, metadata=alone.metadata)


def read_unit(unit: Unit, columns: list[str] | None = None) -> pa.Table:
    """Read one row group, with z if it is encoded. InputError, naming the file, if it is absent or corrupt."""
    stored = None if columns is None else [name for name in columns if name != Z]
    try:
        with storage.opened(unit.url) as file:
            table = open_parquet(file).read_row_group(unit.row_group, columns=stored)
    except FileNotFoundError:
        raise InputError(f"shard {unit.url} is listed in card.json but absent; prepare the data set again") from None
    except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: a remote file shorter than a footer
        plain = type(error) is OSError and error.errno in (None, EINVAL)  # EINVAL: sent to a place before the start
        if isinstance(error, OSError) and not plain:
            raise  # the file system's, which may pass; Arrow raises plain ones for what it cannot parse
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"shard {unit.url} is corrupt ({reason}); prepare the data set again") from None
    if unit.encoded is None or (columns is not None and Z not in columns):
        return table
    return with_z(table, unit.encoded)


class StoredImages:
    """The images of one record batch by row, as views of its memory."""

    def __init__(self, chunk: pa.RecordBatch) -> None:
        """The chunk needs the columns idx, image, height and width."""
        column = chunk["image"]
        _, offsets, content = column.buffers()
        self.offsets = np.frombuffer(offsets, dtype=np.int32)[column.offset : column.offset + len(column) + 1]
        self.content = np.frombuffer(content or b"", dtype=np.uint8)
        self.idx, self.heights, self.widths = (chunk[name].to_numpy() for name in ("idx", "height", "width"))

    def __getitem__(self, row: int) -> UInt8[np.ndarray, "c h w"]:
        """The image as stored. InputError, naming idx, if its size does not match its bytes."""
        content = self.content[self.offsets[row] : self.offsets[row + 1]]
        height, width = int(self.heights[row]), int(self.widths[row])
        if len(content) != 3 * height * width:
            found, expected = f"{len(content)} bytes", f"3 x {height} x {width}"
            raise InputError(f"image idx={self.idx[row]} holds {found}, expected {expected}; prepare it again")
        return content.reshape(3, height, width)


def stored_images(table: pa.Table) -> Iterator[UInt8[np.ndarray, "c h w"]]:
    """Yield the images of a table, as stored. InputError, naming idx, if a size does not match its bytes."""
    for chunk in table.to_batches():
        images = StoredImages(chunk)
        yield from (images[row] for row in range(len(chunk)))
