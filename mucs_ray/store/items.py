"""Generated items as files: the unclamped image and its condition as safetensors, and a PNG to look at."""

import io
from dataclasses import dataclass
from typing import Any, Literal

from mucs_ray import storage
from mucs_ray.diffusion.batch import Item
from mucs_ray.spaces.codec import Codec
from mucs_ray.spaces.pictures import StoredPicture, as_image, to_bytes
from mucs_ray.store import checkpoint
from mucs_ray.store.item_names import item_file, item_name
from mucs_ray.store.run import Stage
from mucs_ray.store.typed import typed

Role = Literal["target", "control"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedItem:
    """An item before it is generated: its role, and the test image that supplies its condition."""

    number: int
    row: int
    """The number of the row in the test split."""
    idx: int
    role: Role


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemHeader:
    """The part of the header of an item's file that is read again."""

    idx: int


def shown(item: Item, codec: Codec) -> StoredPicture:
    """Return an item as 8-bit pixels."""
    return to_bytes(codec.decode(item.z[None])[0])


def to_png(pixels: StoredPicture) -> bytes:
    """Encode pixels as a PNG file."""
    buffer = io.BytesIO()
    as_image(pixels).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def save_item(stage: Stage, item: Item, codec: Codec, facts: dict[str, Any]) -> str:
    """Publish the PNG, then the tensors; return the tensors' sha256."""
    storage.publish(stage.url(stage.part(item_name(item.number), "png")), to_png(shown(item, codec)))
    tensors = {**item.condition, "image": item.z}
    facts = {**facts, "number": item.number, "idx": item.idx}
    return checkpoint.save(stage.url(item_file(stage, item.number)), tensors, facts)


def load_item(stage: Stage, number: int) -> Item:
    """Read an item that was generated."""
    url = stage.url(item_file(stage, number))
    tensors, header = checkpoint.load(url)
    z = tensors.pop("image")
    return Item(number=number, idx=typed(header, ItemHeader, url).idx, condition=tensors, z=z)
