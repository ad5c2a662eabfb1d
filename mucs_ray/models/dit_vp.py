"""DiT-VP in pixels as a diffusion model (spec/backbones 1.2): a DiT without registers, on the continuous VP process.

Axes: b batch, t tokens, w width, k condition channels, d condition.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mucs_ray.diffusion.model import Selector
from mucs_ray.diffusion.process import Process
from mucs_ray.diffusion.vp_continuous import ContinuousVP
from mucs_ray.models import official
from mucs_ray.models.adapter import Weights
from mucs_ray.models.dit import DiT, position_table
from mucs_ray.models.dit_config import DiTConfig, DiTVPConfig
from mucs_ray.models.dit_edm import DiTEDM
from mucs_ray.models.official_sizes import dit_vp_config_of
from mucs_ray.models.pixel_adapter import PixelAdapter
from mucs_ray.models.state_dict import check
from mucs_ray.spaces.augment import distorted_and_told_of_flips

CIFAR10 = DiTVPConfig(condition_dim=10)
CONDITION = "y_embedder.emb.weight"


class FixedPositions(nn.Module):
    """The position table without registers."""

    def __init__(self, grid: int, width: int) -> None:
        """Store the table; nothing is learned."""
        super().__init__()
        self.register_buffer("emb", position_table(grid, width))

    def forward(self, tokens: Float[Tensor, "b t w"]) -> Float[Tensor, "b t w"]:
        """Return the image's tokens."""
        return tokens + self.get_buffer("emb")


class LinearConditionEmbed(nn.Module):
    """One matrix over the condition vector.

    A zero vector, or one that is dropped in training, becomes a learned vector.
    """

    def __init__(self, dim: int, channels: int, drop: float) -> None:
        """Set `drop`, the probability of losing the condition in training."""
        super().__init__()
        self.drop = drop
        self.xdrop = nn.Parameter(torch.zeros(dim))
        self.emb = nn.Linear(dim, channels, bias=False)

    def forward(self, condition: Float[Tensor, "b d"]) -> Float[Tensor, "b k"]:
        """Return the embedding of the condition."""
        absent = condition.square().sum(dim=1) < 1e-8
        if self.training:
            absent = absent | (torch.rand(len(condition), device=condition.device) < self.drop)
        return self.emb(torch.where(absent[:, None], self.xdrop, condition))


class DiTForVP(DiT):
    """The raw network F, whose time input is 999 t."""

    def __init__(self, config: DiTConfig) -> None:
        """Build the network, which has no registers, whatever the config says."""
        config = replace(config, registers=0)
        super().__init__(config)
        self.pos_enc = FixedPositions(config.grid, config.width)
        if config.condition_dim:
            self.y_embedder = LinearConditionEmbed(
                config.condition_dim, config.condition_channels, config.condition_drop
            )


class DiTVP(DiTEDM):
    """The denoiser around F, which predicts the noise."""

    process: Process = ContinuousVP()

    def names(self, which: Selector) -> list[str]:
        """Return the names of the network's parameters that a method asks for."""
        inherited = super().names(which)
        learns_conditions = which in ("mlp", "blocks") and CONDITION in dict(self.network.named_parameters())
        return [*inherited, CONDITION] if learns_conditions else inherited


class DiTVPAdapter(PixelAdapter):
    """The adapter of a DiT-VP, which builds it from a recipe or from a file of the authors' code."""

    spec_class = DiTVPConfig
    augment = staticmethod(distorted_and_told_of_flips)

    def build(self) -> DiTVP:
        """Build the model; its output is zero at first."""
        return DiTVP(DiTForVP(self.spec))

    @classmethod
    def read(cls, path: str, values: Mapping[str, Any]) -> tuple[DiTVPConfig, Weights]:
        """Read the EMA weights in a checkpoint of the authors' code.

        The number of heads, which cannot be read off such a file, is `num_heads` of the values, else width / 64.
        """
        state = official.read(path, kind=DiTVPConfig.kind)
        config = dit_vp_config_of(state, path, num_heads=values.get("num_heads"))
        with torch.device("meta"):
            network = DiTForVP(config)
        check(state, network.state_dict(), "a DiT-VP", path)
        return config, state
