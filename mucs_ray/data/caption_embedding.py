"""Captions as conditions: the open_clip ViT-L-14 (laion2b_s32b_b82k) text tower, from a file on this machine (spec 2).

Nothing is ever fetched. Axes: n captions, t tokens, d = 768.
"""

import os
import pickle
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float32, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mucs_ray.errors import InputError, MachineError

if TYPE_CHECKING:  # imported where it is used: open_clip takes seconds, and most data sets have no captions
    from open_clip.transformer import TextTransformer

ARCHITECTURE = "ViT-L-14"
HUB_REPOSITORY = "laion/CLIP-ViT-L-14-laion2B-s32B-b82K"
HUB_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
VARIABLE = "MUCS_RAY_CLIP_WEIGHTS"
SUFFIXES = (".safetensors", ".bin", ".pt")
DIM = 768
BATCH = 64


def find_weights() -> str:
    """The file of weights: the one MUCS_RAY_CLIP_WEIGHTS names, else the hub cache's. MachineError if there is none."""
    from huggingface_hub import constants, try_to_load_from_cache

    cache = constants.HF_HUB_CACHE
    obtain = f"hf download {HUB_REPOSITORY} {HUB_FILES[0]}"
    named = os.environ.get(VARIABLE)
    if named:
        if not Path(named).is_file():
            raise MachineError(
                f"{VARIABLE} names {named}, which is no file here; expected the weights of open_clip {ARCHITECTURE}"
                f" laion2b_s32b_b82k ({', '.join(SUFFIXES)}); to get them, with internet: {obtain}"
            )
        return named
    for name in HUB_FILES:
        path = try_to_load_from_cache(HUB_REPOSITORY, name, cache_dir=cache)
        if isinstance(path, str):
            return path
    raise MachineError(
        f"captions are embedded by open_clip {ARCHITECTURE} laion2b_s32b_b82k, whose weights are not here: expected"
        f" {HUB_FILES[0]} of {HUB_REPOSITORY} in the hub cache {cache}, or the file that {VARIABLE} names"
        f" ({', '.join(SUFFIXES)}); to get it, with internet: {obtain}"
    )


def embed(captions: Sequence[str]) -> Float32[np.ndarray, "n d"]:
    """One embedding a caption, of length 1; a caption beyond 77 tokens is cut."""
    if not captions:
        return np.zeros((0, DIM), dtype=np.float32)
    tower = load_tower(find_weights())
    device = tower.positional_embedding.device
    tokenize = tokenizer()
    rest = iter(captions)
    parts = []
    while batch := list(islice(rest, BATCH)):
        parts.append(encode(tower, tokenize(batch).to(device)).cpu().numpy())
    return np.concatenate(parts)


def embed_each(groups: Sequence[Sequence[str]]) -> Iterator[Float32[np.ndarray, "captions d"]]:
    """The embeddings of each image's captions."""
    vectors = embed([caption for group in groups for caption in group])
    at = 0
    for group in groups:
        yield vectors[at : at + len(group)]
        at += len(group)


@torch.inference_mode()
def encode(tower: "TextTransformer", tokens: Int[Tensor, "n t"]) -> Float32[Tensor, "n d"]:
    """Embeddings of token ids, as CLIP.encode_text(normalize=True) gives them.

    Attention is causal and the embedding is read at the end-of-text token, so what is padded after the longest
    caption is not computed.
    """
    ends = tokens.argmax(dim=1)
    length = int(ends.max()) + 1
    assert tower.attn_mask is not None
    hidden = tower.token_embedding(tokens[:, :length]) + tower.positional_embedding[:length]
    hidden = tower.transformer(hidden, attn_mask=tower.attn_mask[:length, :length])
    last = tower.ln_final(hidden[torch.arange(len(ends), device=ends.device), ends])
    return torch.nn.functional.normalize(last @ tower.text_projection, dim=-1)


@lru_cache(maxsize=1)
def tokenizer():  # noqa: ANN201 (open_clip's type is not exported)
    """ViT-L-14's tokenizer, which is part of open_clip."""
    from open_clip import get_tokenizer

    return get_tokenizer(ARCHITECTURE)


@lru_cache(maxsize=1)
def load_tower(path: str) -> "TextTransformer":
    """The text tower with the weights of a file, once a process; on the GPU if there is one.

    InputError if the file is of another architecture or broken.
    """
    with torch.device("meta"):
        wanted = {name: tuple(value.shape) for name, value in new_tower().state_dict().items()}
    found = read_tensors(path, set(wanted))
    for name, shape in wanted.items():
        there = tuple(found[name].shape) if name in found else "absent"
        if there != shape:
            raise InputError(
                f"{path} is not open_clip {ARCHITECTURE} laion2b_s32b_b82k: {name} is {there}, expected {shape}"
            )
    tower = new_tower()
    tower.load_state_dict(found)
    return tower.to("cuda" if torch.cuda.is_available() else "cpu")


def new_tower() -> "TextTransformer":
    """The text tower of ViT-L-14 in fp32, weights random."""
    from open_clip import get_model_config
    from open_clip.transformer import TextTransformer

    config = get_model_config(ARCHITECTURE)
    assert config is not None and config["embed_dim"] == DIM
    return TextTransformer(output_dim=DIM, **config["text_cfg"]).eval().requires_grad_(False)


def read_tensors(path: str, names: set[str]) -> dict[str, Tensor]:
    """Those of the named tensors that a file holds; the image tower's are left where they are."""
    try:
        if path.endswith(".safetensors"):
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in names.intersection(file.keys())}
        if not path.endswith(SUFFIXES):
            raise InputError(f"{path}: weights are read from {', '.join(SUFFIXES)} files")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise MachineError(f"the CLIP weights {path} are gone") from None
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"the CLIP weights {path} cannot be read ({reason})") from None
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = {name.removeprefix("module."): value for name, value in content["state_dict"].items()}
    tensors = content if isinstance(content, dict) else {}
    return {name: tensors[name] for name in names if isinstance(tensors.get(name), Tensor)}
