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
    """Makes everything that belongs to one model. It is made anew on each worker, from the spec alone."""

    spec_class: ClassVar[type[ModelSpec]]

    def __init__(self, spec: Any) -> None:  # noqa: ANN401 - a `spec_class`
        """`spec` is what the recipe says of the model."""
        self.spec = spec

    @abstractmethod
    def model(self, device: torch.device, weights: Weights | None = None) -> DiffusionModel:
        """The model with these weights, frozen, in eval mode, in fp32: whoever computes chooses the precision.

        Without weights: with the model's own, or, if it has none but those that training makes, with any. On the device
        "meta" only the names and shapes of its tensors count.
        """

    @abstractmethod
    def codec(self, device: torch.device) -> Codec:
        """The way from pictures to the model's z and back, for a worker that reads or shows images."""

    def trainer(self) -> TrainSpec | None:
        """How the model is trained, where `spec.trains`; None: it is attributed to only, and never trained again."""
        return None

    def untrained(self, seed: int, device: torch.device) -> DiffusionModel | None:
        """F0 of the run with this seed, the same for pretraining and every retraining; None if the model cannot be
        trained here.
        """
        return None

    @classmethod
    def read(cls, path: str, values: Mapping[str, Any]) -> tuple[ModelSpec, Weights]:
        """The spec and the weights in a file that is not of ours, as `--weights` names it; `values` are those that the
        recipe gives for [model]. InputError, in one line, if the file cannot be used.
        """
        raise InputError(f"{path}: weights for model.kind {cls.spec_class.kind} are files of ours only")
