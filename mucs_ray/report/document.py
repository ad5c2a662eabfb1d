"""What a report shows, as plain numbers, strings and pictures. A picture is a uint8 array [3, height, width]."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
UnlearningOutcome = Literal["reached", "bound hit", "fixed"]
NOTE_SEPARATOR = " · "
"""The separator between the parts of a cell's note."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RankedImage:
    """One training image and its place in the ranking; rank 1 has the highest score."""

    rank: int
    idx: int
    score: float
    label: str
    text: str
    name: str = ""
    """What the image is called in its source, such as a path; "" if the data set does not know."""
    image: Picture


@dataclass(frozen=True, slots=True, kw_only=True)
class Unlearning:
    """How one generated image was unlearned; `target` is (1 - tol) * `null_loss`, the stop line.

    `item_loss` is the clamped mean loss of the generated image, `train_loss` the loss on the training batches,
    both one value per update.
    """

    steps: int
    outcome: UnlearningOutcome
    seconds: float
    null_loss: float
    target: float
    item_loss: tuple[float, ...]
    train_loss: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """The distribution of the scores of all training images. There is one more edge than there are counts, and
    `top_k_score` is the k-th highest score.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    top_k_score: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answer:
    """One method's answer for one generated image. `unlearning` is None for a method that does not unlearn."""

    method: str
    ranked: tuple[RankedImage, ...]
    unlearning: Unlearning | None
    histogram: Histogram


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ItemSection:
    """One generated image and the answer of each method; most runs have one method."""

    number: int
    idx: int
    label: str
    image: Picture
    answers: tuple[Answer, ...]
    name: str = ""
    """The name of a picture of the user's; "" for an image that was generated in the run."""
    remarks: tuple[str, ...] = ()
    """Sentences on what limits the answer, and what else is known of a picture of the user's."""

    @property
    def title(self) -> str:
        """What the report calls it."""
        return self.name or f"Generated image {self.number}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One entry of a table."""

    text: str
    """A number may end in marks of significance (* † ‡), which hang outside its column."""
    strong: bool = False
    """This is True for the best value of a column, which is printed in bold."""
    note: str = ""
    """Small print under the text, such as an interval or the paper's number. NOTE_SEPARATOR separates its lines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One table. Its first column heads the rows, and every row has one cell for each column."""

    key: str
    """The name of the table in file names and links, e.g. "auc"."""
    title: str
    note: str
    """A note that gives n, the better direction, and the meaning of the marks."""
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A density: `x` is ascending, `y` is at least 0, and both have the same length."""

    label: str
    """The label decides the colour, which is the same in all figures."""
    x: tuple[float, ...]
    y: tuple[float, ...]
    mean: float
    reference: bool = False
    """This is True for random removal, with which the other curves are compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Density:
    """The similarities of regenerated images by one metric, with one curve for each method. Further left means a larger
    change.
    """

    metric: str
    curves: tuple[Curve, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GridCell:
    """One regenerated image with a short note: its similarity to the reference, or the number of the reference."""

    image: Picture
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GridRow:
    """One method's images, in the order of the reference row."""

    label: str
    note: str
    """A note on the row, e.g. "459 of 1,715 removed"."""
    cells: tuple[GridCell, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Grid:
    """Reference images and, in one row for each method, their regenerations."""

    title: str
    rows: tuple[GridRow, ...]
    """The first row is the reference, and each column belongs to one generated image."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evaluation:
    """The counterfactual test in one mode of removal: one sentence, the tables, the distributions and the images."""

    mode: str
    headline: str
    procedure: str
    """What was done, and what a method that found the right images would show."""
    by_loss: bool = False
    """Whether nothing but losses was compared, because the pictures cannot be made again."""
    remarks: tuple[str, ...]
    """What a reader must know to judge the result, such as metrics that were left out, few seeds, or hubs."""
    tables: tuple[Table, ...]
    """The first table is the main one."""
    densities: tuple[Density, ...]
    grids: tuple[Grid, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LdsSection:
    """The linear datamodeling score: one sentence, and the tables, of which the first is the main one."""

    headline: str
    tables: tuple[Table, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GroupPictures:
    """A group of training images, and some of them."""

    name: str
    size: int
    images: tuple[Picture, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareBar:
    """The share of a group in a generated image, in [0, 1], with its interval."""

    group: str
    share: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SharedImage:
    """A generated image and the shares of groups in it, the largest first."""

    number: int
    label: str
    image: Picture
    bars: tuple[ShareBar, ...]
    """No bars for an image that is nobody's in particular."""
    rest: str = ""
    """A sentence on the groups without a bar."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreMatrix:
    """The scores of all groups for all generated images by one method: a row an image; None where there is none."""

    title: str
    groups: tuple[str, ...]
    scores: tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GroupSection:
    """Which groups of training images made the generated images, and how far that can be trusted."""

    headline: str
    by: str
    """What makes groups, such as "label"."""
    remarks: tuple[str, ...]
    """What a reader must know to judge the result."""
    groups: tuple[GroupPictures, ...]
    shares_by: str
    """The models from which the shares are computed; "" if there are no shares."""
    images: tuple[SharedImage, ...]
    matrices: tuple[ScoreMatrix, ...]
    table: Table | None
    """The agreement with trainings without each group; None without these."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HubImage:
    """A training image that is in the top-k lists of `lists` generated images."""

    idx: int
    lists: int
    label: str
    text: str
    name: str = ""
    image: Picture


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HubRow:
    """The most frequent training images of one method; the image in the most lists comes first."""

    method: str
    num_lists: int
    """The number of lists, which is the number of generated images."""
    images: tuple[HubImage, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HubSection:
    """The part of a report that shows whether a method gives different images different training images."""

    table: Table
    rows: tuple[HubRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Report:
    """One page. `title` names the run, `subtitle` describes it in one line, and `facts` and `stages` are (name, value)
    rows.
    """

    title: str
    subtitle: str
    methods: tuple[tuple[str, str], ...]
    """The methods whose answers are shown, each as (name, one-line description)."""
    top_k: int
    num_training_images: int
    facts: tuple[tuple[str, str], ...]
    stages: tuple[tuple[str, str], ...]
    items: tuple[ItemSection, ...]
    """This is empty in a report over several seeds, because each seed has a report of its own."""
    warnings: tuple[str, ...] = ()
    """Sentences on what makes the answers worthless, which stand above everything else."""
    sampled: Picture | None = None
    """An image sampled from weights from elsewhere, by which a reader sees that they were read rightly."""
    evaluations: tuple[Evaluation, ...] = ()
    """The counterfactual test, once for each mode of removal; that of the headline comes first."""
    hubs: HubSection | None = None
    lds: LdsSection | None = None
    groups: GroupSection | None = None
