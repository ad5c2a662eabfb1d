"""Random access to one split, for training and unlearning: a memory-mapped copy on this node, made once.

All processes of a node share its pages, so memory does not grow with the number of processes or of images.
Axes: b images, c h w image, d condition.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Int64

from mucs_ray.data.table import Dataset, Split, center_crop, stored_images
from mucs_ray.diffusion.batch import Batch
from mucs_ray.spaces.codec import Codec
from mucs_ray.spaces.pixels import PIXELS


def cache_folder() -> Path:
    """$MUCS_RAY_CACHE, else mucs-ray in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mucs-ray"
    return Path(os.environ.get("MUCS_RAY_CACHE") or default)


class LocalImages:
    """A split of a data set, less removed images; `rows` count from 0 without gaps, in order of idx."""

    def __init__(
        self,
        dataset: Dataset,
        split: Split,
        *,
        codec: Codec = PIXELS,
        removed: frozenset[int] = frozenset(),
        on_unit: Callable[[], None] = lambda: None,
    ) -> None:
        """Copies the split to this node if it is not there yet, with a sign of life for each unit; `codec` makes z of
        its pictures.
        """
        self.card, self.codec = dataset.card, codec
        folder = cache_folder() / dataset.card.fingerprint[:32] / split
        if not folder.exists():
            copy_split(dataset, split, folder, on_unit)
        self.pixels = np.memmap(folder / "pixels", dtype=np.uint8, mode="r")
        self.offsets = np.load(folder / "offsets.npy", mmap_mode="r")
        self.sizes = np.load(folder / "sizes.npy", mmap_mode="r")
        self.idx = np.load(folder / "idx.npy")
        self.labels = np.load(folder / "labels.npy", mmap_mode="r")
        self.embeddings = np.memmap(folder / "embeddings", dtype=np.float32, mode="r") if self.has_embeddings else None
        self.captions = np.load(folder / "captions.npy", mmap_mode="r")
        self.kept = np.flatnonzero(~np.isin(self.idx, list(removed)))

    @property
    def has_embeddings(self) -> bool:
        """True if conditions are stored, not derived from labels."""
        return self.card.condition == "embedding"

    def __len__(self) -> int:
        """Images that are left after removal."""
        return len(self.kept)

    def batch(self, rows: Int64[np.ndarray, " b"], stream: np.random.Generator | None = None) -> Batch:
        """With a stream: a random crop and caption of each image; without: the centre and the first caption."""
        at = self.kept[rows]
        spots = None if stream is None else stream.random((3, len(at)))
        spot_of = [None] * len(at) if spots is None else list(spots[:2].T)
        images = np.stack([self.crop(row, spot) for row, spot in zip(at.tolist(), spot_of, strict=True)])
        return Batch(
            idx=torch.from_numpy(self.idx[at]),
            z=self.codec.encode(torch.from_numpy(images)),
            condition=self.conditions(at, None if spots is None else spots[2]),
        )

    def crop(self, row: int, spot: np.ndarray | None) -> np.ndarray:
        """The stored image cut to the square; `spot` in [0, 1)^2 chooses where, None is the centre."""
        height, width = self.sizes[row]
        start = self.offsets[row]
        image = self.pixels[start : start + 3 * height * width].reshape(3, height, width)
        if spot is None or height == width:
            return center_crop(image, self.card.size)
        top, left = (int(u * (side - self.card.size + 1)) for u, side in zip(spot, (height, width), strict=True))
        return image[:, top : top + self.card.size, left : left + self.card.size]

    def conditions(self, at: Int64[np.ndarray, " b"], spot: np.ndarray | None) -> dict[str, torch.Tensor]:
        """One-hot labels, or the embedding of the caption that `spot` in [0, 1) chooses (None = the first)."""
        if self.card.condition == "none":
            return {}
        if self.embeddings is None:
            labels = torch.from_numpy(self.labels[at].astype(np.int64))
            return {"condition": torch.nn.functional.one_hot(labels, self.card.condition_dim).float()}
        first, count = self.captions[at].T
        row = first if spot is None else first + (spot * count).astype(np.int64)
        table = self.embeddings.reshape(-1, self.card.condition_dim)
        return {"condition": torch.from_numpy(np.array(table[row]))}


def copy_split(dataset: Dataset, split: Split, folder: Path, on_unit: Callable[[], None]) -> None:
    """Stream the split into flat files beside `folder`, then publish them by one rename; a race is harmless."""
    aside = folder.with_name(f".{split}.{uuid4().hex}")
    aside.mkdir(parents=True)
    try:
        fill(dataset, split, aside, on_unit)
        aside.rename(folder)
    except BaseException as error:
        shutil.rmtree(aside, ignore_errors=True)
        if not (isinstance(error, OSError) and folder.exists()):  # else another process was first
            raise


def fill(dataset: Dataset, split: Split, aside: Path, on_unit: Callable[[], None]) -> None:
    """The flat files of a split."""
    facts: dict[str, list[np.ndarray]] = {"idx": [], "sizes": [], "labels": [], "counts": []}
    with (aside / "pixels").open("wb") as stored, (aside / "embeddings").open("wb") as embeddings:
        for table in dataset.stream(split):
            on_unit()
            for image in stored_images(table):
                stored.write(image.tobytes())
            facts["idx"].append(table["idx"].to_numpy())
            facts["sizes"].append(np.stack([table["height"].to_numpy(), table["width"].to_numpy()], axis=1))
            facts["labels"].append(table["label"].fill_null(-1).to_numpy())
            facts["counts"].append(write_embeddings(table, embeddings))
    joined = {name: np.concatenate(parts) for name, parts in facts.items()}
    lengths = 3 * joined["sizes"].astype(np.int64).prod(axis=1)
    first_caption = np.cumsum(joined["counts"]) - joined["counts"]
    np.save(aside / "idx.npy", joined["idx"].astype(np.int64))
    np.save(aside / "sizes.npy", joined["sizes"].astype(np.int64))
    np.save(aside / "labels.npy", joined["labels"])
    np.save(aside / "offsets.npy", np.cumsum(lengths) - lengths)
    np.save(aside / "captions.npy", np.stack([first_caption, joined["counts"]], axis=1).astype(np.int64))


def write_embeddings(table: pa.Table, file: BinaryIO) -> Int64[np.ndarray, " b"]:
    """Append every caption's embedding; returns how many each image has."""
    captions = table["condition"].to_pylist() if "condition" in table.column_names else [[]] * len(table)
    for image in captions:
        file.write(np.asarray(image, dtype=np.float32).tobytes())
    return np.asarray([len(image) for image in captions], dtype=np.int64)
