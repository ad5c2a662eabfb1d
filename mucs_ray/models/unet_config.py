"""The shape of the official UNet, separate from the network so that a recipe can be read without torch."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class UNetConfig:
    """The shape of the network; the defaults are the paper's CIFAR-10 model for EDM, and that for VP is 192 channels
    wide.
    """

    image_size: int = 32
    channels: int = 128
    multipliers: tuple[int, ...] = (2, 2, 2)
    """The width of each level in multiples of `channels`, the finest first."""
    embedding_multiplier: int = 4
    blocks: int = 4
    """The number of blocks in each level of the encoder; the decoder has one more."""
    attention_at: tuple[int, ...] = (16,)
    """The sides of the feature maps whose blocks attend; the narrowest level of the decoder always does."""
    condition_dim: int = 0
    """The width of the condition vector; 0 = unconditional."""
    condition_drop: float = 0.1
    dropout: float = 0.1
