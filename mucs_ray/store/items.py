"""Generated items as files: the unclamped image and its condition as safetensors, and a PNG to look at."""

import io
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from mucs_ray import storage
from mucs_ray.attribution.base import Item
from mucs_ray.spaces.pixels import decode
from mucs_ray.store import checkpoint
from mucs_ray.store.item_names import item_file, item_name
from mucs_ray.store.run import Stage

Role = Literal["target", "control"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedItem:
    """An item before it is generated: its role, and the test image that supplies its condition."""

    number: int
    row: int
    """The number of the row in the test split."""
    idx: int
    role: Role


def to_pixels(image: Float[Tensor, "c h w"]) -> UInt8[np.ndarray, "c h w"]:
    """Convert floats in [-1, 1], clamped, to 8-bit pixels (spec 2)."""
    return (decode(image) * 255).round().to(torch.uint8).cpu().numpy()


def to_png(pixels: UInt8[np.ndarray, "c h w"]) -> bytes:
    """Encode pixels as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def save_item(stage: Stage, item: Item, facts: dict[str, Any]) -> str:
    """Publish the PNG, then the tensors; return the tensors' sha256."""
    storage.publish(stage.url(stage.part(item_name(item.number), "png")), to_png(to_pixels(item.image)))
    tensors = {**item.condition, "image": item.image}
    facts = {**facts, "number": item.number, "idx": item.idx}
    return checkpoint.save(stage.url(item_file(stage, item.number)), tensors, facts)


def load_item(stage: Stage, number: int) -> Item:
    """Read an item that was generated."""
    tensors, facts = checkpoint.load(stage.url(item_file(stage, number)))
    image = tensors.pop("image")
    return Item(number=number, idx=facts["idx"], condition=tensors, image=image)
