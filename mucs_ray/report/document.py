"""What a report shows, as plain numbers, strings and pictures; pictures are uint8 arrays [3, height, width]."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
Outcome = Literal["reached", "bound hit", "fixed"]
NOTE_SEPARATOR = " · "
"""Between the parts of a cell's note."""


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
class Answer:
    """One method's answer for one generated image; `unlearning` is None for methods that do not unlearn."""

    method: str
    ranked: tuple[RankedImage, ...]
    unlearning: Unlearning | None
    histogram: Histogram


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ItemSection:
    """One generated image and what each method says of it; most runs have one method."""

    number: int
    idx: int
    label: str
    image: Picture
    answers: tuple[Answer, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One entry of a table."""

    text: str
    """Marks of significance (* † ‡) behind a number hang outside its column."""
    strong: bool = False
    """The best of its column."""
    note: str = ""
    """Smaller, under the text: an interval, the paper's number; parts between NOTE_SEPARATOR have a line each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One table; the first column heads the rows, and every row has one cell a column."""

    key: str
    """For file names and links, e.g. "auc"."""
    title: str
    note: str
    """n, which direction is better, what the signs mean."""
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A density: `x` ascending, `y` >= 0, same length."""

    label: str
    """Decides the colour, which is the same in all figures."""
    x: tuple[float, ...]
    y: tuple[float, ...]
    mean: float
    reference: bool = False
    """True for random removal, which the others are seen against."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Density:
    """Similarities of regenerated images by one metric: one curve a method. Further left = changed more."""

    metric: str
    curves: tuple[Curve, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GridCell:
    """One regenerated image, and a few words on how similar it is to the reference, or which one it is."""

    image: Picture
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GridRow:
    """One method's images, in the order of the reference row."""

    label: str
    note: str
    """E.g. "459 of 1,715 removed"."""
    cells: tuple[GridCell, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Grid:
    """Reference images and, a row a method, what became of them."""

    title: str
    rows: tuple[GridRow, ...]
    """The first is the reference; a column is one generated image."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evaluation:
    """The counterfactual test: one sentence, the tables, the distributions, the images."""

    headline: str
    remarks: tuple[str, ...]
    """What a reader must know to judge: metrics left out, few seeds, hubs."""
    tables: tuple[Table, ...]
    """The first is the main one."""
    densities: tuple[Density, ...]
    grids: tuple[Grid, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HubImage:
    """A training image that is in the top-k lists of `lists` generated images."""

    idx: int
    lists: int
    label: str
    text: str
    image: Picture


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HubRow:
    """One method's most frequent training images, most lists first."""

    method: str
    num_lists: int
    """Of as many generated images."""
    images: tuple[HubImage, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HubSection:
    """Whether a method gives different images different training images."""

    table: Table
    rows: tuple[HubRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Report:
    """One page: `title` names the run, `subtitle` is one line on it, `facts` and `stages` are (name, value) rows."""

    title: str
    subtitle: str
    methods: tuple[tuple[str, str], ...]
    """(name, one line on it) of the methods whose answers are shown."""
    top_k: int
    num_training_images: int
    facts: tuple[tuple[str, str], ...]
    stages: tuple[tuple[str, str], ...]
    items: tuple[ItemSection, ...]
    """Empty in the report over several seeds, where each seed has a report of its own."""
    evaluation: Evaluation | None = None
    hubs: HubSection | None = None
