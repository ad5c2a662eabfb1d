"""Rows of a data set's table as a model sees them: the only place where stored images and conditions become tensors.

Axes: b images, c h w image (s x s once it is cropped), d condition.
"""

from collections.abc import Collection, Iterable, Sequence
from itertools import repeat

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Float32, Float64, UInt8
from pyarrow.compute import call_function

from mucs_ray.data.encoded import Z, latents
from mucs_ray.data.table import Card
from mucs_ray.diffusion.batch import Batch
from mucs_ray.errors import InputError
from mucs_ray.spaces.codec import Asked, Codec


def as_batch(
    images: Iterable[UInt8[np.ndarray, "c h w"]],
    table: pa.Table,
    card: Card,
    codec: Codec,
    stream: np.random.Generator | None = None,
) -> Batch:
    """Convert stored images, and a table with their idx and what conditions are made from (`columns_read`), to tensors.

    `codec` makes z of the cropped pictures and, where it reads text, their conditions of their captions.
    With a stream, each image has a random crop and a random one of its captions; without, the centre and the first.
    Images that were encoded before were cropped at the centre. InputError if a row lacks what the card promises.
    """
    encoded = Z in table.column_names and codec.reads_text
    places = None if stream is None else stream.random((3, len(table)))
    crops = repeat(None, len(table)) if places is None or encoded else places[:2].T
    choice = None if places is None else places[2]
    cropped, cuts = [], []
    for image, place in zip(images, crops, strict=True):
        cuts.append((image.shape[1:], corner(image, card.size, place)))
        if not encoded:
            cropped.append(crop(image, card.size, place))
    if codec.reads_text:
        condition = codec.condition(asked(table, cuts, choice))
    else:
        vectors = conditions(table, card, choice)
        condition = {} if vectors is None else {"condition": torch.from_numpy(vectors)}
    return Batch(
        idx=torch.from_numpy(table["idx"].to_numpy().astype(np.int64)),
        z=torch.from_numpy(latents(table, codec.shape))
        if encoded
        else codec.encode(torch.from_numpy(np.stack(cropped))),
        condition=condition,
    )


def columns_read(card: Card, codec: Codec, names: Collection[str] = ()) -> list[str]:
    """The columns that a batch is made from, besides the images, where the table has columns of these names."""
    if codec.reads_text:
        return ["idx", "text", *([Z] if Z in names else [])]
    condition = {"none": [], "label": ["label"], "embedding": ["condition"]}
    return ["idx", *condition[card.condition]]


def crop(
    image: UInt8[np.ndarray, "c h w"], size: int, place: Float64[np.ndarray, " 2"] | None = None
) -> UInt8[np.ndarray, "c s s"]:
    """A square of size x size pixels: the middle one, or where `place` says, which is in [0, 1) down and to the right.

    InputError if the image is smaller.
    """
    top, left = corner(image, size, place)
    return image[:, top : top + size, left : left + size]


def corner(
    image: UInt8[np.ndarray, "c h w"], size: int, place: Float64[np.ndarray, " 2"] | None = None
) -> tuple[int, int]:
    """The row and the column at which `crop` begins."""
    _, height, width = image.shape
    if min(height, width) < size:
        raise InputError(f"an image of {height} x {width} px is smaller than the data set's size {size}")
    if place is None:
        return (height - size) // 2, (width - size) // 2
    return int(place[0] * (height - size + 1)), int(place[1] * (width - size + 1))


def asked(
    table: pa.Table,
    cuts: Sequence[tuple[tuple[int, ...], tuple[int, int]]],
    choice: Float64[np.ndarray, " b"] | None = None,
) -> list[Asked]:
    """What a codec that reads text is told of each row: a caption, the size before the crop, and the crop's corner.

    The caption is the first, or the one that `choice` in [0, 1) names.
    """
    told = []
    for row, (texts, ((height, width), crop_corner)) in enumerate(zip(table["text"].to_pylist(), cuts, strict=True)):
        number = 0 if choice is None else int(choice[row] * len(texts or ()))
        told.append(Asked(text=texts[number] if texts else None, size=(height, width), crop=crop_corner))
    return told


def conditions(
    table: pa.Table, card: Card, choice: Float64[np.ndarray, " b"] | None = None
) -> Float32[np.ndarray, "b d"] | None:
    """The condition of each row: the one-hot vector of its label, or the embedding of a caption; None if there is none.

    The caption is the first, or the one that `choice` in [0, 1) names. InputError, naming idx, if a row has none.
    """
    if card.condition == "none":
        return None
    if card.condition == "label":
        refuse_rows(table, table["label"].is_null().to_numpy(), "has no label")
        one_hot = np.zeros((len(table), card.condition_dim), dtype=np.float32)
        one_hot[np.arange(len(table)), table["label"].to_numpy()] = 1
        return one_hot
    counts = call_function("list_value_length", [table["condition"]]).fill_null(0).to_numpy()
    refuse_rows(table, counts == 0, "has no caption embedding")
    rows = np.cumsum(counts) - counts
    if choice is not None:
        rows += (choice * counts).astype(rows.dtype)
    captions = call_function("list_flatten", [table["condition"]]).take(pa.array(rows))
    embeddings = call_function("list_flatten", [captions]).to_numpy().reshape(len(rows), card.condition_dim)
    return np.array(embeddings)  # torch wants no view, which is read-only


def refuse_rows(table: pa.Table, wrong: Bool[np.ndarray, " b"], what: str) -> None:
    """InputError that names the first row of those that are wrong."""
    if wrong.any():
        idx = table["idx"].to_numpy()[wrong][0]
        raise InputError(f"image idx={idx} {what}, which card.json promises; prepare the data set again")
