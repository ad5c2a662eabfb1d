"""Weights of pretrained networks: where their files are looked for and how they are read. Nothing is downloaded."""

import os
import pickle
import re
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from mucs_ray.errors import InputError, MachineError

if TYPE_CHECKING:
    from torch import Tensor

VARIABLE = "MUCS_RAY_WEIGHTS"
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
SHA256_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.pth$")
"""This follows torch hub's convention: the sha256 of vgg16-397923af.pth begins with 397923af."""
BROKEN = (
    *(SafetensorError, pickle.UnpicklingError, struct.error, EOFError, OSError, RuntimeError),
    *(ValueError, LookupError, TypeError, AttributeError, AssertionError),
)
"""The exceptions that reading a damaged file was seen to raise. torch.load interprets the bytes of a file and does not
check them first.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """The files that hold one pretrained network; in each place the first existing one is used."""

    network: str
    """The name of the network in messages."""
    names: tuple[str, ...]
    """The names of the file in the folder of weights, and among torch hub's checkpoints."""
    url: str = ""
    """The address of the first name's file; if it is empty, the file comes from the repository."""
    repository: str = ""
    """The repository of the Hugging Face hub whose cache is searched; empty if there is none."""
    repository_files: tuple[str, ...] = ()
    variable: str = ""
    """The environment variable that names the file itself and takes precedence; empty if there is none."""


CLIP_WEIGHTS = Weights(
    network="open_clip ViT-L-14 laion2b_s32b_b82k",
    names=("open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
    repository="laion/CLIP-ViT-L-14-laion2B-s32B-b82K",
    repository_files=("open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
    variable="MUCS_RAY_CLIP_WEIGHTS",
)
DINO_WEIGHTS = Weights(
    network="DINOv2 ViT-B/14",
    names=("dinov2_vitb14_pretrain.pth", "vit_base_patch14_dinov2.lvd142m.safetensors"),
    repository="timm/vit_base_patch14_dinov2.lvd142m",
    repository_files=("model.safetensors", "pytorch_model.bin"),
)
SSCD_WEIGHTS = Weights(
    network="SSCD disc_mixup (TorchScript)",
    names=("sscd_disc_mixup.torchscript.pt",),
    url="https://dl.fbaipublicfiles.com/sscd-copy-detection/sscd_disc_mixup.torchscript.pt",
)
VGG_WEIGHTS = Weights(
    network="torchvision VGG16",
    names=(
        "vgg16-397923af.pth",
        "vgg16.safetensors",
        "vgg16_features.safetensors",
        "vgg16_features_fp16.safetensors",
    ),
    url="https://download.pytorch.org/models/vgg16-397923af.pth",
)
ALEXNET_WEIGHTS = Weights(
    network="torchvision AlexNet",
    names=("alexnet-owt-7be5be79.pth", "alexnet.safetensors", "alexnet_features.safetensors"),
    url="https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
)
SQUEEZENET_WEIGHTS = Weights(
    network="torchvision SqueezeNet 1.1",
    names=("squeezenet1_1-b8a52dc0.pth", "squeezenet1_1.safetensors", "squeezenet1_1_features.safetensors"),
    url="https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth",
)


def weights_folder(path: str | None) -> Path | None:
    """Return the given folder, or the one that MUCS_RAY_WEIGHTS names; MachineError if it does not exist."""
    named = path or os.environ.get(VARIABLE)
    if not named:
        return None
    folder = Path(named).expanduser().absolute()
    if not folder.is_dir():
        raise MachineError(f"{'--weights-dir' if path else VARIABLE} names {named}, which is not a folder here")
    return folder


def find_weights(weights: Weights, folder: str | None = None) -> str:
    """Return the path of a network's file; MachineError, in a line that says how to get it, if there is none.

    The places are searched in this order: the file that the network's own variable names, the given folder (or that of
    MUCS_RAY_WEIGHTS), torch hub's checkpoints, the Hugging Face cache.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    named = os.environ.get(weights.variable) if weights.variable else None
    if named:
        path = Path(named).expanduser().absolute()
        if not path.is_file():
            raise MachineError(
                f"{weights.variable} names {named}, which is not a file here; expected the weights of {weights.network}"
                f" ({', '.join(SUFFIXES)}); to get them, with internet: {how_to_get(weights)}"
            )
        return str(path)
    for place in (weights_folder(folder), checkpoints_folder()):
        for name in weights.names:
            if place is not None and (place / name).is_file():
                return str(place / name)
    for name in weights.repository_files:
        cached = try_to_load_from_cache(weights.repository, name, cache_dir=constants.HF_HUB_CACHE)
        if isinstance(cached, str):
            return cached
    raise MachineError(
        f"the weights of {weights.network} are not on this machine: expected {' or '.join(places(weights))};"
        f" to get them, with internet: {how_to_get(weights)}"
    )


def places(weights: Weights) -> list[str]:
    """Describe the places where a network's file may be."""
    from huggingface_hub import constants

    names, hub = " / ".join(weights.names), checkpoints_folder()
    options = [f"{names} in the folder that --weights-dir or {VARIABLE} names, or in {hub}"]
    if weights.repository:
        options.append(
            f"{weights.repository_files[0]} of {weights.repository} in the hub cache {constants.HF_HUB_CACHE}"
        )
    if weights.variable:
        options.append(f"the file that {weights.variable} names ({', '.join(SUFFIXES)})")
    return options


def how_to_get(weights: Weights) -> str:
    """Return a command that puts the file where it is found."""
    if weights.repository:
        return f"hf download {weights.repository} {weights.repository_files[0]}"
    return f"curl -fL --create-dirs -o {checkpoints_folder() / weights.names[0]} {weights.url}"


def checkpoints_folder() -> Path:
    """Return the folder where torch hub, and so torchvision, keeps what it has downloaded."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("TORCH_HOME") or f"{cache}/torch"  # torch.hub.get_dir(), without importing torch
    return Path(home).expanduser() / "hub/checkpoints"


def fingerprint(path: str) -> str:
    """Return the name and size of a file; this is cheap, and differs between the files in question."""
    return f"{Path(path).name}:{Path(path).stat().st_size}"


def read_weights(path: str, shapes: Mapping[str, tuple[int, ...]], *, network: str) -> "dict[str, Tensor]":
    """Read the tensors with these names, in fp32, from a file that may hold more; no code of a pickle is run.

    InputError if the file is broken, of another architecture, or differs from the sha256 in its name.
    """
    tensors = read_tensors(path, shapes)
    for name, shape in shapes.items():
        actual = tuple(tensors[name].shape) if name in tensors else "absent"
        if actual != shape:
            raise InputError(f"{path} is not {network}: {name} is {actual}, expected {shape}")
    return {name: value.float() for name, value in tensors.items()}


def read_tensors(path: str, names: Collection[str]) -> "dict[str, Tensor]":
    """Read those of the named tensors that a file holds; the others in a safetensors file are not read."""
    import torch  # here, so that a file can be found without torch

    if not path.endswith(SUFFIXES):
        raise InputError(f"{path}: expected a file of weights ({', '.join(SUFFIXES)})")
    try:
        if path.endswith(".safetensors"):
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in set(names).intersection(file.keys())}
        check_sha256(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise MachineError(f"the weights {path} are gone") from None
    except InputError:
        raise
    except BROKEN as error:
        raise InputError(f"the weights {path} cannot be read ({first_line(error)})") from None
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = {name.removeprefix("module."): value for name, value in content["state_dict"].items()}
    tensors = content if isinstance(content, dict) else {}
    return {name: tensors[name] for name in names if isinstance(tensors.get(name), torch.Tensor)}


def check_sha256(path: str) -> None:
    """Raise InputError if the file's name holds the beginning of a sha256 that the content does not have."""
    expected = SHA256_IN_NAME.search(path)
    if expected is None:
        return
    with Path(path).open("rb") as file:
        digest = file_digest(file, "sha256").hexdigest()[: len(expected[1])]
    if digest != expected[1]:
        raise InputError(f"{path} is cut short or not the original: its sha256 begins with {digest}, not {expected[1]}")


def first_line(error: Exception) -> str:
    """Return the first line of an exception's message, or the name of its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
