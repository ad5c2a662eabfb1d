"""Noise has a name: every random number that reaches a result is drawn from (run seed, name).

A name such as "score/noise" or "unlearn/item=17/step=3" keys a counter-based generator, so what is drawn does not
depend on device, batch size, worker count, order, retries or the point of resumption.

Axes: n noise samples, *shape of an image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor


def generator(seed: int, name: str) -> np.random.Generator:
    """Return the random stream that belongs to `name` in the run with this `seed`."""
    key = blake2b(f"{seed}/{name}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))


def normal(stream: np.random.Generator, *shape: int) -> Float[Tensor, "..."]:
    """Draw standard normal float32 on the CPU; for another device move the numbers, never redraw them."""
    return torch.from_numpy(stream.standard_normal(shape, dtype=np.float32))


def name_torch_stream(seed: int, name: str) -> None:
    """Seed torch's global generators (initial weights, dropout, condition drop) from a name."""
    torch.manual_seed(int(generator(seed, name).integers(2**63)))


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseSet:
    """Pairs (level_j, eps_j), drawn once and shared by every image, before and after unlearning (spec 7.3)."""

    level: Float[Tensor, " n"]
    """The levels, whose meaning is the process's own: sigma for EDM."""
    unit: Float[Tensor, "n *shape"]

    @classmethod
    def draw(cls, seed: int, name: str, level: Float[Tensor, " n"], shape: Sequence[int]) -> "NoiseSet":
        """Draw standard normal noise of `shape` for each level, from the stream of `name`."""
        return cls(level=level, unit=normal(generator(seed, name), len(level), *shape))

    def __getitem__(self, at: slice | Int64[Tensor, " m"]) -> "NoiseSet":
        """Return a slice or a selection of the set."""
        return NoiseSet(level=self.level[at], unit=self.unit[at])

    def to(self, device: torch.device | str) -> "NoiseSet":
        """Move the same numbers to another device."""
        return NoiseSet(level=self.level.to(device), unit=self.unit.to(device))
