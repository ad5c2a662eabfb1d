"""How large a network of the authors' code is, read off the tensors of its file.

A file of UNet-EDM and one of UNet-VP have the same names, so that which process a file wants has to be said beside it.
"""

import math
import re
from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor

from mucs_ray.errors import InputError
from mucs_ray.models.dit_config import DiTConfig, DiTVPConfig
from mucs_ray.models.unet_config import UNetConfig

AnyUNetConfig = TypeVar("AnyUNetConfig", bound=UNetConfig)
HEAD_WIDTH = 64
"""Of every published DiT."""
SIZES = {
    "channels0": ("encoder.0.conv2.weight", 0),
    "channels1": ("encoder.1.conv2.weight", 0),
    "stride0": ("encoder.0.conv1.weight", 2),
    "stride1": ("encoder.1.conv1.weight", 2),
    "kernel": ("encoder.0.conv2.weight", 2),
    "width": ("x_embedder.proj.weight", 0),
    "patch": ("x_embedder.proj.weight", 2),
    "tokens": ("pos_enc.emb", 1),
    "registers": ("pos_enc.extra", 0),
    "inner": ("dit_backbone.0.mlp.0.weight", 0),
    "condition_channels": ("a_embedder.emb.weight", 1),
    "condition_dim": ("y_embedder.xdrop", 0),
}
"""The tensor and the axis that determine each size of a DiT-EDM."""

ENCODER_BLOCK = re.compile(r"enc\.(\d+)x\d+_block(\d+)\.conv0\.weight")

DIT_BLOCK = re.compile(r"dit_backbone\.(\d{1,4})\.")


def unet_config_of(
    state: Mapping[str, Tensor], path: str, config_class: type[AnyUNetConfig] = UNetConfig
) -> AnyUNetConfig:
    """Return the sizes of a UNet.

    InputError if the tensors are not a UNet's; whether all are there is for the check of names to say.
    """
    found = [match for match in map(ENCODER_BLOCK.fullmatch, state) if match]
    needed = "map_layer0.weight", "map_augment.emb.weight"
    if not any(match[2] == "0" for match in found) or any(name not in state for name in needed):
        raise InputError(f"{path}: expected the tensors of a UNet, such as enc.32x32_block0.conv0.weight")
    sides = sorted({int(match[1]) for match in found if match[2] == "0"}, reverse=True)
    channels = state["map_augment.emb.weight"].shape[1]
    blocks = [f"enc.{side}x{side}_block0" for side in sides]
    label = state.get("map_label.weight")
    return config_class(
        image_size=sides[0],
        channels=channels,
        multipliers=tuple(len(state[f"{block}.conv0.weight"]) // channels for block in blocks),
        embedding_multiplier=len(state["map_layer0.weight"]) // channels,
        blocks=1 + max(int(match[2]) for match in found),
        attention_at=tuple(side for side, block in zip(sides, blocks, strict=True) if f"{block}.qkv.weight" in state),
        condition_dim=0 if label is None else label.shape[1],
    )


def dit_config_of(state: Mapping[str, Tensor], path: str, *, num_heads: int | None = None) -> DiTConfig:
    """Return the sizes of a DiT-EDM, whose number of heads is `num_heads`, or width / 64.

    Absent or senseless ones become the paper's, and the check of names reports them.
    """
    usual = DiTConfig()

    def size(of: str, default: int, *, minimum: int = 1) -> int:
        name, axis = SIZES[of]
        shape = state[name].shape if name in state else ()
        return shape[axis] if axis < len(shape) and shape[axis] >= minimum else default

    width, patch = size("width", usual.width), size("patch", usual.patch_size)
    width = usual.width if width % 4 else width  # the position table has four parts
    kernel = size("kernel", usual.kernel_size)
    strides = size("stride0", 1), size("stride1", 1)
    side = math.isqrt(size("tokens", usual.grid**2))
    conditional = any(name.startswith("y_embedder.") for name in state)
    return DiTConfig(
        image_size=side * patch * strides[0] * strides[1],
        channels=(size("channels0", 4), size("channels1", 4)),
        strides=strides,
        kernel_size=kernel if kernel % 2 else usual.kernel_size,
        patch_size=patch,
        width=width,
        depth=depth_of(state),
        num_heads=_heads(width, num_heads, path),
        mlp_ratio=max(size("inner", usual.mlp_ratio * width) // width, 1),
        registers=size("registers", usual.registers, minimum=0),
        condition_channels=size("condition_channels", usual.condition_channels),
        condition_dim=size("condition_dim", 1) if conditional else 0,
    )


def dit_vp_config_of(state: Mapping[str, Tensor], path: str, *, num_heads: int | None = None) -> DiTVPConfig:
    """Return the sizes of a DiT-VP.

    InputError if the tensors are not a DiT-VP's, which do not tell its heads: `num_heads`, or width / 64.
    """
    needed = "x_embedder.proj.weight", "encoder.0.conv1.weight", "encoder.1.conv1.weight", "pos_enc.emb"
    missing = [name for name in (*needed, "encoder.0.conv2.weight", "encoder.1.conv2.weight") if name not in state]
    if missing or "pos_enc.extra" in state:
        found = f"no {missing[0]}" if missing else "pos_enc.extra, the registers of a DiT-EDM"
        raise InputError(f"{path}: expected the tensors of a DiT-VP; found {found}")
    width, _, patch, _ = state["x_embedder.proj.weight"].shape
    strides = state["encoder.0.conv1.weight"].shape[2], state["encoder.1.conv1.weight"].shape[2]
    inner, condition = state.get("dit_backbone.0.mlp.0.weight"), state.get("y_embedder.emb.weight")
    flag = state.get("a_embedder.emb.weight")
    usual = DiTVPConfig()
    return DiTVPConfig(
        image_size=math.isqrt(state["pos_enc.emb"].shape[1]) * patch * strides[0] * strides[1],
        channels=(len(state["encoder.0.conv2.weight"]), len(state["encoder.1.conv2.weight"])),
        strides=strides,
        kernel_size=state["encoder.0.conv2.weight"].shape[2],
        patch_size=patch,
        width=width,
        depth=depth_of(state),
        num_heads=_heads(width, num_heads, path),
        mlp_ratio=usual.mlp_ratio if inner is None else len(inner) // width,
        registers=0,
        condition_channels=usual.condition_channels if flag is None else flag.shape[1],
        condition_dim=0 if condition is None else condition.shape[1],
    )


def depth_of(state: Mapping[str, Tensor]) -> int:
    """Return the number of blocks by the highest that the file names, so that what lacks below it is missing of it."""
    numbers = [match[1] for match in map(DIT_BLOCK.match, state) if match]
    return 1 + max(map(int, numbers), default=0)


def _heads(width: int, num_heads: int | None, path: str) -> int:
    if num_heads is None:
        if width % HEAD_WIDTH:
            raise InputError(f"{path}: width {width} is not a multiple of {HEAD_WIDTH}; give the number of heads")
        return width // HEAD_WIDTH
    if num_heads < 1 or width % num_heads:
        raise InputError(f"{path}: {num_heads} heads do not divide width {width}")
    return num_heads
