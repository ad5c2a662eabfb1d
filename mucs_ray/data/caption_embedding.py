"""Captions as conditions: the open_clip ViT-L-14 (laion2b_s32b_b82k) text tower, from a local file (spec 2).

Nothing is ever downloaded.

Axes: n captions, t tokens, d = 768.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float32, Int
from torch import Tensor

from mucs_ray.encoders import weights
from mucs_ray.encoders.networks import CLIP_ARCHITECTURE, CLIP_DIM
from mucs_ray.encoders.weights import CLIP_WEIGHTS, read_weights
from mucs_ray.errors import MachineError

if TYPE_CHECKING:  # imported where it is used: open_clip takes seconds, and most data sets have no captions
    from open_clip.transformer import TextTransformer

VARIABLE = CLIP_WEIGHTS.variable
DIM = CLIP_DIM
BATCH = 64


def find_weights() -> str:
    """Return the file that holds the text tower (and the image tower); MachineError if there is none."""
    try:
        return weights.find_weights(CLIP_WEIGHTS)
    except MachineError as error:
        raise MachineError(f"captions are embedded by CLIP: {error}") from None


def embed(captions: Sequence[str]) -> Float32[np.ndarray, "n d"]:
    """Return one embedding of length 1 for each caption; a caption beyond 77 tokens is cut."""
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
    """Return the embeddings of each image's captions."""
    vectors = embed([caption for group in groups for caption in group])
    at = 0
    for group in groups:
        yield vectors[at : at + len(group)]
        at += len(group)


@torch.inference_mode()
def encode(tower: "TextTransformer", tokens: Int[Tensor, "n t"]) -> Float32[Tensor, "n d"]:
    """Return the embeddings of token ids, as CLIP.encode_text(normalize=True) gives them.

    Attention is causal and the embedding is read at the end-of-text token, so the padding after the longest caption is
    not computed.
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
    """Return ViT-L-14's tokenizer, which is part of open_clip."""
    from open_clip import get_tokenizer

    return get_tokenizer(CLIP_ARCHITECTURE)


@lru_cache(maxsize=1)
def load_tower(path: str) -> "TextTransformer":
    """Load the text tower with the weights of a file, once a process, on the GPU if there is one.

    InputError if the file is of another architecture or broken.
    """
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in new_tower().state_dict().items()}
    tensors = read_weights(path, shapes, network=CLIP_WEIGHTS.network)
    tower = new_tower()
    tower.load_state_dict(tensors)
    return tower.to("cuda" if torch.cuda.is_available() else "cpu")


def new_tower() -> "TextTransformer":
    """Build the text tower of ViT-L-14 in fp32 with random weights."""
    from open_clip import get_model_config
    from open_clip.transformer import TextTransformer

    config = get_model_config(CLIP_ARCHITECTURE)
    assert config is not None and config["embed_dim"] == DIM
    return TextTransformer(output_dim=DIM, **config["text_cfg"]).eval().requires_grad_(False)
