"""A UNet2DModel and its scheduler in a folder, as diffusers saves them, read and written without it.

    model_index.json, unet/config.json, unet/diffusion_pytorch_model.safetensors, scheduler/scheduler_config.json

or, in older folders, all at the root; weights may be in several files with an index. A checkpoint of a training script
also has unet_ema/, the running mean, which is preferred. Nothing but JSON and safetensors is opened, and no name that a
file holds is imported or run.
"""

import json
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from mucs_ray.diffusion.vp import VP
from mucs_ray.errors import InputError
from mucs_ray.models import scheduler_config, unet2d_json
from mucs_ray.models.state_dict import check, few
from mucs_ray.models.unet2d import UNet2DModel
from mucs_ray.storage import exists, join, publish, publish_json, read_bytes, read_json

WEIGHTS = "diffusion_pytorch_model.safetensors"
FILES = (".bin", ".ckpt", ".pt", ".pth", ".safetensors", ".json")
SCHEDULER = "scheduler_config.json"
OLD_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
"""What the parameters of attention were called before 2023."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """What a folder holds."""

    network: UNet2DModel
    """In eval mode, fp32, on the CPU."""
    process: VP
    is_mean: bool
    """Whether the weights are the running mean of a training checkpoint."""


def load(folder: str) -> Saved:
    """Load the model of a folder, at any fsspec URL. InputError if it holds anything but a UNet2DModel."""
    if PurePath(folder).suffix in FILES:
        raise InputError(f"{folder}: expected the folder in which diffusers saved the model, not one of its files")
    _check_index(folder)
    inside = next((name for name in ("unet_ema", "unet") if exists(join(folder, name, "config.json"))), "")
    where = join(folder, inside) if inside else folder
    config = unet2d_json.config_of(_json(join(where, "config.json")), join(where, "config.json"))
    with torch.device("meta"):
        network = UNet2DModel(config)
    weights = {_new_name(name): tensor.float() for name, tensor in _weights_in(where).items()}
    check(weights, network.state_dict(), "this UNet2DModel", where)
    network.load_state_dict(weights, assign=True)
    return Saved(network=network.eval(), process=_process_in(folder), is_mean=inside == "unet_ema")


def save(folder: str, network: UNet2DModel, process: VP) -> None:
    """Write a model in the newest layout, which DDPMPipeline opens."""
    weights = {name: tensor.detach().float().cpu().contiguous() for name, tensor in network.state_dict().items()}
    publish_json(join(folder, "unet", "config.json"), unet2d_json.document_of(network.config))
    publish(join(folder, "unet", WEIGHTS), safetensors.torch.save(weights, metadata={"format": "pt"}))
    publish_json(join(folder, "scheduler", SCHEDULER), scheduler_config.document_of(process))
    index = {
        "_class_name": "DDPMPipeline",
        "unet": ["diffusers", "UNet2DModel"],
        "scheduler": ["diffusers", "DDPMScheduler"],
    }
    publish_json(join(folder, "model_index.json"), index)


def _check_index(folder: str) -> None:
    """Raise InputError for a pipeline with other parts than these two, which belongs to another family."""
    path = join(folder, "model_index.json")
    if not exists(path):
        return
    parts = {name: part for name, part in _json(path).items() if isinstance(part, list) and part[:1] != [None]}
    others = sorted(parts.keys() - {"unet", "scheduler"})
    if others or parts.get("unet") != ["diffusers", "UNet2DModel"]:
        found = f"also {few(others)}" if others else f"unet = {parts.get('unet')}"
        raise InputError(f"{path}: expected a pipeline of diffusers' UNet2DModel and a scheduler; found {found}")


def _process_in(folder: str) -> VP:
    paths = [join(folder, "scheduler", SCHEDULER), join(folder, SCHEDULER)]
    path = next((path for path in paths if exists(path)), None)
    if path is None:
        raise InputError(
            f"{paths[0]}: no such file, and none at the root; it says what the network was trained to predict"
        )
    return scheduler_config.process_of(_json(path), path)


def _weights_in(where: str) -> dict[str, Tensor]:
    whole, index = join(where, WEIGHTS), join(where, f"{WEIGHTS}.index.json")
    if exists(whole):
        return _tensors(whole)
    if not exists(index):
        pickled = join(where, "diffusion_pytorch_model.bin")
        if exists(pickled):
            raise InputError(
                f"{pickled}: refused, because a .bin is a program as much as it is data; save it again as safetensors: "
                "UNet2DModel.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)"
            )
        raise InputError(f"{whole}: no such file")
    shards = _json(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) and "/" not in name for name in shards.values()):
        raise InputError(f"{index}: weight_map: expected the names of files beside it")
    weights: dict[str, Tensor] = {}
    for name in sorted(set(shards.values())):
        weights |= _tensors(join(where, name))
    return weights


def _tensors(path: str) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(read_bytes(path))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file, though the index names it") from error
    except safetensors.SafetensorError as error:
        raise InputError(f"{path}: cannot be read as safetensors ({error})") from error


def _json(path: str) -> dict[str, Any]:
    try:
        document = read_json(path)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(document, dict):
        raise InputError(f"{path}: expected a JSON object")
    return document


def _new_name(name: str) -> str:
    for old, new in OLD_NAMES.items():
        name = name.replace(old, new)
    return name
