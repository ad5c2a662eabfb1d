"""Weights saved by the official MUCS code, read into this package's DiT (names and shapes: spec 3.3)."""

import math

import torch
from torch import Tensor

from mucs_ray.errors import InputError
from mucs_ray.models.dit import DiT, DiTConfig
from mucs_ray.models.state_dict import few, shape
from mucs_ray.models.weights_file import State, read_state

HEAD_WIDTH = 64
UNET_NAMES = ("enc.", "dec.", "map_label.", "map_augment.", "map_layer")

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
"""The tensor and the axis that determine each size of the network."""


def load(path: str, *, num_heads: int | None = None) -> tuple[DiT, DiTConfig]:
    """Load the network in eval mode, fp32, on the CPU; from a training checkpoint, load its EMA weights.

    Every size is read off the tensors, except the number of heads: `num_heads`, else width / 64. `path` may be any
    fsspec URL. A file that is absent, corrupt, unsafe or of another network raises InputError.
    """
    state = read_state(path)
    _refuse_other_backbones(state, path)
    config = _config_of(state, num_heads, path)
    with torch.device("meta"):
        network = DiT(config)
    _check_names_and_shapes(state, network.state_dict(), path)
    network.load_state_dict({name: tensor.detach().float() for name, tensor in state.items()}, assign=True)
    return network.eval(), config


def _refuse_other_backbones(state: State, path: str) -> None:
    backbone = "DiT-VP" if "y_embedder.emb.weight" in state else None
    backbone = "UNet" if any(name.startswith(UNET_NAMES) for name in state) else backbone
    if backbone:
        raise InputError(f"{path}: weights of another backbone ({backbone}); only DiT-EDM can be read")


def _config_of(state: State, num_heads: int | None, path: str) -> DiTConfig:
    """Read sizes off tensors; absent or senseless ones become the paper's, and the check of names reports them."""
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
    blocks = {name.split(".")[1] for name in state if name.startswith("dit_backbone.")}
    conditional = any(name.startswith("y_embedder.") for name in state)
    return DiTConfig(
        image_size=side * patch * strides[0] * strides[1],
        channels=(size("channels0", 4), size("channels1", 4)),
        strides=strides,
        kernel_size=kernel if kernel % 2 else usual.kernel_size,
        patch_size=patch,
        width=width,
        depth=len(blocks) or usual.depth,
        num_heads=_heads(width, num_heads, path),
        mlp_ratio=max(size("inner", usual.mlp_ratio * width) // width, 1),
        registers=size("registers", usual.registers, minimum=0),
        condition_channels=size("condition_channels", usual.condition_channels),
        condition_dim=size("condition_dim", 1) if conditional else 0,
    )


def _heads(width: int, num_heads: int | None, path: str) -> int:
    if num_heads is None:
        if width % HEAD_WIDTH:
            raise InputError(f"{path}: width {width} is not a multiple of {HEAD_WIDTH}; give the number of heads")
        return width // HEAD_WIDTH
    if num_heads < 1 or width % num_heads:
        raise InputError(f"{path}: {num_heads} heads do not divide width {width}")
    return num_heads


def _check_names_and_shapes(state: State, expected: dict[str, Tensor], path: str) -> None:
    missing = [name for name in expected if name not in state]
    guessed = any(name in missing for name, _ in SIZES.values())
    wrong_shape = [
        f"{name} is {shape(state[name])}, not {shape(tensor)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    complaints = {
        "missing": missing,
        "unexpected": [repr(name) for name in state if name not in expected],
        "of another shape": [] if guessed else wrong_shape,
    }
    problems = [f"{len(names)} {problem} ({few(names)})" for problem, names in complaints.items() if names]
    if problems:
        raise InputError(f"{path}: not the tensors of a DiT-EDM: {'; '.join(problems)}")
