"""UNet2DModel, the network of most pixel DDPMs (spec/backbones 2.3), with the parameter names of its saved files.

Every output on the way down is kept, and the blocks on the way up take them back, last first.
Axes: b batch, c h w feature map, t positions of it, e embedding, k classes.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad, scaled_dot_product_attention, silu

from mucs_ray.models.unet2d_config import UNet2DConfig

LONGEST_PERIOD = 10_000


class TimeEmbedding(nn.Module):
    """Waves of the time, made in fp32, through two layers."""

    def __init__(self, config: UNet2DConfig) -> None:
        """Make the embedding four times as wide as the finest level."""
        super().__init__()
        self.width, self.cos_first, self.shift = config.channels[0], config.cos_first, config.frequency_shift
        self.linear_1 = nn.Linear(self.width, 4 * self.width)
        self.linear_2 = nn.Linear(4 * self.width, 4 * self.width)

    def forward(self, time: Float[Tensor, " b"]) -> Float[Tensor, "b e"]:
        """Return the embedding of a time, which need not be an integer."""
        half = self.width // 2
        position = torch.arange(half, dtype=torch.float32, device=time.device) / (half - self.shift)
        angle = time.float()[:, None] * torch.exp(-math.log(LONGEST_PERIOD) * position)
        waves = [angle.cos(), angle.sin()] if self.cos_first else [angle.sin(), angle.cos()]
        return self.linear_2(silu(self.linear_1(torch.cat(waves, dim=1).to(self.linear_1.weight.dtype))))


class Resnet(nn.Module):
    """Residual block; the embedding is added between its convolutions."""

    def __init__(self, cin: int, cout: int, config: UNet2DConfig) -> None:
        """Build the block, of which unlearning changes `conv1` and `conv2`."""
        super().__init__()
        self.norm1 = nn.GroupNorm(config.groups, cin, eps=config.norm_eps)
        self.conv1 = nn.Conv2d(cin, cout, 3, padding=1)
        self.time_emb_proj = nn.Linear(4 * config.channels[0], cout)
        self.norm2 = nn.GroupNorm(config.groups, cout, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = nn.Conv2d(cout, cout, 3, padding=1)
        self.conv_shortcut = nn.Identity() if cin == cout else nn.Conv2d(cin, cout, 1)

    def forward(self, x: Float[Tensor, "b c h w"], embedding: Float[Tensor, "b e"]) -> Float[Tensor, "b c2 h w"]:
        """Return conv2(act(norm2(conv1(act(norm1(x))) + embedding))) + shortcut(x)."""
        hidden = self.conv1(silu(self.norm1(x))) + self.time_emb_proj(silu(embedding))[:, :, None, None]
        return self.conv2(self.dropout(silu(self.norm2(hidden)))) + self.conv_shortcut(x)


class SelfAttention(nn.Module):
    """Residual attention over all positions."""

    def __init__(self, channels: int, config: UNet2DConfig) -> None:
        """Build the matrices; `to_out` is in a list because of its saved name."""
        super().__init__()
        self.heads = channels // (config.head_width or channels)
        self.group_norm = nn.GroupNorm(config.groups, channels, eps=config.norm_eps)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return x + to_out(attention(group_norm(x)))."""
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)
        query, key, value = (
            layer(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (self.to_q, self.to_k, self.to_v)
        )
        mixed = scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return x + self.to_out[0](mixed).transpose(1, 2).unflatten(2, x.shape[2:])


class Downsample(nn.Module):
    """A convolution of stride 2."""

    def __init__(self, channels: int, padding: int) -> None:
        """Build the convolution; `padding` is 0 or 1."""
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        """Return half the size."""
        return self.conv(x if self.conv.padding != (0, 0) else pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """The nearest pixel at twice the size, and a convolution."""

    def __init__(self, channels: int) -> None:
        """Build the convolution, which keeps the number of channels."""
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        """Return twice the size."""
        return self.conv(interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The blocks of one size of feature map, and the step to the next size if there is one."""

    def __init__(self, widths: list[tuple[int, int]], config: UNet2DConfig, *, attends: bool) -> None:
        """Build the blocks; `widths` are the channels into and out of each."""
        super().__init__()
        self.resnets = nn.ModuleList(Resnet(cin, cout, config) for cin, cout in widths)
        self.attentions = nn.ModuleList(SelfAttention(cout, config) for _, cout in widths if attends)

    def layer(self, index: int, x: Float[Tensor, "b c h w"], embedding: Float[Tensor, "b e"]) -> Tensor:
        """Apply one block and its attention."""
        x = self.resnets[index](x, embedding)
        return self.attentions[index](x) if index < len(self.attentions) else x


class Down(Level):
    """A level on the way down."""

    def __init__(self, cin: int, cout: int, config: UNet2DConfig, *, attends: bool, last: bool) -> None:
        """Build the level; the last one is not halved."""
        widths = [(cin, cout)] + [(cout, cout)] * (config.layers - 1)
        super().__init__(widths, config, attends=attends)
        steps = [] if last else [Downsample(cout, config.downsample_padding)]
        self.downsamplers = nn.ModuleList(steps)

    def forward(self, x: Float[Tensor, "b c h w"], embedding: Float[Tensor, "b e"], skips: list[Tensor]) -> Tensor:
        """Apply the level and append every output to `skips`."""
        for index in range(len(self.resnets)):
            x = self.layer(index, x, embedding)
            skips.append(x)
        for step in self.downsamplers:
            x = step(x)
            skips.append(x)
        return x


class Up(Level):
    """A level on the way up."""

    def __init__(
        self, cin: int, cout: int, skip_channels: list[int], config: UNet2DConfig, *, attends: bool, last: bool
    ) -> None:
        """Build the level; `skip_channels` are the channels that its blocks take back, in order."""
        widths = [((cout if index else cin) + back, cout) for index, back in enumerate(skip_channels)]
        super().__init__(widths, config, attends=attends)
        self.upsamplers = nn.ModuleList([] if last else [Upsample(cout)])

    def forward(self, x: Float[Tensor, "b c h w"], embedding: Float[Tensor, "b e"], skips: list[Tensor]) -> Tensor:
        """Apply the level; each block sees x and the last remaining skip."""
        for index in range(len(self.resnets)):
            x = self.layer(index, torch.cat([x, skips.pop()], dim=1), embedding)
        for step in self.upsamplers:
            x = step(x)
        return x


class Mid(Level):
    """Two blocks of the narrowest size, with attention between them."""

    def __init__(self, channels: int, config: UNet2DConfig) -> None:
        """Build the level, whose second block has no attention."""
        super().__init__([(channels, channels)] * 2, config, attends=False)
        self.attentions = nn.ModuleList([SelfAttention(channels, config)] if config.attention_mid else [])

    def forward(self, x: Float[Tensor, "b c h w"], embedding: Float[Tensor, "b e"]) -> Float[Tensor, "b c h w"]:
        """Apply the level, which keeps the size."""
        return self.resnets[1](self.layer(0, x, embedding), embedding)


class UNet2DModel(nn.Module):
    """The raw network: (noisy image, time, class) -> what it predicts."""

    def __init__(self, config: UNet2DConfig) -> None:
        """Initialise the weights from torch's global generator; seed it to name the weights. They are not zero."""
        super().__init__()
        self.config = config
        widths = config.channels
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimeEmbedding(config)
        if config.num_classes:
            self.class_embedding = nn.Embedding(config.num_classes, 4 * widths[0])
        downs, ups, skip_channels = list[Down](), list[Up](), [widths[0]]
        for level, (width, attends) in enumerate(zip(widths, config.attention_down, strict=True)):
            last = level == len(widths) - 1
            downs.append(Down(widths[max(level - 1, 0)], width, config, attends=attends, last=last))
            skip_channels += [width] * (config.layers + (not last))
        for level in reversed(range(len(widths))):
            cin = widths[min(level + 1, len(widths) - 1)]
            back = [skip_channels.pop() for _ in range(config.layers + 1)]
            ups.append(Up(cin, widths[level], back, config, attends=config.attention_up[level], last=level == 0))
        self.down_blocks, self.mid_block, self.up_blocks = (
            nn.ModuleList(downs),
            Mid(widths[-1], config),
            nn.ModuleList(ups),
        )
        self.conv_norm_out = nn.GroupNorm(config.groups, widths[0], eps=config.norm_eps)
        self.conv_out = nn.Conv2d(widths[0], config.out_channels, 3, padding=1)

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        time: Float[Tensor, " b"],
        condition: Float[Tensor, "b k"] | None = None,
    ) -> Float[Tensor, "b c2 h w"]:
        """Apply the network. `condition` is 1 at the class; None or zero = no class; without classes it is ignored."""
        embedding = self.time_embedding(time)
        if self.config.num_classes and condition is not None:
            embedding = embedding + condition.to(embedding.dtype) @ self.class_embedding.weight
        x = self.conv_in(x)
        skips = [x]
        for level in self.down_blocks:
            x = level(x, embedding, skips)
        x = self.mid_block(x, embedding)
        for level in self.up_blocks:
            x = level(x, embedding, skips)
        return self.conv_out(silu(self.conv_norm_out(x)))
