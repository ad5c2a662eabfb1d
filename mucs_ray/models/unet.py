"""The UNet of UNet-EDM and UNet-VP (spec/backbones 1.3), with the official parameter names.

An encoder of residual blocks whose every output is kept, and a decoder whose blocks take them back, last first. The
last convolution of each residual branch starts near zero, so F is near 0 at initialisation.
Axes: b batch, c h w feature map, t positions of it, e embedding, d condition.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, dropout, interpolate, silu

from mucs_ray.models.dit import AugmentEmbed
from mucs_ray.models.unet_config import UNetConfig

NEAR_ZERO = 1e-5
LONGEST_PERIOD = 10_000


def xavier(layer: nn.Conv2d | nn.Linear, scale: float = 1.0) -> None:
    """Draw uniform weights of variance 2 scale^2 / (fan in + fan out), and set the bias to zero."""
    nn.init.xavier_uniform_(layer.weight, gain=scale)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def conv(cin: int, cout: int, kernel: int, scale: float = 1.0) -> nn.Conv2d:
    """Build a convolution that keeps the size of its input."""
    layer = nn.Conv2d(cin, cout, kernel, padding=kernel // 2)
    xavier(layer, scale)
    return layer


def linear(cin: int, cout: int) -> nn.Linear:
    """Build a linear layer that starts as the convolutions do."""
    layer = nn.Linear(cin, cout)
    xavier(layer)
    return layer


def group_norm(channels: int) -> nn.GroupNorm:
    """Build a normalisation in groups of at least four channels."""
    return nn.GroupNorm(min(32, channels // 4), channels, eps=1e-6)


def resampled(x: Float[Tensor, "b c h w"], by: float) -> Float[Tensor, "b c h2 w2"]:
    """Return the nearest pixel at twice the size, the mean of 2 x 2 pixels at half of it, or x itself."""
    if by == 1:
        return x
    return interpolate(x, scale_factor=by, mode="nearest") if by > 1 else avg_pool2d(x, 2)


class Block(nn.Module):
    """A residual block, resampled at its input, optionally followed by one head of self-attention."""

    def __init__(self, cin: int, cout: int, embedding: int, drop: float, *, resample: float, attends: bool) -> None:
        """Build the block; `resample` is 2, 1 or 1/2."""
        super().__init__()
        self.resample, self.drop = resample, drop
        self.norm0 = group_norm(cin)
        self.conv0 = conv(cin, cout, 3)
        self.affine = linear(embedding, cout)
        self.norm1 = group_norm(cout)
        self.conv1 = conv(cout, cout, 3, NEAR_ZERO)
        same = cin == cout and resample == 1
        self.skip = nn.Identity() if same else conv(cin, cout, 1)
        self.attends = attends
        if attends:
            self.norm2 = group_norm(cout)
            self.qkv = conv(cout, 3 * cout, 1, math.sqrt(0.2))
            self.proj = conv(cout, cout, 1, NEAR_ZERO)

    def forward(self, x: Float[Tensor, "b c h w"], embedding: Float[Tensor, "b e"]) -> Float[Tensor, "b c2 h2 w2"]:
        """Apply the block; both sums are scaled to keep their variance."""
        hidden = self.conv0(resampled(silu(self.norm0(x)), self.resample))
        hidden = hidden + self.affine(embedding)[:, :, None, None]
        hidden = self.conv1(dropout(silu(self.norm1(hidden)), self.drop, self.training))
        x = (hidden + self.skip(resampled(x, self.resample))) * math.sqrt(0.5)
        return (self.attention(x) + x) * math.sqrt(0.5) if self.attends else x

    def attention(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Attend; channel c's query, key and value are channels 3c, 3c + 1, 3c + 2, and weights are
        computed in fp32.
        """
        query, key, value = self.qkv(self.norm2(x)).unflatten(1, (-1, 3)).flatten(3).unbind(2)
        alike = torch.einsum("bct,bcs->bts", query.float(), (key / math.sqrt(key.shape[1])).float())
        weights = alike.softmax(dim=2).to(value.dtype)
        return self.proj(torch.einsum("bts,bcs->bct", weights, value).unflatten(2, x.shape[2:]))


class UNet(nn.Module):
    """The raw network F: (scaled noisy image, c_noise, condition, augmented) -> an image of outputs."""

    def __init__(self, config: UNetConfig) -> None:
        """Initialise the weights from torch's global generator; seed it to name the weights."""
        super().__init__()
        self.config = config
        width = config.channels * config.embedding_multiplier
        if config.condition_dim:
            self.map_label = linear(config.condition_dim, config.channels)
        self.map_augment = AugmentEmbed(config.channels)
        self.map_layer0 = linear(config.channels, width)
        self.map_layer1 = linear(width, width)
        self.enc, skip_channels = encoder(config)
        self.dec = decoder(config, skip_channels)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one image."""
        return 3, self.config.image_size, self.config.image_size

    def nothing(self, num: int) -> dict[str, Tensor]:
        """Return the null condition for `num` images."""
        width, device = self.config.condition_dim, self.map_augment.emb.weight.device
        return {"condition": torch.zeros(num, width, device=device)} if width else {}

    def embedding(
        self, level: Float[Tensor, " b"], condition: Float[Tensor, "b d"] | None, augmented: Int[Tensor, " b"] | None
    ) -> Float[Tensor, "b e"]:
        """Embed the level's waves, the condition and the flag by two layers; a null condition leaves only its bias."""
        half = self.config.channels // 2
        position = torch.arange(half, dtype=torch.float32, device=level.device) / (half - 1)
        angle = level[:, None] * ((1 / LONGEST_PERIOD) ** position).to(level.dtype)
        inner = torch.cat([angle.sin(), angle.cos()], dim=1)
        if self.config.condition_dim:
            if condition is None:
                condition = level.new_zeros(len(level), self.config.condition_dim)
            elif self.training:
                condition = condition * (torch.rand(len(level), 1, device=level.device) >= self.config.condition_drop)
            inner = inner + self.map_label(math.sqrt(self.config.condition_dim) * condition)
        if augmented is None:
            augmented = torch.zeros(len(level), dtype=torch.long, device=level.device)
        inner = inner + self.map_augment(augmented)
        return silu(self.map_layer1(silu(self.map_layer0(inner))))

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        level: Float[Tensor, " b"],
        condition: Float[Tensor, "b d"] | None = None,
        augmented: Int[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """Return an image of outputs.

        A `condition` of None or zero is the null condition; an unconditional network ignores it. An `augmented` of None
        is 0.
        """
        embedding = self.embedding(level, condition, augmented)
        skips: list[Tensor] = []
        for part in self.enc.values():
            x = part(x, embedding) if isinstance(part, Block) else part(x)
            skips.append(x)
        for name, part in self.dec.items():
            if name.endswith("_aux_norm"):
                x = silu(part(x))
            elif isinstance(part, Block):
                x = part(torch.cat([x, skips.pop()], dim=1) if "_block" in name else x, embedding)
            else:
                x = part(x)
        return x


def encoder(config: UNetConfig) -> tuple[nn.ModuleDict, list[int]]:
    """Return the parts in order, finest level first, and the number of output channels of each."""
    width = config.channels * config.embedding_multiplier
    side, cout = config.image_size, config.channels
    parts: dict[str, nn.Module] = {f"{side}x{side}_conv": conv(3, cout, 3)}
    skip_channels = [cout]
    for level, multiplier in enumerate(config.multipliers):
        side = config.image_size >> level
        if level:
            parts[f"{side}x{side}_down"] = Block(cout, cout, width, config.dropout, resample=0.5, attends=False)
            skip_channels.append(cout)
        for block in range(config.blocks):
            cin, cout = cout, config.channels * multiplier
            attends = side in config.attention_at
            parts[f"{side}x{side}_block{block}"] = Block(cin, cout, width, config.dropout, resample=1, attends=attends)
            skip_channels.append(cout)
    return nn.ModuleDict(parts), skip_channels


def decoder(config: UNetConfig, skip_channels: list[int]) -> nn.ModuleDict:
    """Return the parts in order, narrowest level first; of each level's blocks only the last attends."""
    width, drop = config.channels * config.embedding_multiplier, config.dropout
    deepest, skip_channels = len(config.multipliers) - 1, list(skip_channels)
    cout, parts = skip_channels[-1], dict[str, nn.Module]()
    for level in reversed(range(len(config.multipliers))):
        side = config.image_size >> level
        name = f"{side}x{side}"
        if level == deepest:
            parts[f"{name}_in0"] = Block(cout, cout, width, drop, resample=1, attends=True)
            parts[f"{name}_in1"] = Block(cout, cout, width, drop, resample=1, attends=False)
        else:
            parts[f"{name}_up"] = Block(cout, cout, width, drop, resample=2, attends=False)
        for block in range(config.blocks + 1):
            cin, cout = cout + skip_channels.pop(), config.channels * config.multipliers[level]
            attends = block == config.blocks and side in config.attention_at
            parts[f"{name}_block{block}"] = Block(cin, cout, width, drop, resample=1, attends=attends)
    side = config.image_size
    parts[f"{side}x{side}_aux_norm"] = group_norm(cout)
    parts[f"{side}x{side}_aux_conv"] = conv(cout, 3, 3, NEAR_ZERO)
    return nn.ModuleDict(parts)
