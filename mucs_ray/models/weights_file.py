"""A file of weights as people have them, read as one plain state dict: of what wrappers and trainers put around the
weights, the running mean is preferred, and prefixes are taken off in any order.

Pickled objects are never rebuilt: torch's weights-only reader puts an inert placeholder in the place of a
configuration, and refuses any other class or function that the file names.
"""

import re
from collections.abc import Iterator, Mapping
from io import IOBase
from pathlib import PurePath
from typing import IO, cast

import safetensors.torch
import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from mucs_ray.errors import InputError, MucsError
from mucs_ray.models.state_dict import few
from mucs_ray.storage import StoreError, filesystem, opened, own_errors, read_bytes

TORCH_SUFFIXES = (".ckpt", ".pt", ".pth")
SUFFIXES = (".safetensors", *TORCH_SUFFIXES)
POINTER = b"version https://git-lfs.github.com/spec/"
INERT_MODULES = ("omegaconf", "typing", "collections", "numpy")
"""The modules that `conf` (OmegaConf) and `cost` (a NumPy number) may name; none of them is imported."""
INERT_BUILTINS = ("bool", "dict", "float", "int", "list", "str", "tuple")

WRAPPERS = ("_forward_module", "module", "_orig_mod")
"""What Fabric, DataParallel and torch.compile put before every name; they say nothing of what the weights are."""
MEANS = (
    "ema", "ema_model", "model_ema", "ema_state_dict", "state_dict_ema", "shadow", "average", "averaged", "net_ema",
    "ema_net", "g_ema", "params_ema", "ema_params", "ema_weights", "unet_ema", "ema_unet",
)  # fmt: skip
"""What the running mean of the weights is called, as a key of a checkpoint or before the names."""
HOLDERS = (
    "state_dict", "model", "model_state_dict", "net", "network", "generator", "denoiser", "unet", "weights", "params",
    "online_model", "diffusion", "diffusion_model",
)  # fmt: skip
"""What the weights themselves are called there."""
KNOWN = frozenset((*WRAPPERS, *MEANS, *HOLDERS))
COUNTERS = ("n_averaged", "step", "initted", "num_updates", "decay")
"""What keeps a running mean, beside the weights."""
DEEPEST = 4

State = dict[str, Tensor]


def read_state(path: str) -> State:
    """Read the weights in a file at any fsspec URL, or in a folder that has one; names are without prefixes.

    InputError, in one line, if it is absent, corrupt or unsafe, or no weights are in it.
    """
    path = file_of(path)
    document = read_document(path)
    found = dict(candidates(document))
    if not found:
        keys = f" (its keys: {few(map(repr, document), limit=8)})" if isinstance(document, dict) and document else ""
        expected = "a state dict, or a dict with one under `ema`, `model`, `state_dict` or the like"
        raise InputError(f"{path}: no weights in it{keys}; expected {expected}")
    named = {key: by_origin(state, path) for key, state in found.items()}
    return best(named, path)


def file_of(path: str) -> str:
    """Return the file of weights in a folder, or the path itself. InputError if there is not exactly one."""
    fs, inside = filesystem(path)
    with own_errors(path):
        if not fs.isdir(inside):
            return path
    names = sorted(str(file).rsplit("/", 1)[-1] for file in fs.ls(inside, detail=False))
    weights = [name for name in names if name.lower().endswith(SUFFIXES)]
    if len(weights) == 1:
        return f"{path.rstrip('/')}/{weights[0]}"
    found = f"holds {few(weights)}; name the one" if weights else f"holds no file of weights ({', '.join(SUFFIXES)})"
    raise InputError(f"{path}: a folder, which {found}")


def refuse_pointer(path: str) -> None:
    """Raise InputError if a file is only what git-LFS leaves in place of a large one."""
    with opened(path) as file:
        if file.read(len(POINTER)) == POINTER:
            raise InputError(f"{path}: a git-LFS pointer, not the weights themselves; fetch them with: git lfs pull")


class Inert:
    """A placeholder for an object in the file that is not needed; it accepts anything and keeps nothing."""

    def __new__(cls, *_: object) -> "Inert":
        """Drop whatever the file passes."""
        return super().__new__(cls)

    def __init__(self, *_: object) -> None:
        """Drop whatever the file passes."""

    def __setstate__(self, state: object) -> None:
        """Drop whatever the file passes."""


def read_document(path: str) -> object:
    """Read whatever a file holds, with placeholders for configurations."""
    suffix = PurePath(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"{path}: expected a file of weights ({', '.join(SUFFIXES)})")
    try:
        refuse_pointer(path)
        if suffix == ".safetensors":
            return safetensors.torch.load(read_bytes(path))
        fs, inside = filesystem(path)
        with fs.open(inside, "rb") as file:
            return read_torch(file, path)
    except (MucsError, StoreError):
        raise
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except Exception as error:  # a damaged pickle can fail in any way
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused:
            raise InputError(unsafe([refused[1]], path)) from error
        reason = (str(error).splitlines() or [""])[0]
        raise InputError(f"{path}: cannot be read as weights ({type(error).__name__}: {reason})") from error


def read_torch(file: IOBase, path: str) -> object:
    """Read a file that torch.save wrote. InputError if it names anything that would be run or built."""
    readable = cast("IO[bytes]", file)  # a file of fsspec is one in all but name
    try:
        named = get_unsafe_globals_in_checkpoint(readable)
    except ValueError:
        named = []  # torch's format before 1.6 has no list: its reader itself refuses, placeholders or not
    refused = [name for name in named if not is_inert(name)]
    if refused:
        raise InputError(unsafe(refused, path))
    file.seek(0)
    with safe_globals([(Inert, name) for name in named]):
        return torch.load(readable, map_location="cpu", weights_only=True)


def is_inert(name: str) -> bool:
    """Return True for what only configurations need, in place of which a placeholder will do."""
    module, _, rest = name.partition(".")
    return module in INERT_MODULES or (module == "builtins" and rest in INERT_BUILTINS)


def unsafe(names: list[str], path: str) -> str:
    """Write what a file asks for, and how to make one without it."""
    keep = 'torch.save(torch.load(FILE, weights_only=False)["ema"], "weights.pt"), or "model" or "state_dict"'
    return (
        f"{path}: refused, because the file asks to run or build {few(sorted(names))}; nothing of it was run. Keep its"
        f" weights alone, where you trust it: {keep}"
    )


def candidates(document: object, key: str = "", depth: int = 0) -> Iterator[tuple[str, Mapping[str, object]]]:
    """Yield the state dicts in a checkpoint, each with the last key that says what it is: "" or one of those above."""
    if not isinstance(document, dict) or depth > DEEPEST or not all(isinstance(name, str) for name in document):
        return
    inside = {name: value for name, value in document.items() if isinstance(value, dict) and name in KNOWN}
    if not inside and any(isinstance(value, Tensor) for value in document.values()):
        yield key, document
    for name, value in inside.items():
        yield from candidates(value, key if key in MEANS or name in WRAPPERS else name, depth + 1)


def by_origin(state: Mapping[str, object], path: str) -> dict[str, State]:
    """Return the tensors of a state dict by what their prefix says they are, under names without any prefix.

    The origin is "" for names without a prefix that says something. InputError if a name occurs twice.
    """
    origins: dict[str, dict[str, object]] = {}
    for name, value in state.items():
        origin, bare = peeled(name)
        if bare in COUNTERS:
            continue
        own = origins.setdefault(origin, {})
        if bare in own:
            raise InputError(f"{path}: {bare!r} occurs twice, with and without a prefix")
        own[bare] = value
    means = [origin for origin in origins if origin in MEANS]
    largest = max(origins, key=lambda origin: len(origins[origin]), default="")
    kept = {origin: origins[origin] for origin in {largest, *means} if origin in origins}
    return {origin: tensors(values, path) for origin, values in kept.items()}


def peeled(name: str) -> tuple[str, str]:
    """Return what a name's prefixes say that the tensor is, and the name without them."""
    origin = ""
    while True:
        first, dot, rest = name.partition(".")
        if not dot or first not in KNOWN:
            return origin, name
        if first not in WRAPPERS and origin not in MEANS:
            origin = first  # the innermost one, unless it is inside a mean
        name = rest


def tensors(values: Mapping[str, object], path: str) -> State:
    """Return the values. InputError if one is not a tensor of floating-point numbers."""
    for name, value in values.items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise InputError(f"{path}: {name!r} is not a tensor of floating-point numbers ({kind})")
    return cast(State, dict(values))


def best(named: Mapping[str, Mapping[str, State]], path: str) -> State:
    """Return the running mean if there is one, and else the weights themselves.

    A mean of the parameters alone is completed by the constants that stand beside them in the file.
    """
    found = [(key in MEANS or origin in MEANS, state) for key, own in named.items() for origin, state in own.items()]
    means = [state for is_mean, state in found if is_mean and state]
    raw = max((state for is_mean, state in found if not is_mean), key=len, default={})
    if not means:
        if not raw:
            raise InputError(f"{path}: no weights in it")
        return raw
    mean = max(means, key=len)
    without_dots = {name.replace(".", ""): name for name in raw}  # some keep the mean under names without dots
    if not any("." in name for name in mean) and mean.keys() <= without_dots.keys():
        mean = {without_dots[name]: tensor for name, tensor in mean.items()}
    return {**raw, **mean} if mean.keys() < raw.keys() else mean
