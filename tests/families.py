"""The families of networks as tiny models, whose weights depend only on their names."""

from collections.abc import Callable
from dataclasses import replace

import torch

import tiny_models
from mucs_ray.diffusion.model import DiffusionModel
from mucs_ray.diffusion.noise import generator, normal
from mucs_ray.diffusion.vp import VP
from mucs_ray.diffusion.vp_config import Betas
from mucs_ray.models.ddpm import DDPM
from mucs_ray.models.dit_config import DiTVPConfig
from mucs_ray.models.dit_vp import DiTForVP, DiTVP
from mucs_ray.models.pipelines.model import TextUNet
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
SCALED = Betas(schedule="scaled_linear", first=0.00085, last=0.012)
COSINE = Betas(schedule="squaredcos_cap_v2")


def text_unet(name: str) -> TextUNet:
    """Build the network of a tiny pipeline on latents of 4 px, with captions of three tokens."""
    network = tiny_models.sdxl_unet() if name == "sdxl" else tiny_models.unet(tiny_models.WIDTH // 2)
    nothing = {"tokens": torch.zeros(3, network.config.cross_attention_dim)}
    if name == "sdxl":
        nothing |= {"pooled": torch.zeros(tiny_models.POOLED), "time_ids": torch.zeros(tiny_models.TIME_IDS)}
    prediction = "v_prediction" if name == "sd-v" else "epsilon"
    return TextUNet(network, VP(betas=SCALED, prediction=prediction), (4, 4, 4), lambda: nothing)


FAMILIES: dict[str, Callable[[], DiffusionModel]] = {
    "DiT-VP": lambda: DiTVP(DiTForVP(DIT)),
    "UNet-EDM": lambda: UNetEDM(UNet(UNET)),
    "UNet-VP": lambda: UNetVP(UNet(replace(UNET, condition_dim=0))),
    "DDPM": lambda: DDPM(UNet2DModel(UNET2D), VP(betas=COSINE)),
    "DDPM of classes, velocity": lambda: DDPM(
        UNet2DModel(replace(UNET2D, num_classes=5)), VP(prediction="v_prediction")
    ),
    "DDPM, image": lambda: DDPM(UNet2DModel(UNET2D), VP(prediction="sample")),
    "SD": lambda: text_unet("sd"),
    "SD, velocity": lambda: text_unet("sd-v"),
    "SDXL": lambda: text_unet("sdxl"),
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
    return {name: rows(name, tensor) for name, tensor in nothing.items()}


def rows(name: str, nothing: torch.Tensor) -> torch.Tensor:
    """Return a vector with a 1 in another place for each row, or tokens that differ."""
    if nothing.ndim > 2:
        return normal(generator(3, name), *nothing.shape)
    return torch.eye(nothing.shape[1])[torch.arange(len(nothing)) % nothing.shape[1]]
