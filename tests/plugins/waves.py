"""A model of somebody else's: not pictures, not trainable here, and with weights of its own."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from mucs_ray.diffusion.model import DiffusionModel
from mucs_ray.diffusion.noise import generator, normal
from mucs_ray.models.adapter import Adapter, Weights
from mucs_ray.models.spec import ModelSpec
from mucs_ray.spaces.codec import Codec
from toy_models import Toy, VPNoise

KIND = "waves:Waves"


@dataclass(frozen=True, slots=True, kw_only=True)
class WavesConfig(ModelSpec):
    kind: ClassVar[str] = KIND
    channels: int = 2
    """How many waves a picture becomes."""
    loudness: float = 0.2


class Rows(Codec):
    """The brightness of each row of pixels, as a wave in `channels` copies."""

    def __init__(self, channels: int) -> None:
        self.channels = channels

    def encode(self, pictures: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b c l"]:
        wave = pictures.float().mean(dim=(1, 3)) / 127.5 - 1
        return wave[:, None].repeat(1, self.channels, 1)

    def decode(self, z: Float[Tensor, "b c l"]) -> Float[Tensor, "b 3 l l"]:
        brightness = (self.shown(z).mean(dim=1) + 1) / 2
        return brightness[:, None, :, None].repeat(1, 3, 1, z.shape[2])

    def shown(self, z: Float[Tensor, "b c l"]) -> Float[Tensor, "b c l"]:
        return z.clamp(-1, 1)


class Waves(Adapter):
    """A perceptron that predicts the noise in 8 values of each wave."""

    spec_class = WavesConfig

    def model(self, device: torch.device, weights: Weights | None = None) -> DiffusionModel:
        model = Toy((self.spec.channels, 8), VPNoise(), {"condition": (3,)})
        with torch.no_grad():
            for name, parameter in model.network.named_parameters():
                parameter.copy_(self.spec.loudness * normal(generator(3, name), *parameter.shape))
        if weights is not None:
            model.network.load_state_dict(weights)
        return model.to(device).eval().requires_grad_(False)

    def codec(self, device: torch.device) -> Rows:
        return Rows(self.spec.channels)


class Nameless(Waves):
    """Its spec says another kind."""


class Halfway(Adapter):
    """Makes no model."""

    spec_class = WavesConfig

    def codec(self, device: torch.device) -> Rows:
        return Rows(1)
