"""A UNet2DModel in pixels as a diffusion model, on the VP process of its scheduler.

Axes: b batch, *shape of an image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mucs_ray.diffusion.condition import Condition
from mucs_ray.diffusion.model import DiffusionModel
from mucs_ray.diffusion.process import Coefficients, Process
from mucs_ray.diffusion.rows import per_row
from mucs_ray.diffusion.vp import VP
from mucs_ray.models import unet2d_folder
from mucs_ray.models.adapter import Weights
from mucs_ray.models.pixel_adapter import PixelAdapter
from mucs_ray.models.unet2d import Resnet, SelfAttention, UNet2DModel
from mucs_ray.models.unet2d_config import DDPMConfig, UNet2DConfig
from mucs_ray.models.unet_edm import UNetSelector, ending
from mucs_ray.spaces.augment import flipped_only
from mucs_ray.spaces.pixels import MEAN_SQUARE

CONVOLUTIONS = "conv1.weight", "conv2.weight"
ATTENTION = "to_q.weight", "to_k.weight", "to_v.weight"


class DDPM(DiffusionModel):
    """A diffusers UNet as a denoiser. It reads "condition", a vector with a 1 at the class, if it has classes."""

    network: UNet2DModel
    limit = 1.0

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


class DDPMAdapter(PixelAdapter):
    """The adapter of a UNet2DModel, which builds it from a recipe or from a folder of diffusers."""

    spec_class = DDPMConfig
    augment = staticmethod(flipped_only)

    def build(self) -> DDPM:
        """Build the model; its output is not zero at first."""
        return DDPM(UNet2DModel(self.spec), process_of(self.spec))

    @classmethod
    def read(cls, path: str, values: Mapping[str, Any]) -> tuple[DDPMConfig, Weights]:
        """Read a folder of diffusers. `prediction` of the values overrules the scheduler, which may be another's."""
        saved = unet2d_folder.load(path)
        told = {"prediction": values["prediction"]} if "prediction" in values else {}
        return spec_of(saved.network.config, saved.process, **told), saved.network.state_dict()


def process_of(spec: DDPMConfig) -> VP:
    """Return the process of a recipe, for pixels in [-1, 1]."""
    return VP(
        betas=spec.betas,
        prediction=spec.prediction,
        spacing=spec.spacing,
        offset=spec.steps_offset,
        second_moment=MEAN_SQUARE,
    )


def spec_of(network: UNet2DConfig, process: VP, **told: Any) -> DDPMConfig:  # noqa: ANN401 - fields of the spec
    """Return what a recipe says of a network and its process."""
    betas = process.betas
    read = {
        "prediction": process.prediction,
        "beta_schedule": betas.schedule,
        "timesteps": betas.steps,
        "beta_start": betas.first,
        "beta_end": betas.last,
        "trained_betas": betas.trained,
        "zero_snr": betas.zero_snr,
        "spacing": process.spacing,
        "steps_offset": process.offset,
    }
    return DDPMConfig(**asdict(network), **{**read, **told})
