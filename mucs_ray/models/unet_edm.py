"""The official UNet in pixels as a diffusion model: UNet-EDM and UNet-VP, which differ only in process and width."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn

from mucs_ray.diffusion.edm import EDM
from mucs_ray.diffusion.model import Selector
from mucs_ray.diffusion.process import Process
from mucs_ray.diffusion.vp_continuous import ContinuousVP
from mucs_ray.models import official
from mucs_ray.models.adapter import Weights
from mucs_ray.models.official_sizes import unet_config_of
from mucs_ray.models.pixel_adapter import PixelAdapter
from mucs_ray.models.pixel_model import PixelModel
from mucs_ray.models.state_dict import check
from mucs_ray.models.unet import Block, UNet
from mucs_ray.models.unet_config import UNetConfig, UNetEDMConfig, UNetVPConfig
from mucs_ray.spaces.augment import distorted_and_told_of_flips

UNetSelector = Selector | Literal["weights"]
"""A choice of tensors. "mlp" stands for the blocks' convolutions, which work on each position and its neighbours;
"weights" is every tensor except the biases, which the released code unlearns.
"""


class UNetEDM(PixelModel):
    """An EDM denoiser around the UNet, where only a bias is left of an unknown condition."""

    process: Process = EDM()

    def names(self, which: UNetSelector) -> list[str]:
        """Return the names of the network's parameters that a method asks for."""
        convolutions = ending(self.network, "conv0.weight", "conv1.weight", "map_label.weight")
        match which:
            case "mlp":
                return convolutions
            case "attention":
                return ending(self.network, "qkv.weight")
            case "blocks":
                return convolutions + ending(self.network, "qkv.weight", "proj.weight")
            case "weights":
                return ending(self.network, "weight")
            case "all":
                return [name for name, _ in self.network.named_parameters()]

    def blocks(self) -> Sequence[nn.Module]:
        """Return the residual blocks, with their attention."""
        return [module for module in self.network.modules() if isinstance(module, Block)]


class UNetVP(UNetEDM):
    """The same network on the continuous VP process, where F predicts the noise."""

    process: Process = ContinuousVP()


def ending(network: nn.Module, *ends: str) -> list[str]:
    """Return the names of the parameters that end so."""
    return [name for name, _ in network.named_parameters() if name.endswith(ends)]


def read(path: str, config_class: type[UNetEDMConfig] | type[UNetVPConfig]) -> tuple[UNetConfig, Weights]:
    """Read the EMA weights in a checkpoint of the authors' code, which both kinds of UNet save under the same names."""
    state = official.read(path, kind=config_class.kind)
    config = unet_config_of(state, path, config_class)
    with torch.device("meta"):
        network = UNet(config)
    check(state, network.state_dict(), f"a {config.label}", path)
    return config, state


class UNetEDMAdapter(PixelAdapter):
    """The adapter of a UNet-EDM, which builds it from a recipe or from a file of the authors' code."""

    spec_class = UNetEDMConfig
    augment = staticmethod(distorted_and_told_of_flips)

    def build(self) -> UNetEDM:
        """Build the model; its output is nearly zero at first."""
        return UNetEDM(UNet(self.spec), EDM(self.spec.sigma_data))

    @classmethod
    def read(cls, path: str, values: Mapping[str, Any]) -> tuple[UNetConfig, Weights]:
        """Read a file of the authors' code."""
        return read(path, UNetEDMConfig)


class UNetVPAdapter(PixelAdapter):
    """The adapter of a UNet-VP, which builds it from a recipe or from a file of the authors' code."""

    spec_class = UNetVPConfig

    def build(self) -> UNetVP:
        """Build the model; its output is nearly zero at first."""
        return UNetVP(UNet(self.spec))

    @classmethod
    def read(cls, path: str, values: Mapping[str, Any]) -> tuple[UNetConfig, Weights]:
        """Read a file of the authors' code."""
        return read(path, UNetVPConfig)
