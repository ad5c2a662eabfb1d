"""A UNet2DModel in pixels as a diffusion model, on the VP process of its scheduler.

Axes: b batch, *shape of an image.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mucs_ray.diffusion.condition import Condition
from mucs_ray.diffusion.model import DiffusionModel
from mucs_ray.diffusion.process import Coefficients, Process
from mucs_ray.diffusion.rows import per_row
from mucs_ray.models.unet2d import Resnet, SelfAttention, UNet2DModel
from mucs_ray.models.unet2d_config import UNet2DConfig
from mucs_ray.models.unet_edm import UNetSelector, ending

CONVOLUTIONS = "conv1.weight", "conv2.weight"
ATTENTION = "to_q.weight", "to_k.weight", "to_v.weight"


class DDPM(DiffusionModel):
    """A diffusers UNet as a denoiser. It reads "condition", a vector with a 1 at the class, if it has classes."""

    network: UNet2DModel

    def __init__(self, network: UNet2DModel, process: Process) -> None:
        """Wrap `network`, which is not copied."""
        super().__init__(network)
        self.process = process

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one image."""
        config = self.network.config
        return config.in_channels, config.image_size, config.image_size

    def raw(
        self,
        noisy: Float[Tensor, "b *shape"],
        at: Coefficients,
        condition: Condition,
        stem: Any = None,  # noqa: ANN401 - there is no stem
    ) -> Float[Tensor, "b *shape"]:
        """Return the network's output in the precision of `noisy`, without a variance that it may also predict."""
        answer = self.network(per_row(at.c_in, noisy) * noisy, at.time, condition.get("condition"))
        return answer[:, : noisy.shape[1]].to(noisy.dtype)

    def nothing(self, num: int) -> Condition:
        """Return the condition of no class."""
        classes, device = self.network.config.num_classes, self.network.conv_in.weight.device
        return {"condition": torch.zeros(num, classes, device=device)} if classes else {}

    def names(self, which: UNetSelector) -> list[str]:
        """Return the names of the network's parameters that a method asks for."""
        match which:
            case "mlp":
                return ending(self.network, *CONVOLUTIONS)
            case "attention":
                return ending(self.network, *ATTENTION)
            case "blocks":
                return ending(self.network, *CONVOLUTIONS) + ending(self.network, *ATTENTION, "to_out.0.weight")
            case "weights":
                return ending(self.network, "weight")
            case "all":
                return [name for name, _ in self.network.named_parameters()]

    def blocks(self) -> Sequence[nn.Module]:
        """Return the residual blocks and the attention."""
        return [module for module in self.network.modules() if isinstance(module, Resnet | SelfAttention)]


def untrained(config: UNet2DConfig, process: Process) -> DDPM:
    """Build a model with the weights from which training starts, drawn from torch's global generator."""
    return DDPM(UNet2DModel(config), process)
