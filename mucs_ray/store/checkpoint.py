"""Weights as safetensors with a JSON card beside them; no pickles."""

import json
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_of
from safetensors.torch import save as bytes_of
from torch import Tensor

from mucs_ray import storage
from mucs_ray.errors import InputError

Tensors = dict[str, Tensor]


def save(url: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> str:
    """Publish tensors, with `facts` (JSON values) in the file's header; returns the sha256."""
    content = bytes_of(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
        metadata={"mucs_ray": json.dumps(facts, sort_keys=True)},
    )
    return storage.publish(url, content)


def save_with_card(url: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> str:
    """The same, and the facts once more as a readable file NAME.json with the digest."""
    digest = save(url, tensors, facts)
    storage.publish_json(url.removesuffix(".safetensors") + ".json", {**facts, "sha256": digest})
    return digest


def load(url: str) -> tuple[Tensors, dict[str, Any]]:
    """(tensors, facts). FileNotFoundError if absent; InputError if it is not a whole safetensors file."""
    return parse(storage.read_bytes(url), url)


def parse(content: bytes, source: str) -> tuple[Tensors, dict[str, Any]]:
    """(tensors, facts) of a file's content; InputError, naming `source`, if it is not a whole safetensors file."""
    try:
        tensors = tensors_of(content)
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        facts = json.loads(header.get("__metadata__", {}).get("mucs_ray", "{}"))
    except (SafetensorError, ValueError) as error:
        raise InputError(f"{source} is not a whole safetensors file ({error})") from None
    return tensors, facts


def strict_load(module: torch.nn.Module, tensors: Mapping[str, Tensor], *, source: str) -> None:
    """Copy tensors into a module; InputError, in one line, if names or shapes differ."""
    own = module.state_dict()
    missing, unexpected = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    reshaped = [name for name in own.keys() & tensors.keys() if own[name].shape != tensors[name].shape]
    if missing or unexpected or reshaped:
        parts = [("missing", missing), ("unexpected", unexpected), ("of another shape", sorted(reshaped))]
        told = "; ".join(f"{len(names)} {what} (first {names[0]})" for what, names in parts if names)
        raise InputError(f"{source} holds weights of another architecture: {told}")
    module.load_state_dict(dict(tensors))
