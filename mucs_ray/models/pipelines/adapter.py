"""The adapter of the kind "diffusers": a pipeline's folder becomes a model and a codec on a worker."""

from dataclasses import replace
from functools import lru_cache

import torch
from torch import nn

from mucs_ray.diffusion.condition import Condition
from mucs_ray.diffusion.vp import VP
from mucs_ray.models.adapter import Adapter, Weights
from mucs_ray.models.pipelines.components import build_network, opened
from mucs_ray.models.pipelines.config import LORA, PipelineConfig
from mucs_ray.models.pipelines.folder import PipelineFolder
from mucs_ray.models.pipelines.latents import LatentCodec
from mucs_ray.models.pipelines.lora import Branches, opened_lora, put_on
from mucs_ray.models.pipelines.model import TextUNet
from mucs_ray.models.scheduler_config import process_of


class PipelineAdapter(Adapter):
    """The adapter of pipelines whose network is a UNet that reads text."""

    spec_class = PipelineConfig

    @property
    def folder(self) -> PipelineFolder:
        """The folder, whose parts are those of the recipe."""
        return opened(self.spec.path, tuple(sorted(self.spec.digests.items())))

    def model(self, device: torch.device, weights: Weights | None = None) -> TextUNet:
        """Build the model, with the folder's weights if no others are given."""
        network = build_network(self.folder, device, weights, self.extend).to(device)
        return TextUNet(network, self.process(), self.shape(), lambda: self.nothing(device))

    def extend(self, network: nn.Module) -> None:
        """Put on what the recipe's LoRA has for the denoising network."""
        put_on(network, self.branches.get("unet", {}), self.spec.lora)

    @property
    def branches(self) -> Branches:
        """What the recipe's LoRA holds; nothing without one."""
        spec = self.spec
        return opened_lora(spec.lora, spec.digests.get(LORA, ""), spec.family)

    def codec(self, device: torch.device) -> LatentCodec:
        """Return the codec of the pipeline's VAE and text encoders, of which a process has one a device."""
        spec = self.spec
        digests = tuple(sorted(spec.digests.items()))
        return shared_codec(spec.path, digests, str(device), spec.image_size, spec.caption, spec.clip_skip, spec.lora)

    def process(self) -> VP:
        """Return the process for which the network was trained, for latents that are scaled to a mean square of 1."""
        read = process_of(self.folder.configs["scheduler"], f"{self.spec.path}/scheduler")
        told = {} if self.spec.prediction == "scheduler" else {"prediction": self.spec.prediction}
        return replace(read, **told)

    def shape(self) -> tuple[int, ...]:
        """Return the shape of one latent."""
        return self.codec(torch.device("cpu")).shape

    def nothing(self, device: torch.device) -> Condition:
        """Return the null condition of one picture; on "meta", where only shapes count, no encoder is loaded."""
        if device.type != "meta":
            return self.codec(device).nothing()
        configs = self.folder.configs
        length = configs["text_encoder"].get("max_position_embeddings", 77)
        tokens = {"tokens": torch.zeros(length, configs["unet"].get("cross_attention_dim", 768))}
        if "text_encoder_2" not in configs:
            return tokens
        width = configs["text_encoder_2"].get("projection_dim", 1280)
        return {**tokens, "pooled": torch.zeros(width), "time_ids": torch.zeros(6)}


@lru_cache(maxsize=4)
def shared_codec(
    path: str, digests: tuple[tuple[str, str], ...], device: str, side: int, caption: str, clip_skip: int, lora: str
) -> LatentCodec:
    """Return the codec for these settings, loaded once a process."""
    folder = opened(path, digests)
    branches = opened_lora(lora, dict(digests).get(LORA, ""), folder.family.name)
    return LatentCodec(folder, torch.device(device), side=side, caption=caption, clip_skip=clip_skip, branches=branches)
