"""Weights saved by the official MUCS code, read into this package's DiT (names and shapes: spec 3.3).

A training checkpoint carries a pickled OmegaConf object. It is never rebuilt: torch's weights-only reader puts an inert
placeholder in its place and refuses any other class or function that the file names.
"""

import math
import re
from io import IOBase
from pathlib import PurePath
from typing import IO, Any, cast

import safetensors.torch
import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from mucs_ray.errors import InputError, MucsError
from mucs_ray.models.dit import DiT, DiTConfig
from mucs_ray.models.state_dict import few, shape
from mucs_ray.storage import StoreError, filesystem, read_bytes

HEAD_WIDTH = 64
TORCH_SUFFIXES = (".ckpt", ".pt", ".pth")
WRAPPERS = ("_forward_module.", "module.")
UNET_NAMES = ("enc.", "dec.", "map_label.", "map_augment.", "map_layer")
INERT_MODULES = ("omegaconf", "typing", "collections", "numpy")
"""The modules that `conf` (OmegaConf) and `cost` (a NumPy number) may name; none of them is imported."""
INERT_BUILTINS = ("bool", "dict", "float", "int", "list", "str", "tuple")

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

State = dict[str, Tensor]


def load(path: str, *, num_heads: int | None = None) -> tuple[DiT, DiTConfig]:
    """Load the network in eval mode, fp32, on the CPU; from a training checkpoint, load its EMA weights.

    Every size is read off the tensors, except the number of heads: `num_heads`, else width / 64. `path` may be any
    fsspec URL. A file that is absent, corrupt, unsafe or of another network raises InputError.
    """
    state = _unwrapped(_weights_of(_read(path), path), path)
    _refuse_other_backbones(state, path)
    config = _config_of(state, num_heads, path)
    with torch.device("meta"):
        network = DiT(config)
    _check_names_and_shapes(state, network.state_dict(), path)
    network.load_state_dict({name: tensor.detach().float() for name, tensor in state.items()}, assign=True)
    return network.eval(), config


class Inert:
    """A placeholder for an object in the file that is not needed; it accepts anything and keeps nothing."""

    def __new__(cls, *_: object) -> "Inert":
        """Drop whatever the file passes."""
        return super().__new__(cls)

    def __init__(self, *_: object) -> None:
        """Drop whatever the file passes."""

    def __setstate__(self, state: object) -> None:
        """Drop whatever the file passes."""


def _read(path: str) -> object:
    suffix = PurePath(path).suffix.lower()
    if suffix != ".safetensors" and suffix not in TORCH_SUFFIXES:
        raise InputError(f"{path}: expected a file of weights (.safetensors, {', '.join(TORCH_SUFFIXES)})")
    try:
        if suffix == ".safetensors":
            return safetensors.torch.load(read_bytes(path))
        fs, inside = filesystem(path)
        with fs.open(inside, "rb") as file:
            return _read_torch(file, path)
    except (MucsError, StoreError):
        raise
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except Exception as error:  # a damaged pickle can fail in any way
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused:
            raise InputError(_unsafe([refused[1]], path)) from error
        reason = (str(error).splitlines() or [""])[0]
        raise InputError(f"{path}: cannot be read as weights ({type(error).__name__}: {reason})") from error


def _read_torch(file: IOBase, path: str) -> object:
    readable = cast("IO[bytes]", file)  # a file of fsspec is one in all but name
    try:
        named = get_unsafe_globals_in_checkpoint(readable)
    except ValueError:
        named = []  # torch's format before 1.6 has no list: its reader itself refuses, placeholders or not
    refused = [name for name in named if not _is_inert(name)]
    if refused:
        raise InputError(_unsafe(refused, path))
    file.seek(0)
    with safe_globals([(Inert, name) for name in named]):
        return torch.load(readable, map_location="cpu", weights_only=True)


def _is_inert(name: str) -> bool:
    module, _, rest = name.partition(".")
    return module in INERT_MODULES or (module == "builtins" and rest in INERT_BUILTINS)


def _unsafe(names: list[str], path: str) -> str:
    return f"{path}: refused, because the file asks to run or build {few(sorted(names))}; nothing of it was run"


def _weights_of(document: object, path: str) -> dict[str, Any]:
    """Return the EMA weights, else the raw ones, of a training checkpoint; or the document if it is a state dict."""
    if isinstance(document, dict):
        weights: Any = document
        if "ema" in document or "model" in document:
            weights = document.get("ema") or document.get("model")
        if weights and isinstance(weights, dict) and all(isinstance(name, str) for name in weights):
            return weights
    raise InputError(f"{path}: no weights in it; expected a state dict, or a dict with `ema` or `model`")


def _unwrapped(weights: dict[str, Any], path: str) -> State:
    """Remove the prefixes of Fabric and DataParallel from the names."""
    state: State = {}
    for name, tensor in weights.items():
        bare = re.sub(f"^({'|'.join(map(re.escape, WRAPPERS))})+", "", name)
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise InputError(f"{path}: {name!r} is not a tensor of floating-point numbers ({kind})")
        if bare in state:
            raise InputError(f"{path}: {bare!r} occurs twice, with and without a prefix")
        state[bare] = tensor
    return state


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
