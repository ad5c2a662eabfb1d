"""What the engine asks of a kind of model: the model itself on a worker, and all that goes with it.

A kind is a `ModelSpec`, the settings under [model] of a recipe, and an `Adapter`, which makes a model of them.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from mucs_ray.diffusion.model import DiffusionModel
from mucs_ray.errors import InputError
from mucs_ray.models.spec import ModelSpec
from mucs_ray.spaces.augment import Augment
from mucs_ray.spaces.codec import Codec


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSpec:
    """How a model is trained here, beside what [train] of the recipe says."""

    augment: Augment
    """The distortion of z in training."""


Weights = Mapping[str, Tensor]
"""The network's tensors by name."""


class Adapter(ABC):
    """A maker of everything that belongs to one model. Each worker makes its own, from the spec alone."""

    spec_class: ClassVar[type[ModelSpec]]

    def __init__(self, spec: Any) -> None:  # noqa: ANN401 - a `spec_class`
        """Keep `spec`, the recipe's settings of the model."""
        self.spec = spec

    @abstractmethod
    def model(self, device: torch.device, weights: Weights | None = None) -> DiffusionModel:
        """Return the model with these weights, frozen, in eval mode, in fp32; the caller chooses the precision.

        Without weights the model has its own or, if it has none but those of training, arbitrary ones. On the device
        "meta" only the names and shapes of its tensors count.
        """

    @abstractmethod
    def codec(self, device: torch.device) -> Codec:
        """Return the way from pictures to the model's z and back, for a worker that reads or shows images."""

    def trainer(self) -> TrainSpec | None:
        """Return how the model is trained, where `spec.trains`.

        None for a model that is attributed but never trained.
        """
        return None

    def untrained(self, seed: int, device: torch.device) -> DiffusionModel | None:
        """Return F0 of the run with this seed, the same for pretraining and every retraining.

        None if this package cannot train the model.
        """
        return None

    @classmethod
    def read(cls, path: str, values: Mapping[str, Any]) -> tuple[ModelSpec, Weights]:
        """Read the spec and the weights in a file of another program, as `--weights` names it.

        `values` are those of the recipe under [model]. InputError, in one line, if the file cannot be used.
        """
        raise InputError(f"{path}: weights for model.kind {cls.spec_class.kind} are files of ours only")
