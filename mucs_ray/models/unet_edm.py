"""The official UNet in pixels as a diffusion model: UNet-EDM and UNet-VP, which differ in process and width only.

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
from mucs_ray.models.unet import Block, UNet
from mucs_ray.models.unet_config import UNetConfig

UNetSelector = Selector | Literal["weights"]
"""What is called mlp is the blocks' convolutions here, the work on each position and its neighbours; "weights" is every
tensor but the biases, which the released code unlearns.
"""
RESAMPLE_FILTER = "resample_filter"
"""Constants that official files carry, and that nothing is read from."""


class UNetEDM(DiffusionModel):
    """A raw network F(scaled noisy, c_noise, condition, augmented) as an EDM denoiser.

    Of a condition it reads "condition", a vector, and "augmented", which is 1 where the image was distorted.
    """

    process: Process = EDM()

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image."""
        shape: tuple[int, ...] = self.network.shape  # pyright: ignore[reportAssignmentType] - nn.Module's
        return shape

    def raw(
        self,
        noisy: Float[Tensor, "b *shape"],
        at: Coefficients,
        condition: Condition,
        stem: Any = None,  # noqa: ANN401 - there is no stem
    ) -> Float[Tensor, "b *shape"]:
        """F, in the precision of `noisy`."""
        scaled = per_row(at.c_in, noisy) * noisy
        return self.network(scaled, at.time, condition.get("condition"), condition.get("augmented")).to(noisy.dtype)

    def nothing(self, num: int) -> Condition:
        """A zero vector, of which the network keeps its bias."""
        nothing: Callable[[int], Condition] = self.network.nothing  # pyright: ignore[reportAssignmentType] - nn.Module's
        return nothing(num)

    def names(self, which: UNetSelector) -> list[str]:
        """The network's parameters that a method asks for."""
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
        """The residual ones, with their attention."""
        return [module for module in self.network.modules() if isinstance(module, Block)]


class UNetVP(UNetEDM):
    """The same on the continuous VP process: F predicts the noise."""

    process: Process = ContinuousVP()


def ending(network: nn.Module, *ends: str) -> list[str]:
    """The parameters whose names end so."""
    return [name for name, _ in network.named_parameters() if name.endswith(ends)]


def without_filters(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """An official file's tensors, less the constants."""
    return {name: tensor for name, tensor in state.items() if not name.endswith(RESAMPLE_FILTER)}


def untrained(config: UNetConfig, process: Literal["edm", "vp"]) -> UNetEDM:
    """With the weights that training starts from, drawn from torch's global generator."""
    return (UNetEDM if process == "edm" else UNetVP)(UNet(config))
