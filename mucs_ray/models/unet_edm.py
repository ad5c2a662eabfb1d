"""The official UNet in pixels as a diffusion model: UNet-EDM and UNet-VP, which differ only in process and width.

Axes: b batch, *shape of an image.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn

from mucs_ray.diffusion.condition import Condition
from mucs_ray.diffusion.edm import EDM
from mucs_ray.diffusion.model import DiffusionModel, Selector
from mucs_ray.diffusion.process import Coefficients, Process
from mucs_ray.diffusion.rows import per_row
from mucs_ray.diffusion.vp_continuous import ContinuousVP
from mucs_ray.models.pixel_adapter import PixelAdapter
from mucs_ray.models.unet import Block, UNet
from mucs_ray.models.unet_config import UNetEDMConfig, UNetVPConfig
from mucs_ray.spaces.augment import distorted_and_told_of_flips

UNetSelector = Selector | Literal["weights"]
"""A choice of tensors. "mlp" stands for the blocks' convolutions, which work on each position and its neighbours;
"weights" is every tensor except the biases, which the released code unlearns.
"""
RESAMPLE_FILTER = "resample_filter"
"""The ending of constants that official files contain and that nothing reads."""


class UNetEDM(DiffusionModel):
    """A raw network F(scaled noisy, c_noise, condition, augmented) as an EDM denoiser.

    It reads two tensors of a condition: "condition", a vector, and "augmented", which is 1 where the image was
    distorted.
    """

    process: Process = EDM()

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one image."""
        shape: tuple[int, ...] = self.network.shape  # pyright: ignore[reportAssignmentType] - nn.Module's
        return shape

    def raw(
        self,
        noisy: Float[Tensor, "b *shape"],
        at: Coefficients,
        condition: Condition,
        stem: Any = None,  # noqa: ANN401 - there is no stem
    ) -> Float[Tensor, "b *shape"]:
        """Return F in the precision of `noisy`."""
        scaled = per_row(at.c_in, noisy) * noisy
        return self.network(scaled, at.time, condition.get("condition"), condition.get("augmented")).to(noisy.dtype)

    def nothing(self, num: int) -> Condition:
        """Return zero vectors, which leave only the bias of the network's embedding."""
        nothing: Callable[[int], Condition] = self.network.nothing  # pyright: ignore[reportAssignmentType] - nn.Module's
        return nothing(num)

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


def without_filters(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return an official file's tensors without the constants."""
    return {name: tensor for name, tensor in state.items() if not name.endswith(RESAMPLE_FILTER)}


class UNetEDMAdapter(PixelAdapter):
    """The adapter of a UNet-EDM, which builds it from a recipe or from a file of the authors' code."""

    spec_class = UNetEDMConfig
    augment = staticmethod(distorted_and_told_of_flips)

    def build(self) -> UNetEDM:
        """Build the model; its output is nearly zero at first."""
        return UNetEDM(UNet(self.spec))


class UNetVPAdapter(PixelAdapter):
    """The adapter of a UNet-VP, which builds it from a recipe or from a file of the authors' code."""

    spec_class = UNetVPConfig

    def build(self) -> UNetVP:
        """Build the model; its output is nearly zero at first."""
        return UNetVP(UNet(self.spec))
