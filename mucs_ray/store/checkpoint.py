"""Weights as safetensors with a JSON card beside them, without pickles."""

import json
from collections.abc import Collection, Mapping
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
    """Publish tensors, with `facts` (JSON values) in the file's header, and return the sha256."""
    content = bytes_of(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
        metadata={"mucs_ray": json.dumps(facts, sort_keys=True)},
    )
    return storage.publish(url, content)


def save_with_card(url: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> str:
    """Publish tensors as `save` does, and the facts and the digest once more in a readable file NAME.json."""
    digest = save(url, tensors, facts)
    storage.publish_json(url.removesuffix(".safetensors") + ".json", {**facts, "sha256": digest})
    return digest


def load(url: str) -> tuple[Tensors, dict[str, Any]]:
    """Read (tensors, facts). FileNotFoundError if the file is absent; InputError if it is not a complete safetensors
    file.
    """
    return parse(storage.read_bytes(url), url)


def parse(content: bytes, source: str) -> tuple[Tensors, dict[str, Any]]:
    """Parse a file's content as (tensors, facts). InputError, naming `source`, if it is not a complete safetensors
    file.
    """
    try:
        tensors = tensors_of(content)
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        facts = json.loads(header.get("__metadata__", {}).get("mucs_ray", "{}"))
    except (SafetensorError, ValueError) as error:
        raise InputError(f"{source} is not a complete safetensors file ({error})") from None
    return tensors, facts


def strict_load(
    module: torch.nn.Module, tensors: Mapping[str, Tensor], *, source: str, names: Collection[str] | None = None
) -> None:
    """Copy tensors into a module, or into those of its tensors that have these names; InputError, in one line, if names
    or shapes differ.
    """
    every = module.state_dict()
    own = every if names is None else {name: every[name] for name in names}
    missing, unexpected = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    reshaped = [name for name in own.keys() & tensors.keys() if own[name].shape != tensors[name].shape]
    if missing or unexpected or reshaped:
        parts = [("missing", missing), ("unexpected", unexpected), ("of another shape", sorted(reshaped))]
        problems = "; ".join(f"{len(names)} {problem} (first {names[0]})" for problem, names in parts if names)
        raise InputError(f"{source} holds weights of another architecture: {problems}")
    module.load_state_dict({**every, **tensors})
