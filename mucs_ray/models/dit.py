"""DiT-EDM: the raw network F inside the denoiser (spec 3.2), with the official parameter names (spec 3.3).

Convolutional encoder -> patch tokens (+ registers) -> adaLN-zero transformer blocks -> pixels -> convolutional decoder.
Every residual branch and the last layer start at zero, so F = 0 at initialisation.
Axes: b batch, t tokens, w width, k condition channels, c h w image, d condition.
"""

import math
from typing import Literal, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle, scaled_dot_product_attention

from mucs_ray.models.dit_config import DiTConfig

FREQUENCIES = 128
DECODED_CHANNELS = 12


Module = TypeVar("Module", bound=nn.Module)


def zeroed(module: Module) -> Module:
    """Return the module with all its parameters set to zero."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class PatchConv(nn.Conv2d):
    """A convolution whose kernel equals its stride, as one matrix product (on a CPU up to 17 times faster)."""

    def __init__(self, cin: int, cout: int, rate: int) -> None:
        """Set kernel and stride to `rate`."""
        super().__init__(cin, cout, kernel_size=rate, stride=rate)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Compute the same as torch's own module."""
        rate = self.stride[0]
        patches = x if rate == 1 else pixel_unshuffle(x, rate)
        out = self.weight.flatten(1) @ patches.flatten(2)
        return out.unflatten(2, patches.shape[2:]) + bias_of(self)


class PatchConvTranspose(nn.ConvTranspose2d):
    """A transposed convolution whose kernel equals its stride, as one matrix product."""

    def __init__(self, cin: int, cout: int, rate: int) -> None:
        """Set kernel and stride to `rate`."""
        super().__init__(cin, cout, kernel_size=rate, stride=rate)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Compute the same as torch's own module."""
        rate = self.stride[0]
        patches = (self.weight.flatten(1).t() @ x.flatten(2)).unflatten(2, x.shape[2:])
        return (patches if rate == 1 else pixel_shuffle(patches, rate)) + bias_of(self)


def bias_of(conv: nn.Conv2d | nn.ConvTranspose2d) -> Float[Tensor, "c 1 1"]:
    """Return the bias of a convolution in a shape that can be added to a feature map."""
    assert conv.bias is not None
    return conv.bias[:, None, None]


class ConvBlock(nn.Module):
    """A pre-activation residual block whose first convolution and skip resample by r; `conv2` starts at zero."""

    def __init__(self, cin: int, cout: int, *, rate: int, kernel_size: int, up: bool) -> None:
        """Use transposed convolutions if `up`."""
        super().__init__()
        hidden = 2 * max(cin, cout)
        resample = PatchConvTranspose if up else PatchConv
        self.norm1 = nn.InstanceNorm2d(cin, eps=1e-5, affine=True)
        self.conv1 = resample(cin, hidden, rate)
        self.norm2 = nn.InstanceNorm2d(hidden, eps=1e-5, affine=True)
        self.conv2 = zeroed(nn.Conv2d(hidden, cout, kernel_size, padding=kernel_size // 2))
        same = cin == cout and rate == 1
        self.skip = nn.Identity() if same else resample(cin, cout, rate)
        self.act = nn.SiLU()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        """Return conv2(act(norm2(conv1(act(norm1(x)))))) + skip(x)."""
        hidden = self.conv1(self.act(self.norm1(x)))
        return self.conv2(self.act(self.norm2(hidden))) + self.skip(x)


class PatchEmbed(nn.Module):
    """A map from non-overlapping patches to tokens, row-major."""

    def __init__(self, channels: int, width: int, patch: int) -> None:
        """Set the side of a patch to `patch` pixels."""
        super().__init__()
        self.proj = PatchConv(channels, width, patch)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b t w2"]:
        """Return the tokens."""
        return self.proj(x).flatten(2).transpose(1, 2)


class Unpatch(nn.Module):
    """A map from tokens back to a feature map."""

    def __init__(self, channels: int, width: int, patch: int) -> None:
        """Set the inverse shape of PatchEmbed."""
        super().__init__()
        self.proj = PatchConvTranspose(width, channels, patch)

    def forward(self, tokens: Float[Tensor, "b t w"]) -> Float[Tensor, "b c h2 w2"]:
        """Return the feature map of a square grid of tokens."""
        batch, count, width = tokens.shape
        side = math.isqrt(count)
        return self.proj(tokens.transpose(1, 2).reshape(batch, width, side, side))


def position_table(grid: int, width: int) -> Float[Tensor, "1 t w"]:
    """Return the fixed 2-D sine-cosine table, row-major.

    The first half of the width encodes the column, the second the row.
    """
    quarter = width // 4
    omega = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    angle = torch.arange(grid, dtype=torch.float64)[:, None] * omega
    along = torch.cat([angle.sin(), angle.cos()], dim=1)
    column = along[None, :, :].expand(grid, grid, -1)
    row = along[:, None, :].expand(grid, grid, -1)
    return torch.cat([column, row], dim=2).reshape(1, grid * grid, width).float()


class Positions(nn.Module):
    """Adds the position table and prepends learned register tokens, which have no position."""

    def __init__(self, grid: int, width: int, registers: int) -> None:
        """Start registers at zero."""
        super().__init__()
        self.extra = nn.Parameter(torch.zeros(registers, width))
        self.register_buffer("emb", position_table(grid, width))

    def forward(self, tokens: Float[Tensor, "b t w"]) -> Float[Tensor, "b t2 w"]:
        """Return the registers, then the image's tokens."""
        registers = self.extra.expand(len(tokens), -1, -1)
        return torch.cat([registers, tokens + self.get_buffer("emb")], dim=1)


class NoiseEmbed(nn.Module):
    """An embedding of c_noise: Fourier features with exponentially spaced frequencies, then an MLP."""

    def __init__(self, channels: int) -> None:
        """Set `channels`, the width of the condition vector inside the network."""
        super().__init__()
        k = torch.arange(1, FREQUENCIES + 1, dtype=torch.float64)
        self.register_buffer("freq", (2 * math.pi * torch.expm1(k / FREQUENCIES) / math.expm1(1)).float())
        self.mlp = nn.Sequential(nn.Linear(2 * FREQUENCIES, channels), nn.SiLU(), nn.Linear(channels, channels))

    def forward(self, level: Float[Tensor, " b"]) -> Float[Tensor, "b k"]:
        """Return the embedding of the noise level."""
        angle = level[:, None] * self.get_buffer("freq")
        return self.mlp(torch.cat([angle.sin(), angle.cos()], dim=1))


class ConditionEmbed(nn.Module):
    """An MLP over the condition vector.

    A zero vector, or one that is dropped in training, becomes the learned null vector.
    """

    def __init__(self, dim: int, channels: int, *, drop: float, dropout: float) -> None:
        """Set `drop`, the probability of losing the condition in training."""
        super().__init__()
        self.drop = drop
        self.xdrop = nn.Parameter(torch.zeros(dim))
        hidden, out = nn.Linear(dim, channels), nn.Linear(channels, channels)
        self.emb_mlp = nn.Sequential(hidden, nn.SiLU(), nn.Dropout(dropout), out)

    def forward(self, condition: Float[Tensor, "b d"]) -> Float[Tensor, "b k"]:
        """Return the embedding of the condition."""
        absent = condition.square().sum(dim=1) < 1e-8
        if self.training:
            absent = absent | (torch.rand(len(condition), device=condition.device) < self.drop)
        return self.emb_mlp(torch.where(absent[:, None], self.xdrop, condition))


class AugmentEmbed(nn.Module):
    """An embedding that tells the network whether the image was distorted (0 or 1)."""

    def __init__(self, channels: int) -> None:
        """Create two learned vectors."""
        super().__init__()
        self.emb = nn.Embedding(2, channels)

    def forward(self, augmented: Int[Tensor, " b"]) -> Float[Tensor, "b k"]:
        """Return the embedding of the flag."""
        return self.emb(augmented)


class Adapter(nn.Module):
    """The adaLN-zero layer: `parts` modulation vectors from the condition; it starts at zero."""

    def __init__(self, channels: int, width: int, parts: int) -> None:
        """Make `parts` vectors of `width`."""
        super().__init__()
        self.parts = parts
        self.adapter = nn.Sequential(nn.SiLU(), zeroed(nn.Linear(channels, parts * width)))

    def forward(self, condition: Float[Tensor, "b k"]) -> tuple[Float[Tensor, "b 1 w"], ...]:
        """Return the modulation vectors, in order."""
        return self.adapter(condition)[:, None, :].chunk(self.parts, dim=2)


class Attention(nn.Module):
    """Multi-head self-attention without bias on qkv and without qk normalisation."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        """Apply `dropout` to the attention weights and to the output, in training."""
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "b t w"]) -> Float[Tensor, "b t w"]:
        """Attend over all tokens."""
        batch, count, width = x.shape
        query, key, value = self.qkv(x).view(batch, count, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        drop = self.dropout if self.training else 0.0
        mixed = scaled_dot_product_attention(query, key, value, dropout_p=drop)
        mixed = nn.functional.dropout(mixed.transpose(1, 2).reshape(batch, count, width), self.dropout, self.training)
        return self.proj(mixed)


class Block(nn.Module):
    """A transformer block with adaLN-zero in the order (gate, scale, shift), for attention and then for the MLP."""

    def __init__(self, config: DiTConfig) -> None:
        """Build the block; its MLP weights `mlp.0` and `mlp.3` are the ones that unlearning changes."""
        super().__init__()
        width = config.width
        self.norm1 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.attention = Attention(width, config.num_heads, config.dropout)
        self.norm2 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        inner = config.mlp_ratio * width
        expand, contract = nn.Linear(width, inner), nn.Linear(inner, width)
        self.mlp = nn.Sequential(expand, nn.GELU(approximate="tanh"), nn.Dropout(config.dropout), contract)
        self.adapter = Adapter(config.condition_channels, width, 6)

    def forward(self, x: Float[Tensor, "b t w"], condition: Float[Tensor, "b k"]) -> Float[Tensor, "b t w"]:
        """Return x + g1 Attn((1 + s1) LN(x) + b1), then the same around the MLP."""
        gate1, scale1, shift1, gate2, scale2, shift2 = self.adapter(condition)
        x = x + gate1 * self.attention((1 + scale1) * self.norm1(x) + shift1)
        return x + gate2 * self.mlp((1 + scale2) * self.norm2(x) + shift2)


class FinalNorm(nn.Module):
    """The last modulation, which has no linear layer."""

    def __init__(self, config: DiTConfig) -> None:
        """Create two vectors: scale and shift."""
        super().__init__()
        self.norm = nn.LayerNorm(config.width, eps=1e-6, elementwise_affine=False)
        self.adapter = Adapter(config.condition_channels, config.width, 2)

    def forward(self, x: Float[Tensor, "b t w"], condition: Float[Tensor, "b k"]) -> Float[Tensor, "b t w"]:
        """Return (1 + s) LN(x) + b."""
        scale, shift = self.adapter(condition)
        return (1 + scale) * self.norm(x) + shift


class PixelLinear(nn.Module):
    """A bias-free linear map of the channels of each pixel; it starts at zero."""

    def __init__(self, cin: int, cout: int) -> None:
        """Create the matrix, which is 12 -> 3 in every published model."""
        super().__init__()
        self.proj = zeroed(nn.Linear(cin, cout, bias=False))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h w"]:
        """Return the image."""
        return (self.proj.weight @ x.flatten(2)).unflatten(2, x.shape[2:])


class DiT(nn.Module):
    """The raw network F: (scaled noisy image, c_noise, condition, augmented) -> output of unit variance."""

    def __init__(self, config: DiTConfig) -> None:
        """Initialise the weights from torch's global generator; seed it to name the weights."""
        super().__init__()
        self.config = config
        (ch0, ch1), (r0, r1), kernel = config.channels, config.strides, config.kernel_size
        self.encoder = nn.Sequential(
            ConvBlock(3, ch0, rate=r0, kernel_size=kernel, up=False),
            ConvBlock(ch0, ch1, rate=r1, kernel_size=kernel, up=False),
        )
        self.decoder = nn.Sequential(
            ConvBlock(ch1, ch0, rate=r1, kernel_size=kernel, up=True),
            ConvBlock(ch0, DECODED_CHANNELS, rate=r0, kernel_size=kernel, up=True),
        )
        self.last = PixelLinear(DECODED_CHANNELS, 3)
        self.x_embedder = PatchEmbed(ch1, config.width, config.patch_size)
        self.pos_enc = Positions(config.grid, config.width, config.registers)
        self.s_embedder = NoiseEmbed(config.condition_channels)
        if config.condition_dim:
            self.y_embedder = ConditionEmbed(
                config.condition_dim,
                config.condition_channels,
                drop=config.condition_drop,
                dropout=config.dropout,
            )
        self.a_embedder = AugmentEmbed(config.condition_channels)
        self.dit_backbone = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.dit_final = FinalNorm(config)
        self.unpatchify = Unpatch(ch1, config.width, config.patch_size)

    def nothing(self, num: int) -> dict[str, Tensor]:
        """Return the null condition for `num` images."""
        width, device = self.config.condition_dim, self.a_embedder.emb.weight.device
        return {"condition": torch.zeros(num, width, device=device)} if width else {}

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one image."""
        return 3, self.config.image_size, self.config.image_size

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        level: Float[Tensor, " b"],
        condition: Float[Tensor, "b d"] | None = None,
        augmented: Int[Tensor, " b"] | None = None,
        tokens: Float[Tensor, "b t w"] | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """Return the output of unit variance.

        A `condition` of None or zero is the null condition; an unconditional network ignores it. An `augmented` of None
        is 0. `tokens` is stem(x), if it is already known.
        """
        if augmented is None:
            augmented = torch.zeros(len(x), dtype=torch.long, device=x.device)
        inner = self.s_embedder(level) + self.a_embedder(augmented)
        if self.config.condition_dim:
            if condition is None:
                condition = x.new_zeros(len(x), self.config.condition_dim)
            inner = inner + self.y_embedder(condition)
        if tokens is None:
            tokens = self.stem(x)
        for block in self.dit_backbone:
            tokens = block(tokens, inner)
        tokens = self.dit_final(tokens, inner)[:, self.config.registers :]
        return self.last(self.decoder(self.unpatchify(tokens)))

    def stem(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b t w"]:
        """Map an image to tokens, on which noise level, condition and MUCS unlearning have no influence."""
        return self.pos_enc(self.x_embedder(self.encoder(x)))


STEM = ("encoder.", "x_embedder.", "pos_enc.")
"""The prefixes of the stem's tensor names."""


def repeated_modules(network: nn.Module) -> list[nn.Module]:
    """Return the modules worth compiling, which do nearly all of the work.

    They are of few kinds, and each kind is compiled once.
    """
    return [module for module in network.modules() if isinstance(module, Block | ConvBlock)]


def unlearned_names(network: nn.Module) -> list[str]:
    """Return the names of the tensors that MUCS unlearning changes (spec 3.3, bold).

    These are the MLP weight matrices of the blocks and of the condition.
    """
    ends = (".mlp.0.weight", ".mlp.3.weight", ".emb_mlp.0.weight", ".emb_mlp.3.weight")
    starts = ("dit_backbone.", "y_embedder.")
    return [name for name, _ in network.named_parameters() if name.startswith(starts) and name.endswith(ends)]


def attention_names(network: nn.Module, *layers: Literal["qkv", "proj"]) -> list[str]:
    """Return the names of the blocks' attention weight matrices of these layers.

    U-C4 unlearns them beside the MLPs (spec 8).
    """
    ends = tuple(f".attention.{layer}.weight" for layer in layers)
    return [name for name, _ in network.named_parameters() if name.startswith("dit_backbone.") and name.endswith(ends)]
