"""What a report shows, as plain numbers, strings and pictures; pictures are uint8 arrays [3, height, width]."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
Outcome = Literal["reached", "bound hit"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RankedImage:
    """One training image at its place in the ranking; rank 1 has the highest score."""

    rank: int
    idx: int
    score: float
    label: str
    text: str
    image: Picture


@dataclass(frozen=True, slots=True, kw_only=True)
class Unlearning:
    """How one generated image was unlearned; `target` is (1 - tol) * `null_loss`, the stop line.

    `item_loss` is the clamped mean loss of the generated image, `train_loss` the loss on the training batches,
    both one value per update.
    """

    steps: int
    outcome: Outcome
    seconds: float
    null_loss: float
    target: float
    item_loss: tuple[float, ...]
    train_loss: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """The scores of all training images; one more edge than counts. `top_k_score` is the k-th highest score."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    top_k_score: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ItemSection:
    """One generated image and its answer; `unlearning` is None for methods that do not unlearn."""

    number: int
    idx: int
    label: str
    image: Picture
    ranked: tuple[RankedImage, ...]
    unlearning: Unlearning | None
    histogram: Histogram


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Report:
    """One page: `title` names the run, `subtitle` is one line on it, `facts` and `stages` are (name, value) rows."""

    title: str
    subtitle: str
    method: str
    top_k: int
    num_training_images: int
    facts: tuple[tuple[str, str], ...]
    stages: tuple[tuple[str, str], ...]
    items: tuple[ItemSection, ...]
