"""The text encoders of a pipeline: captions become the tensors that its network reads.

Each caption is encoded alone, so that its tensors do not depend on the others, to the last bit.
Axes: t tokens, d width of a token.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mucs_ray.models.pipelines.components import load, load_tokenizer
from mucs_ray.models.pipelines.folder import PipelineFolder
from mucs_ray.models.pipelines.lora import NO_BRANCHES, Branches, put_on

PENULTIMATE = 2
"""SDXL reads the last layer but one of each encoder, without the norm that follows the last."""


class Encoded(NamedTuple):
    """What the encoders make of one caption."""

    tokens: Float[Tensor, "t d"]
    pooled: Float[Tensor, " p"] | None
    """A vector of the whole caption, for networks that read one."""


class TextEncoder(NamedTuple):
    """One encoder with its tokenizer."""

    tokenizer: Callable[..., Mapping[str, Tensor]]
    network: nn.Module

    def __call__(self, caption: str, **asked: bool) -> Any:  # noqa: ANN401 - an output of transformers
        """Return the output for a caption, which is cut or filled up to the length that the encoder takes."""
        tokenizer: Any = self.tokenizer
        tokens = tokenizer(
            caption,
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        device = next(self.network.parameters()).device
        config: Any = self.network.config
        masked = getattr(config, "use_attention_mask", False)
        mask = tokens["attention_mask"].to(device) if masked else None
        return self.network(tokens["input_ids"].to(device), attention_mask=mask, **asked)


class Texts:
    """All encoders of a pipeline."""

    def __init__(
        self, folder: PipelineFolder, device: torch.device, *, clip_skip: int = 0, branches: Branches = NO_BRANCHES
    ) -> None:
        """Load the encoders and their tokenizers, and put on what a LoRA has for them."""
        names = [name for name in folder.family.parts if name.startswith("text_encoder")]
        tokenizers = [name.replace("text_encoder", "tokenizer") for name in names]
        self.encoders = [
            TextEncoder(load_tokenizer(folder, tokenizer), load(folder, name).to(device))
            for name, tokenizer in zip(names, tokenizers, strict=True)
        ]
        for name, encoder in zip(names, self.encoders, strict=True):
            put_on(encoder.network, branches.get(name, {}), name)
        self.pools, self.clip_skip = folder.family.name == "sdxl", clip_skip

    def encode(self, caption: str) -> Encoded:
        """Encode one caption."""
        if self.pools:
            outputs = [encoder(caption, output_hidden_states=True) for encoder in self.encoders]
            hidden = [output.hidden_states[-(PENULTIMATE + self.clip_skip)][0] for output in outputs]
            return Encoded(tokens=torch.cat(hidden, dim=-1), pooled=outputs[-1][0][0])
        (encoder,) = self.encoders
        if not self.clip_skip:
            return Encoded(tokens=encoder(caption)[0][0], pooled=None)
        output = encoder(caption, output_hidden_states=True)
        text: Any = getattr(encoder.network, "text_model", encoder.network)
        return Encoded(tokens=text.final_layer_norm(output.hidden_states[-(1 + self.clip_skip)])[0], pooled=None)
