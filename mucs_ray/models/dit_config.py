"""The shape of a DiT-EDM, separate from the network so that a recipe can be read without torch."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class DiTConfig:
    """The shape of the network; the defaults are the paper's CIFAR-10 model."""

    image_size: int = 32
    channels: tuple[int, int] = (4, 4)
    strides: tuple[int, int] = (1, 1)
    kernel_size: int = 5
    patch_size: int = 2
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: int = 4
    registers: int = 32
    condition_channels: int = 256
    condition_dim: int = 0
    """The width of the condition vector; 0 = unconditional."""
    condition_drop: float = 0.1
    dropout: float = 0.1

    @property
    def grid(self) -> int:
        """The number of tokens along one side of the image."""
        return self.image_size // (self.strides[0] * self.strides[1] * self.patch_size)
