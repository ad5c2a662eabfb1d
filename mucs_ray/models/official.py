"""Weights saved by the official MUCS code, read for this package's networks (names and shapes: spec 3.3).

A training checkpoint carries a pickled OmegaConf object. It is never rebuilt: torch's weights-only reader puts an inert
placeholder in its place and refuses any other class or function that the file names.
"""

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
from mucs_ray.models.official_sizes import SIZES, dit_config_of
from mucs_ray.models.state_dict import check, few
from mucs_ray.storage import StoreError, exists, filesystem, join, read_bytes

TORCH_SUFFIXES = (".ckpt", ".pt", ".pth")
FOLDER_FILES = ("model_index.json", "config.json")
"""What a folder that diffusers saved has at its top."""
WRAPPERS = ("_forward_module.", "module.")
UNETS = ("unet-edm", "unet-vp")
RESAMPLE_FILTER = "resample_filter"
"""The ending of constants that files of UNets contain and that nothing reads."""
UNET_NAMES = ("enc.", "dec.", "map_label.", "map_augment.", "map_layer")
INERT_MODULES = ("omegaconf", "typing", "collections", "numpy")
"""The modules that `conf` (OmegaConf) and `cost` (a NumPy number) may name; none of them is imported."""
INERT_BUILTINS = ("bool", "dict", "float", "int", "list", "str", "tuple")

State = dict[str, Tensor]


def load(path: str, *, num_heads: int | None = None) -> tuple[DiT, DiTConfig]:
    """Load a DiT-EDM in eval mode, fp32, on the CPU; from a training checkpoint, load its EMA weights.

    Every size is read off the tensors, except the number of heads: `num_heads`, else width / 64. `path` may be any
    fsspec URL. A file that is absent, corrupt, unsafe or of another network raises InputError.
    """
    state = read(path, kind="dit-edm")
    config = dit_config_of(state, path, num_heads=num_heads)
    with torch.device("meta"):
        network = DiT(config)
    expected = network.state_dict()
    guessed = any(name in expected and name not in state for name, _ in SIZES.values())
    check(state, expected, "a DiT-EDM", path, shapes_too=not guessed)
    network.load_state_dict(state, assign=True)
    return network.eval(), config


def read(path: str, *, kind: str) -> State:
    """Read the weights in a file, the EMA weights of a training checkpoint, in fp32; constants are left out.

    InputError if the file is absent, corrupt or unsafe, or of another kind of network than `kind`.
    """
    if any(exists(join(path, name)) for name in FOLDER_FILES):
        raise InputError(f"{path} is a folder of diffusers; read it with --recipe ddpm, or --set model.kind=unet2d")
    state = _unwrapped(_weights_of(_read(path), path), path)
    _refuse_other_kinds(state, kind, path)
    return {name: tensor.detach().float() for name, tensor in state.items() if not name.endswith(RESAMPLE_FILTER)}


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


def _refuse_other_kinds(state: State, kind: str, path: str) -> None:
    """Raise InputError, which says what to set, if the names are those of another network."""
    is_unet = any(name.startswith(UNET_NAMES) for name in state)
    if is_unet and kind not in UNETS:
        raise InputError(
            f"{path}: weights of a UNet, which do not say if it is a UNet-EDM or a UNet-VP; name what it was trained"
            " as: --set model.kind=unet-edm or --set model.kind=unet-vp"
        )
    other = "dit-vp" if "y_embedder.emb.weight" in state else "dit-edm" if "pos_enc.extra" in state else None
    if not is_unet and other not in (None, kind):
        raise InputError(f"{path}: weights of another backbone than {kind}; read them with --set model.kind={other}")
