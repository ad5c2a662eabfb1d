"""The settings of pretraining and retraining; the defaults are the paper's CIFAR-10 values (spec 5)."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """The settings of one training. An "epoch" is `updates_per_epoch` updates, whatever the size of the data set."""

    updates: Annotated[int, Gt(0)] = 200_000
    """The largest number of updates; `patience` may end a training earlier."""
    updates_per_epoch: Annotated[int, Gt(0)] = 1000
    batch_size: Annotated[int, Gt(0)] = 128
    """The number of images per update, over all workers together."""
    learning_rate: Annotated[float, Gt(0)] = 1e-4
    warmup_epochs: Annotated[int, Ge(0)] = 10
    weight_decay: Annotated[float, Ge(0)] = 0.01
    ema_decay: Annotated[float, Ge(0), Le(1)] = 0.999
    augment: Annotated[float, Ge(0), Le(1)] = 0.12
    """The probability of each geometric distortion."""
    flip: bool = True
    """Whether every image is mirrored with probability 0.5."""
    patience: Annotated[int, Ge(0)] = 20
    """The number of epochs without a new best validation loss before training stops; 0 = never."""
    checkpoint: Literal["best", "last"] = "best"
    """The EMA weights that the later stages use."""
    precision: Precision = "fp32"
