"""Tiny pipelines of every family, saved as diffusers saves them, with weights that depend only on their names."""

import gzip
from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from torch import nn

from mucs_ray.diffusion.noise import generator, normal

SIDE = 32
"""The side of the pictures; the VAE makes latents of 16 px."""
WIDTH, POOLED = 32, 24
TIME_IDS, TIME_WIDTH = 6, 8
BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def named_weights(module: nn.Module) -> Any:
    """Give a module weights without zeros that depend only on their names."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            mean = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            fan = parameter[0].numel() if parameter.ndim > 1 else 25
            parameter.copy_(mean + normal(generator(3, name), *parameter.shape) / fan**0.5)
    return module.eval().requires_grad_(False)


@cache
def vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return CLIP's tokens and merges, from the file that comes with open_clip."""
    from open_clip.tokenizer import bytes_to_unicode, default_bpe

    text = gzip.decompress(Path(default_bpe()).read_bytes()).decode()
    lines = text.split("\n")[1 : 49152 - 256 - 2 + 1]
    merges = [(first, second) for first, _, second in (line.partition(" ") for line in lines)]
    letters = list(bytes_to_unicode().values())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges)]
    return {token: number for number, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}, merges


@cache
def tokenizer() -> Any:
    from transformers import CLIPTokenizer

    tokens, merges = vocabulary()
    return CLIPTokenizer(vocab=tokens, merges=merges, model_max_length=77)


def text_encoder(*, projects: bool = False, layers: int = 3) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(vocabulary()[0]), hidden_size=WIDTH // 2, intermediate_size=32, num_hidden_layers=layers,
        num_attention_heads=2, projection_dim=POOLED, bos_token_id=49406, eos_token_id=49407, pad_token_id=49407,
    )  # fmt: skip
    return named_weights((CLIPTextModelWithProjection if projects else CLIPTextModel)(config))


def vae(scale: float = 0.18215) -> Any:
    from diffusers import AutoencoderKL

    return named_weights(
        AutoencoderKL(
            block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=1, latent_channels=4, norm_num_groups=4,
            scaling_factor=scale, sample_size=SIDE,
        )
    )  # fmt: skip


def unet(width: int, **more: Any) -> Any:
    from diffusers import UNet2DConditionModel

    return named_weights(
        UNet2DConditionModel(
            sample_size=SIDE // 2, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=width, attention_head_dim=2, **more,
        )
    )  # fmt: skip


def sdxl_unet() -> Any:
    return unet(
        WIDTH, addition_embed_type="text_time", addition_time_embed_dim=TIME_WIDTH,
        projection_class_embeddings_input_dim=POOLED + TIME_IDS * TIME_WIDTH,
    )  # fmt: skip


def sd(**scheduler: Any) -> Any:
    """Stable Diffusion 1 and 2."""
    from diffusers import PNDMScheduler, StableDiffusionPipeline

    return StableDiffusionPipeline(
        vae=vae(), text_encoder=text_encoder(), tokenizer=tokenizer(), unet=unet(WIDTH // 2),
        scheduler=PNDMScheduler(**BETAS, skip_prk_steps=True, steps_offset=1, **scheduler),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def sd_zero_snr() -> Any:
    """Stable Diffusion 2 with velocity and a table without signal at its end."""
    from diffusers import DDIMScheduler

    made = sd()
    made.register_modules(scheduler=DDIMScheduler(**BETAS, prediction_type="v_prediction", rescale_betas_zero_snr=True))
    return made


def sdxl() -> Any:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    return StableDiffusionXLPipeline(
        vae=vae(0.13025), text_encoder=text_encoder(), text_encoder_2=text_encoder(projects=True, layers=4),
        tokenizer=tokenizer(), tokenizer_2=tokenizer(), scheduler=EulerDiscreteScheduler(**BETAS),
        unet=sdxl_unet(),
    )  # fmt: skip


PIPELINES: dict[str, Callable[[], Any]] = {
    "sd-eps": sd,
    "sd-v": lambda: sd(prediction_type="v_prediction"),
    "sd-zero-snr": sd_zero_snr,
    "sdxl": sdxl,
}


@lru_cache
def saved(name: str) -> Path:
    """Save a pipeline once a process, and return its folder, which nobody may change."""
    folder = Path(mkdtemp(prefix="tiny-pipelines-")) / name
    PIPELINES[name]().save_pretrained(str(folder))
    return folder
