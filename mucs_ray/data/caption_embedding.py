"""Captions as vectors: the text tower of open_clip ViT-L-14 (laion2b_s32b_b82k), fp32, L2-normalised (spec 2).

The weights are read from this machine only, never fetched. Axes: n captions, t tokens, d = 768.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from mucs_ray.data.sources import Reject
from mucs_ray.data.table import Row
from mucs_ray.errors import MachineError

if TYPE_CHECKING:
    from open_clip.transformer import TextTransformer

WIDTH = 768
VARIABLE = "MUCS_RAY_CLIP_WEIGHTS"
REPOSITORY = "laion/CLIP-ViT-L-14-laion2B-s32B-b82K"
FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
CAPTIONS_PER_BATCH = 64
ROWS_PER_BATCH = 64
TOWER = ("token_embedding.", "positional_embedding", "transformer.", "ln_final.", "text_projection")


def find_weights() -> str:
    """The weights' file: $MUCS_RAY_CLIP_WEIGHTS, else the hub's local cache. MachineError, saying how to get it."""
    named = os.environ.get(VARIABLE)
    if named:
        if not Path(named).is_file():
            raise MachineError(f"{VARIABLE} names {named}, which is not a file; expected {FILES[0]} of {REPOSITORY}")
        return str(Path(named).absolute())
    from huggingface_hub import try_to_load_from_cache

    for name in FILES:
        found = try_to_load_from_cache(REPOSITORY, name)
        if isinstance(found, str):
            return found
    raise MachineError(
        f"embedding captions needs {FILES[0]} of {REPOSITORY}: set {VARIABLE} to its path, or put it in the hub's "
        f"cache with: hf download {REPOSITORY} {FILES[0]}"
    )


def embed(captions: Sequence[str], weights: str) -> Float32[np.ndarray, "n 768"]:
    """Unit vectors, in order of the captions. MachineError if the weights cannot be used."""
    from open_clip import tokenize

    tower = text_tower(weights)
    parts = [np.empty((0, WIDTH), dtype=np.float32)]
    for start in range(0, len(captions), CAPTIONS_PER_BATCH):
        tokens = tokenize(list(captions[start : start + CAPTIONS_PER_BATCH]))
        parts.append(encode(tower, tokens).cpu().numpy())
    return np.concatenate(parts)


@torch.inference_mode()
def encode(tower: "TextTransformer", tokens: Int64[Tensor, "n t"]) -> Float32[Tensor, "n d"]:
    """Unit vectors of tokenised captions; padding is cut off first.

    Attention is causal and the vector is read at the end token, so padding changes nothing and costs 4x the time.
    """
    length = int(tokens.argmax(dim=-1).max()) + 1
    tokens = tokens[:, :length].to(tower.positional_embedding.device)
    hidden = tower.token_embedding(tokens) + tower.positional_embedding[:length]
    hidden = tower.ln_final(tower.transformer(hidden, attn_mask=tower.attn_mask[:length, :length]))
    at_end = hidden[torch.arange(len(tokens)), tokens.argmax(dim=-1)]  # the end token has the highest id
    return torch.nn.functional.normalize(at_end @ tower.text_projection, dim=-1)


@lru_cache(maxsize=1)
def text_tower(weights: str) -> "TextTransformer":
    """The text tower, on the GPU if this process has one; read once a process. MachineError if the file is another's."""
    from open_clip.transformer import TextTransformer

    with torch.random.fork_rng(devices=[]):  # its constructor draws weights, which are replaced below
        tower = TextTransformer(width=WIDTH, heads=12, layers=12, output_dim=WIDTH)
    try:
        tower.load_state_dict(read_tower(weights))
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:160]
        raise MachineError(f"{weights} is not the ViT-L-14 of {REPOSITORY}: {detail}") from None
    return tower.to("cuda" if torch.cuda.is_available() else "cpu").eval().requires_grad_(False)


def read_tower(weights: str) -> dict[str, Tensor]:
    """The text tower's tensors out of the whole CLIP; pickles are read with weights_only."""
    from safetensors import SafetensorError, safe_open

    try:
        if weights.endswith(".safetensors"):
            with safe_open(weights, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys() if name.startswith(TOWER)}  # noqa: SIM118
        state = torch.load(weights, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise MachineError(f"{weights} is not on this machine: put {FILES[0]} of {REPOSITORY} there") from None
    except (SafetensorError, UnpicklingError, RuntimeError, ValueError, OSError) as error:
        detail = " ".join(str(error).split())[:160]
        raise MachineError(f"{weights} cannot be read ({detail}); expected {FILES[0]} of {REPOSITORY}") from None
    if not isinstance(state, dict):
        raise MachineError(f"{weights} holds no state dict; expected {FILES[1]} of {REPOSITORY}")
    return {name: tensor for name, tensor in state.items() if name.startswith(TOWER)}


def with_embeddings(rows: Iterator[Row | Reject], weights: str) -> Iterator[Row | Reject]:
    """The same rows in the same order, each with its captions embedded; a row without captions becomes a Reject."""
    while chunk := list(islice(rows, ROWS_PER_BATCH)):
        captions = [caption for row in chunk if isinstance(row, Row) for caption in row.text]
        vectors, start = embed(captions, weights), 0
        for row in chunk:
            if isinstance(row, Reject):
                yield row
            elif not row.text:
                yield Reject(idx=row.idx, where=f"idx {row.idx}", reason="has no caption")
            else:
                yield replace(row, condition=vectors[start : start + len(row.text)])
                start += len(row.text)
