"""The shape of a UNet2DModel, apart from the network, so that a recipe is read without torch."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class UNet2DConfig:
    """Shape of the network; the defaults are those of GUDA's CIFAR-10 model. Levels are listed finest first."""

    image_size: int = 32
    in_channels: int = 3
    out_channels: int = 3
    """More than `in_channels` where the network also predicts a variance, which nothing here reads."""
    channels: tuple[int, ...] = (128, 256, 256, 256)
    layers: int = 3
    """Residual blocks of a level on the way down; one more on the way up."""
    attention_down: tuple[bool, ...] = (False, True, True, False)
    attention_up: tuple[bool, ...] = (False, True, True, False)
    attention_mid: bool = True
    head_width: int | None = 8
    """None: one head over all channels."""
    groups: int = 32
    norm_eps: float = 1e-5
    dropout: float = 0.3
    downsample_padding: int = 1
    """0: one row and column of zeros at the far ends only."""
    cos_first: bool = True
    frequency_shift: int = 0
    num_classes: int = 0
    """0 = unconditional."""
