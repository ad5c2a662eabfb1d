"""What every attribution method speaks of: generated items, and the contract of a method.

A method is a subclass of `Attributor` with a card. Only `score` is needed; each further hook that the card lists
becomes a stage of the run, with its own files, progress and resumption. Hooks do no I/O and know nothing of Ray.

Axes: b training images, i items, c h w image, d condition.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mucs_ray.attribution.card import MethodCard, MethodStage
from mucs_ray.attribution.config import (
    AbUConfig,
    DASConfig,
    DTRAKConfig,
    ForwardINFConfig,
    RankConfig,
    ScoreConfig,
    ScreenConfig,
    UnlearnConfig,
)
from mucs_ray.diffusion.batch import Batch
from mucs_ray.diffusion.denoiser import EDMDenoiser
from mucs_ray.models.dit import DiTConfig
from mucs_ray.training.config import TrainConfig

Tensors = dict[str, Tensor]
Columns = dict[str, Tensor]
"""A table with a row an image: every tensor has b rows; "idx" is among them when a hook is given one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One generated image to explain; `idx` is the test image that lent its condition and names its noise (spec 6)."""

    number: int
    idx: int
    condition: Float[Tensor, " d"] | None
    image: Float[Tensor, "c h w"]
    """Unclamped."""


@runtime_checkable
class Knobs(Protocol):
    """The sections of a recipe that methods read; `mucs_ray.config.Recipe` has them."""

    @property
    def seed(self) -> int:
        """Of the run: what is random is drawn from it and a name."""
        ...

    @property
    def model(self) -> DiTConfig:
        """Shape of the network."""
        ...

    @property
    def train(self) -> TrainConfig:
        """How it was trained."""
        ...

    @property
    def unlearn(self) -> UnlearnConfig:
        """Of MUCS."""
        ...

    @property
    def score(self) -> ScoreConfig:
        """Of all methods that compare losses."""
        ...

    @property
    def screen(self) -> ScreenConfig:
        """Of MUCS with fewer forwards."""
        ...

    @property
    def rank(self) -> RankConfig:
        """How scores become lists."""
        ...

    @property
    def forward_inf(self) -> ForwardINFConfig:
        """Of Forward-INF."""
        ...

    @property
    def abu(self) -> AbUConfig:
        """Of AbU."""
        ...

    @property
    def dtrak(self) -> DTRAKConfig:
        """Of D-TRAK."""
        ...

    @property
    def das(self) -> DASConfig:
        """Of DAS."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a method works with, in a worker."""

    knobs: Knobs
    device: torch.device
    num_images: int
    """Size of the training set."""
    items: Sequence[Item] = ()
    """All that are attributed; empty in hooks of a stage that does not read them."""
    denoiser: EDMDenoiser | None = None
    """F1, frozen, in eval mode, on the device; None in hooks of a stage that does not use it. Never change it."""
    batches: Callable[[str, int], Callable[[int], Batch]] | None = None
    """batches(stream name, size)(step): training images in a shuffled order that belongs to the name; in `prepare` and
    `adapt` only."""
    encode: Callable[[Float[Tensor, "b c h w"]], Float[Tensor, "b d"]] | None = None
    """Images in [0, 1] to vectors of length 1, by the pretrained network that the method names as its `encoder`."""

    @property
    def model(self) -> EDMDenoiser:
        """F1, for a hook that cannot do without it."""
        assert self.denoiser is not None, "this stage of the method does not say that it uses the model"
        return self.denoiser


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapted:
    """What `adapt` made for one item, and facts (JSON values) for the report."""

    tensors: Tensors
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Passes:
    """What a stage of a method costs, in passes of one image through the model."""

    forwards: int = 0
    backwards: int = 0
    """Each with the forward before it."""


class Attributor(ABC):
    """One method. Scores are comparable within an item only; higher = more influential.

    Hooks run in this order, each only if the card lists it, and each sees what the earlier ones made:
    `features` (a table row an image, kept for all items), `total` (sums over the training set), `prepare` (once a
    run), `adapt` (once an item); after `load`, `sample` (a table row for each image of a random sample), `bounds` (once
    a run, from that table), and, after `load` with these, the scorer: `columns`, which calls `score`.
    Where there are features, `total` and `score` get their rows instead of images.
    """

    card: ClassVar[MethodCard]

    def __init__(self, setting: Setting) -> None:
        """Once a worker."""
        self.setting = setting

    def features(self, batch: Batch) -> Columns:
        """A table row an image, stored once and reused by every item; fp32 columns of any width."""
        raise NotImplementedError

    def total(self, rows: Any) -> Tensors:  # noqa: ANN401 - a Batch, or the Columns of `features`
        """Sums over these rows; they are added up over the training set in float64."""
        raise NotImplementedError

    def prepare(self, total: Tensors, rows: Iterator[Any]) -> Tensors:
        """Once a run. `total` is empty for a method without that hook; `rows` streams the training images, or the
        features, in order of idx, and reads them only if it is used.
        """
        raise NotImplementedError

    def adapt(self, item: Item, prepared: Tensors, on_update: Callable[[int, float], None]) -> Adapted:
        """Once an item; `prepared` is what `prepare` made, or without it the sums, or empty without either.
        `on_update(step, loss)` shows progress.
        """
        raise NotImplementedError

    def in_sample(self, idx: np.ndarray) -> Bool[np.ndarray, " b"]:
        """Which images `sample` is given; depends on idx only."""
        raise NotImplementedError

    def sample(self, batch: Batch) -> Columns:
        """A table row an image of the sample."""
        raise NotImplementedError

    def bounds(self, rows: Iterator[Any]) -> Tensors:
        """Once a run, from the rows of `sample`; `load` gets it instead of what `prepare` made."""
        raise NotImplementedError

    def load(self, prepared: Tensors, adapted: Sequence[Tensors]) -> None:  # noqa: B027 - not every method needs it
        """Before scoring: what `prepare` made, and what `adapt` made for each item, on the device."""

    @classmethod
    def passes(cls, stage: MethodStage, knobs: Knobs, *, num_images: int, num_items: int) -> Passes:
        """What a stage will cost, for `mucs-ray plan`; by default nothing to speak of."""
        return Passes()

    def forwards(self, columns: Columns) -> int:
        """Forward passes of the model that these columns took, for the rate that is shown."""
        return 0

    @abstractmethod
    def score(self, rows: Any) -> Float[Tensor, "b i"]:  # noqa: ANN401 - a Batch, or the Columns of `features`
        """Influence of each image on each item. RunFailed, naming the image, for what is not finite."""

    def columns(self, rows: Any) -> Columns:  # noqa: ANN401 - a Batch, or the Columns of `features`
        """What is stored of a scored batch, on the CPU: "score"; of methods that compare losses, "skew" and
        "difference", of which the ranking takes what `rank.measure` says.
        """
        return {"score": self.score(rows).float().cpu()}
