"""What the adapters of networks in pixels have in common, which this package builds, trains and saves."""

from abc import abstractmethod
from typing import ClassVar

import torch

from mucs_ray.diffusion.model import DiffusionModel
from mucs_ray.diffusion.noise import name_torch_stream
from mucs_ray.models.adapter import Adapter, TrainSpec, Weights
from mucs_ray.spaces.augment import Augment, distorted
from mucs_ray.spaces.pixels import PIXELS, Pixels


class PixelAdapter(Adapter):
    """The adapter of a network in pixels; subclasses say how it is built."""

    augment: ClassVar[Augment] = staticmethod(distorted)
    """How pictures are distorted in training, and what the network is told of it."""

    @abstractmethod
    def build(self) -> DiffusionModel:
        """Build the model on torch's default device, with weights from torch's global generator."""

    def model(self, device: torch.device, weights: Weights | None = None) -> DiffusionModel:
        """Build the model with these weights, or with arbitrary ones if there are none."""
        with torch.device("meta" if device.type == "meta" else "cpu"):
            model = self.build()
        if weights is not None:
            model.network.load_state_dict(weights)
        return model.to(device).eval().requires_grad_(False)

    def codec(self, device: torch.device) -> Pixels:
        """Return the codec of pixels in [-1, 1]."""
        return PIXELS

    def trainer(self) -> TrainSpec:
        """Return the trainer that distorts pictures as this network was, or is, trained."""
        return TrainSpec(augment=self.augment)

    def untrained(self, seed: int, device: torch.device) -> DiffusionModel:
        """Build the model with the weights that "train/init" names."""
        name_torch_stream(seed, "train/init")
        return self.build().to(device)
