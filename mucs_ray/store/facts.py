"""The facts in the manifests of finished stages, as far as code reads them again; a manifest may hold more.

A stage that writes such facts writes `asdict` of one of these classes, or has its keys among its own.
"""

from dataclasses import dataclass, field
from typing import TypeVar

from mucs_ray.attribution.unlearn import Outcome
from mucs_ray.store.items import PlannedItem
from mucs_ray.store.run import Stage
from mucs_ray.store.typed import typed

Facts = TypeVar("Facts")


@dataclass(frozen=True, slots=True, kw_only=True)
class DoneFacts:
    """What the manifest of every stage holds."""

    seconds: float
    """The wall time of the stage, or its share of that of a pass."""
    versions: dict[str, str]
    """The versions of the packages that matter, by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingFacts:
    """The course of a training in this run."""

    updates: int
    best_loss: float
    """The lowest validation loss."""
    best_step: int
    """The number of updates at which the validation loss was lowest."""
    workers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportFacts:
    """What was found of weights from elsewhere."""

    check_ratio: float | None = None
    """Their loss on training images, as a share of that of the best linear denoiser; None if it was not measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovalFacts:
    """The size of a retraining's removal, or the mean size of those that an evaluation compares."""

    removed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationFacts:
    """The items of a run, in order of their numbers."""

    items: list[PlannedItem]

    @property
    def targets(self) -> list[PlannedItem]:
        """The items that are attributed, which come before the controls."""
        return [item for item in self.items if item.role == "target"]


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryFacts:
    """What was seen of a user's picture when it was read."""

    condition: str
    """Its class or caption; "" if none was named."""
    origin: str
    """picture, tensor, train image, test image or generated image."""
    original: list[int] | None = None
    """The width and height of its file, if the picture was resized or cropped."""
    codec_rms: float = 0.0
    """What encoding and decoding change, as a root mean square in steps of 8-bit pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueriesFacts:
    """The user's pictures of a run that explains such, in order of their numbers."""

    queries: list[QueryFacts]


@dataclass(frozen=True, slots=True, kw_only=True)
class LossFacts:
    """The mean losses of a user's pictures before and after a retraining, in order of their numbers."""

    before: list[float]
    after: list[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreHistogram:
    """The distribution of one item's scores; there is one more edge than there are counts."""

    edges: list[float]
    counts: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankingFacts:
    """The result of an attribution: the length of its top-k lists, and one histogram for each item."""

    k: int
    num_images: int
    histograms: list[ScoreHistogram]


@dataclass(frozen=True, slots=True, kw_only=True)
class FittingFacts:
    """The seconds that fitting each item took in this command, by the item's number; earlier items are absent."""

    seconds_an_item: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamingFacts:
    """The work of a stage that streamed the training set. The seconds of all workers are added up."""

    forwards: int = 0
    """0 for a stage that does not call the network, and in a manifest that does not say."""
    worker_seconds: float = 0.0
    worker_seconds_outside: float = 0.0
    """The part of `worker_seconds` that was spent outside the network."""
    wall_seconds: float = 0.0
    processor: str | None = None
    """"GPU" or "CPU", of which each worker had one; None in a manifest that does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringFacts:
    """The settings with which a stage compared losses, "auto" resolved."""

    precision: str
    images_per_forward: int
    compile: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NullLossFacts:
    """The loss up to which MUCS unlearns an item."""

    null_loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class UnlearningTrace:
    """The course of unlearning one item up to a bound, from the header of the item's tensors."""

    updates: int
    outcome: Outcome
    null_loss: float
    target: float
    """The loss at which unlearning stops."""
    item_loss: list[float]
    train_loss: list[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class LooFacts:
    """The losses of the targets under the models that were trained on all images."""

    with_all_images: list[float]
    another_seed: list[float]
    """The losses where only the seed of the training differs."""


def read_facts(stage: Stage, kind: type[Facts]) -> Facts:
    """Return the facts of a finished stage that `kind` has as fields. InputError if it is not done, or lacks one."""
    return typed(stage.facts(), kind, stage.url("manifest.json"))
