"""Weights of pretrained networks: where a file of them is looked for, and how it is read. Nothing is ever fetched."""

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
"""torch hub's convention: vgg16-397923af.pth has a sha256 that begins with 397923af."""
BROKEN = (
    *(SafetensorError, pickle.UnpicklingError, struct.error, EOFError, OSError, RuntimeError),
    *(ValueError, LookupError, TypeError, AttributeError, AssertionError),
)
"""What reading a damaged file was seen to raise: torch.load interprets its bytes, and does not check them first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """The files that hold one pretrained network; in each place the first that is there is taken."""

    network: str
    """What it is called in messages."""
    names: tuple[str, ...]
    """In the folder of weights, and among torch hub's checkpoints."""
    url: str = ""
    """Where the first of the names can be downloaded; else the repository has it."""
    repository: str = ""
    """Of the Hugging Face hub, looked for in its cache; none if empty."""
    repository_files: tuple[str, ...] = ()
    variable: str = ""
    """An environment variable that names the file itself and goes before everything else; none if empty."""


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


def weights_folder(given: str | None) -> Path | None:
    """The folder given, else the one MUCS_RAY_WEIGHTS names; MachineError if it is none."""
    named = given or os.environ.get(VARIABLE)
    if not named:
        return None
    folder = Path(named).expanduser().absolute()
    if not folder.is_dir():
        raise MachineError(f"{'--weights-dir' if given else VARIABLE} names {named}, which is no folder here")
    return folder


def find_weights(weights: Weights, folder: str | None = None) -> str:
    """Path of a network's file; MachineError, in a line that says how to get it, if there is none.

    Looked for in this order: the file that the network's own variable names, the folder given (else MUCS_RAY_WEIGHTS),
    torch hub's checkpoints, the Hugging Face cache.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    named = os.environ.get(weights.variable) if weights.variable else None
    if named:
        path = Path(named).expanduser().absolute()
        if not path.is_file():
            raise MachineError(
                f"{weights.variable} names {named}, which is no file here; expected the weights of {weights.network}"
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
        f"the weights of {weights.network} are not here: expected {' or '.join(places(weights))};"
        f" to get them, with internet: {how_to_get(weights)}"
    )


def places(weights: Weights) -> list[str]:
    """Where a network's file may be, in words."""
    from huggingface_hub import constants

    names, hub = " / ".join(weights.names), checkpoints_folder()
    found = [f"{names} in the folder that --weights-dir or {VARIABLE} names, or in {hub}"]
    if weights.repository:
        found.append(f"{weights.repository_files[0]} of {weights.repository} in the hub cache {constants.HF_HUB_CACHE}")
    if weights.variable:
        found.append(f"the file that {weights.variable} names ({', '.join(SUFFIXES)})")
    return found


def how_to_get(weights: Weights) -> str:
    """A command that puts the file where it is found."""
    if weights.repository:
        return f"hf download {weights.repository} {weights.repository_files[0]}"
    return f"curl -fL --create-dirs -o {checkpoints_folder() / weights.names[0]} {weights.url}"


def checkpoints_folder() -> Path:
    """Where torch hub, and so torchvision, keeps what it has downloaded."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("TORCH_HOME") or f"{cache}/torch"  # torch.hub.get_dir(), without importing torch
    return Path(home).expanduser() / "hub/checkpoints"


def fingerprint(path: str) -> str:
    """Name and size: cheap, and another for another file."""
    return f"{Path(path).name}:{Path(path).stat().st_size}"


def read_weights(path: str, shapes: Mapping[str, tuple[int, ...]], *, network: str) -> "dict[str, Tensor]":
    """The tensors of these names, in fp32, from a file that may hold more; pickles are read without running code.

    InputError if the file is broken, of another architecture, or not what its name's sha256 says.
    """
    found = read_tensors(path, shapes)
    for name, shape in shapes.items():
        there = tuple(found[name].shape) if name in found else "absent"
        if there != shape:
            raise InputError(f"{path} is not {network}: {name} is {there}, expected {shape}")
    return {name: value.float() for name, value in found.items()}


def read_tensors(path: str, names: Collection[str]) -> "dict[str, Tensor]":
    """Those of the named tensors that a file holds; of a safetensors file the others are not read."""
    import torch  # not with this module: that a file is there is known without torch

    if not path.endswith(SUFFIXES):
        raise InputError(f"{path}: weights are read from {', '.join(SUFFIXES)} files")
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
    """InputError if the file's name has the beginning of a sha256 and the content has another."""
    said = SHA256_IN_NAME.search(path)
    if said is None:
        return
    with Path(path).open("rb") as file:
        found = file_digest(file, "sha256").hexdigest()[: len(said[1])]
    if found != said[1]:
        raise InputError(f"{path} is cut short or not the original: its sha256 begins with {found}, not {said[1]}")


def first_line(error: Exception) -> str:
    """What an exception says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
