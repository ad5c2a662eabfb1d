"""The families of networks as tiny models, whose weights depend only on their names."""

from collections.abc import Callable
from dataclasses import replace

import torch

from mucs_ray.diffusion.model import DiffusionModel
from mucs_ray.diffusion.noise import generator, normal
from mucs_ray.diffusion.vp import VP
from mucs_ray.diffusion.vp_config import Betas
from mucs_ray.models.ddpm import DDPM
from mucs_ray.models.dit_config import DiTVPConfig
from mucs_ray.models.dit_vp import DiTForVP, DiTVP
from mucs_ray.models.unet import UNet
from mucs_ray.models.unet2d import UNet2DModel
from mucs_ray.models.unet2d_config import UNet2DConfig
from mucs_ray.models.unet_config import UNetConfig
from mucs_ray.models.unet_edm import UNetEDM, UNetVP

DIT = DiTVPConfig(
    image_size=8, kernel_size=3, width=32, num_heads=2, depth=2, registers=0, condition_channels=16, condition_dim=5
)
UNET = UNetConfig(
    image_size=8, channels=8, multipliers=(1, 2), embedding_multiplier=2, blocks=2, attention_at=(4,), condition_dim=5
)
UNET2D = UNet2DConfig(
    image_size=8,
    channels=(8, 16),
    layers=1,
    attention_down=(False, True),
    attention_up=(False, True),
    head_width=4,
    groups=4,
)
COSINE = Betas(schedule="squaredcos_cap_v2")

FAMILIES: dict[str, Callable[[], DiffusionModel]] = {
    "DiT-VP": lambda: DiTVP(DiTForVP(DIT)),
    "UNet-EDM": lambda: UNetEDM(UNet(UNET)),
    "UNet-VP": lambda: UNetVP(UNet(replace(UNET, condition_dim=0))),
    "DDPM": lambda: DDPM(UNet2DModel(UNET2D), VP(betas=COSINE)),
    "DDPM of classes, velocity": lambda: DDPM(
        UNet2DModel(replace(UNET2D, num_classes=5)), VP(prediction="v_prediction")
    ),
    "DDPM, image": lambda: DDPM(UNet2DModel(UNET2D), VP(prediction="sample")),
}


def family(name: str) -> DiffusionModel:
    """Build a frozen model without zero weights, although training starts some of them at zero."""
    model = FAMILIES[name]().eval().requires_grad_(False)
    for weight, parameter in model.network.named_parameters():
        mean = 1.0 if "norm" in weight and weight.endswith("weight") else 0.0
        parameter.copy_(mean + 0.2 * normal(generator(3, weight), *parameter.shape))
    return model


def classes(model: DiffusionModel, num: int) -> dict[str, torch.Tensor]:
    """Return conditions of `num` images of different classes; none if the model reads no condition."""
    nothing = model.nothing(num)
    return {name: torch.eye(tensor.shape[1])[torch.arange(num) % tensor.shape[1]] for name, tensor in nothing.items()}
