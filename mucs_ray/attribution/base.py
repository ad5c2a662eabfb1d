"""This module defines the contract of an attribution method, and what it is given.

A method is a subclass of `Attributor` with a card. Only `score` is needed; each further hook that the card lists
becomes a stage of the run, with its own files, progress and resumption. Hooks do no I/O and do not use Ray.

Axes: b training images, i items, *shape of an image.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mucs_ray.attribution.card import MethodCard, MethodStage
from mucs_ray.attribution.config import RankConfig, ScoreConfig
from mucs_ray.attribution.first_losses import FirstLosses
from mucs_ray.diffusion.batch import Batch, Item
from mucs_ray.diffusion.model import DiffusionModel
from mucs_ray.diffusion.samplers import GenerationSettings
from mucs_ray.models.spec import ModelSpec
from mucs_ray.spaces.codec import Codec
from mucs_ray.spaces.pictures import Pictures
from mucs_ray.spaces.pixels import PIXELS
from mucs_ray.training.config import TrainConfig

Tensors = dict[str, Tensor]
Columns = dict[str, Tensor]
"""A table with a row for each image: every tensor has b rows; "idx" is among them when a hook is given one."""


class MethodSettings(Protocol):
    """Methods read these parts of a recipe; `mucs_ray.config.recipe.Recipe` has them."""

    @property
    def seed(self) -> int:
        """Return the run's seed; everything random is drawn from it and a name."""
        ...

    @property
    def model(self) -> ModelSpec:
        """Return the spec that builds the model."""
        ...

    @property
    def train(self) -> TrainConfig:
        """Return the settings with which the network was trained."""
        ...

    @property
    def generate(self) -> GenerationSettings:
        """Return the settings with which items are generated."""
        ...

    @property
    def score(self) -> ScoreConfig:
        """Return the settings with which methods compare losses."""
        ...

    @property
    def rank(self) -> RankConfig:
        """Return the settings with which scores become lists."""
        ...

    @property
    def method(self) -> Mapping[str, Any]:
        """Return the settings of each method, by the section of its card."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodContext:
    """A method works with this context in a worker."""

    settings: MethodSettings
    device: torch.device
    num_images: int
    """Size of the training set."""
    items: Sequence[Item] = ()
    """All items that are attributed; empty in hooks of a stage that does not read them."""
    denoiser: DiffusionModel | None = None
    """F1, frozen, in eval mode, on the device; None in hooks of a stage that does not use it. Never change it."""
    batches: Callable[[str, int], Callable[[int], Batch]] | None = None
    """batches(stream name, size)(step): training images in a shuffled order that belongs to the name; in `fit`,
    `fit_item` and `fit_together` only."""
    codec: Codec = PIXELS
    """The way from z to pictures, for a method that looks at them."""
    encode: Callable[[Pictures], Float[Tensor, "b d"]] | None = None
    """Pictures in [0, 1] to vectors of length 1, by the pretrained network that the method names as its `encoder`."""
    captures: bool = False
    """Whether forwards that come again with the same shape are captured as CUDA graphs; changes no number."""
    on_progress: Callable[[], None] = lambda: None
    """Sends a heartbeat, for a hook that makes forwards which Python does not see (a replayed CUDA graph)."""
    first_losses: FirstLosses | None = None
    """F1's losses of the current batch, for methods that compute them in the same worker in the same way."""
    num_methods: int = 1
    """How many methods share the memory of this worker's device."""

    @property
    def model(self) -> DiffusionModel:
        """Return F1, for a hook that cannot do without it."""
        assert self.denoiser is not None, "this stage of the method does not say that it uses the model"
        return self.denoiser


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemState:
    """`fit_item` returns this for one item: tensors, and facts (JSON values) for the report."""

    tensors: Tensors
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Passes:
    """This is the cost of a stage of a method, in passes of one image through the model."""

    forwards: int = 0
    backwards: int = 0
    """The number of backward passes; the forward pass before each is included."""


class Attributor(ABC):
    """An attributor is one method. Its scores are comparable within an item only; higher means more influential.

    Hooks run in this order, each only if the card lists it, and each sees what the earlier ones made: `features` (a
    table row for each image, kept for all items), `accumulate` (sums over the training set), `fit` (once a run),
    `fit_item` (once an item), `fit_together` (once a run, from what all items have); after `load`, `sample` (a table
    row for each image of a random sample), `fit_screen` (once a run, from that table), and, after `load` with these,
    the scorer: `columns`, which calls `score`. Where there are features, `accumulate` and `score` get their rows
    instead of images.
    """

    card: ClassVar[MethodCard]
    places_item_states: ClassVar[bool] = False
    """True if `load` takes the items' tensors in main memory and moves to the device what fits there."""

    def __init__(self, context: MethodContext) -> None:
        """Keep the context and read the method's own settings; this happens once a worker."""
        self.context = context
        self.config: Any = self.config_in(context.settings)

    @classmethod
    def config_in(cls, settings: MethodSettings) -> Any:  # noqa: ANN401 - the card's `config_class`
        """Return the method's own settings, or the defaults if the recipe has none."""
        config = settings.method.get(cls.card.section)
        return cls.card.config_class() if config is None else config

    def features(self, batch: Batch) -> Columns:
        """Return a table with a row for each image, stored once and reused by every item; columns are fp32, of any
        width.
        """
        raise NotImplementedError

    def accumulate(self, rows: Any) -> Tensors:  # noqa: ANN401 - a Batch, or the Columns of `features`
        """Return sums over these rows, which are added up over the training set in float64."""
        raise NotImplementedError

    def fit(self, sums: Tensors, rows: Iterator[Any]) -> Tensors:
        """Return the tensors that are fitted once a run.

        `sums` is empty for a method without `accumulate`; `rows` streams the training images, or the features, in order
        of idx, and reads them only if it is used.
        """
        raise NotImplementedError

    def fit_item(self, item: Item, fitted: Tensors, on_update: Callable[[int, float], None]) -> ItemState:
        """Return the tensors that are fitted for one item.

        `fitted` is what `fit` made, without it the sums, and without either it is empty. `on_update(step, loss)` shows
        progress.
        """
        raise NotImplementedError

    def fit_together(self, fitted: Tensors, item_states: Sequence[Tensors]) -> Tensors:
        """Return the tensors that are fitted once a run from those of all items; `load` gets them instead of those of
        `fit`.
        """
        raise NotImplementedError

    def in_sample(self, idx: np.ndarray) -> Bool[np.ndarray, " b"]:
        """Return which images `sample` is given, which depends on idx only."""
        raise NotImplementedError

    def sample(self, batch: Batch) -> Columns:
        """Return a table with a row for each image of the sample."""
        raise NotImplementedError

    def fit_screen(self, rows: Iterator[Any]) -> Tensors:
        """Return the tensors that are fitted once a run from the rows of `sample`; `load` gets them instead of those of
        `fit`.
        """
        raise NotImplementedError

    def load(self, fitted: Tensors, item_states: Sequence[Tensors]) -> None:  # noqa: B027 - not every method needs it
        """Prepare for scoring with the tensors of `fit` and those of `fit_item` for each item.

        Both are on the device; those of the items are in main memory if the method has `places_item_states`.
        """

    @classmethod
    def passes(cls, stage: MethodStage, settings: MethodSettings, *, num_images: int, num_items: int) -> Passes:
        """Return what a stage will cost, for `mucs-ray plan`; by default it costs nothing to speak of."""
        return Passes()

    @classmethod
    def written_bytes(
        cls, stage: MethodStage, settings: MethodSettings, *, model: DiffusionModel, num_images: int, num_items: int
    ) -> int:
        """Return about how many bytes a stage leaves in the run directory, for `mucs-ray plan`; by default only scores
        count.
        """
        return 4 * num_images * num_items if stage.hook == "score" else 0

    @classmethod
    def expectation(cls, facts: Mapping[str, float]) -> str:
        """Return a sentence on what to expect of the screen; the facts are the numbers that `fit_screen` made."""
        return ""

    def forwards(self, columns: Columns) -> int:
        """Return how many forward passes of the model these columns took, for the rate that is shown."""
        return 0

    @abstractmethod
    def score(self, rows: Any) -> Float[Tensor, "b i"]:  # noqa: ANN401 - a Batch, or the Columns of `features`
        """Return the influence of each image on each item.

        It raises RunFailed, naming the image, if a score is not finite.
        """

    def columns(self, rows: Any) -> Columns:  # noqa: ANN401 - a Batch, or the Columns of `features`
        """Return the columns that are stored for a scored batch, on the CPU.

        They are "score", or, for methods that compare losses, "skew" and "difference", of which the ranking takes the
        one that `rank.measure` names.
        """
        return {"score": self.score(rows).float().cpu()}
