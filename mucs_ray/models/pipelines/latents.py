"""The space of a pipeline: latents of its VAE, and captions as its text encoders see them.

    z = (mean of the posterior - shift) * scale, in fp32

Shift and scale are read from the VAE's configuration.
Axes: b pictures, c h w latent.
"""

from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache, wraps
from hashlib import sha256
from typing import Any, ParamSpec, TypeVar

import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor

from mucs_ray import storage
from mucs_ray.diffusion.condition import stacked
from mucs_ray.models.pipelines.components import load
from mucs_ray.models.pipelines.folder import PipelineFolder
from mucs_ray.models.pipelines.lora import NO_BRANCHES, Branches
from mucs_ray.models.pipelines.text import Encoded, Texts
from mucs_ray.spaces.codec import Asked, Codec
from mucs_ray.spaces.pictures import Pictures, StoredPictures

P = ParamSpec("P")
T = TypeVar("T")
ABSENT_SCALE = 0.18215
"""The scale of a VAE whose configuration names none, as those of 2022 do."""
MOST_CAPTIONS = 512
"""The captions of which a process keeps the tensors."""


def plain_tensors(function: Callable[P, T]) -> Callable[P, T]:
    """Keep no gradients, and make tensors that may be used with gradients, also where the caller is in inference."""

    @wraps(function)
    def plain(*args: P.args, **kwargs: P.kwargs) -> T:
        with torch.inference_mode(False), torch.no_grad():
            return function(*args, **kwargs)

    return plain


def key_of(caption: str) -> str:
    """Return the name of a caption in a table."""
    return sha256(caption.encode()).hexdigest()


class LatentCodec(Codec):
    """The codec of one pipeline. VAE and text encoders are loaded when they are first needed."""

    reads_text = True

    def __init__(
        self,
        folder: PipelineFolder,
        device: torch.device,
        *,
        side: int,
        caption: str = "",
        clip_skip: int = 0,
        branches: Branches = NO_BRANCHES,
    ) -> None:
        """Work on this device for pictures of this side; `caption` is that of pictures without one."""
        self.folder, self.device, self.side, self.caption = folder, device, side, caption
        self.clip_skip, self.branches = clip_skip, branches
        config = folder.configs["vae"]
        self.scale = float(config.get("scaling_factor", ABSENT_SCALE))
        self.shift = float(config.get("shift_factor") or 0.0)
        self.encoded = lru_cache(maxsize=MOST_CAPTIONS)(self._encoded)
        self.known: dict[str, Encoded] = {}
        self.learnt: set[str] = set()
        across = side // 2 ** (len(config.get("block_out_channels", [64])) - 1)
        self.shape = (int(config.get("latent_channels", 4)), across, across)

    @cached_property
    def vae(self) -> Any:  # noqa: ANN401 - a class of diffusers
        """The VAE, in fp32: that of SDXL overflows in half precision."""
        return load(self.folder, "vae").to(self.device)

    @property
    def pools(self) -> bool:
        """Whether the network reads a vector of the caption, and sizes of the picture."""
        return self.folder.family.name == "sdxl"

    @cached_property
    def texts(self) -> Texts:
        """The text encoders."""
        return Texts(self.folder, self.device, clip_skip=self.clip_skip, branches=self.branches)

    @plain_tensors
    def encode(self, pictures: StoredPictures) -> Float[Tensor, "b c h w"]:
        """Encode pictures one by one, so that z of one does not depend on the others."""
        latents = []
        for picture in pictures:
            pixels = picture[None].to(self.device).float() / 127.5 - 1
            latents.append((self.vae.encode(pixels).latent_dist.mean - self.shift) * self.scale)
        return torch.cat(latents).to(pictures.device)

    @plain_tensors
    def decode(self, z: Float[Tensor, "b c h w"]) -> Pictures:
        """Decode latents one by one to pictures in [0, 1]."""
        pictures = [self.vae.decode(row[None].to(self.device) / self.scale + self.shift).sample for row in z]
        return (torch.cat(pictures) * 0.5 + 0.5).clamp(0, 1).to(z.device)

    def shown(self, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return z: what a picture cannot show is left out when it is decoded."""
        return z

    def condition(self, asked: Sequence[Asked]) -> dict[str, Tensor]:
        """Return the condition of pictures; one without a caption has the recipe's or, without that, the null one."""
        return stacked([self._condition_of(picture) for picture in asked])

    def nothing(self) -> dict[str, Tensor]:
        """Return the null condition of one picture: that of the empty caption or, where the pipeline says so, zeros."""
        encoded = self.encoded("")
        if self.pools and self.folder.options.get("force_zeros_for_empty_prompt", True):
            encoded = Encoded(*[torch.zeros_like(tensor) for tensor in encoded if tensor is not None])
        return self._named(encoded, Asked())

    def _condition_of(self, asked: Asked) -> dict[str, Tensor]:
        text = self.caption if asked.text is None else asked.text
        return self._named(self.encoded(text), asked) if text else {**self.nothing(), **self._times(asked)}

    def _named(self, encoded: Encoded, asked: Asked) -> dict[str, Tensor]:
        pooled = {} if encoded.pooled is None else {"pooled": encoded.pooled}
        return {"tokens": encoded.tokens, **pooled, **self._times(asked)}

    def _times(self, asked: Asked) -> dict[str, Tensor]:
        """Return what SDXL is told of a picture: its size before the crop, where the crop begins, and its own size."""
        if not self.pools:
            return {}
        own = (self.side, self.side)
        return {"time_ids": torch.tensor([*(asked.size or own), *asked.crop, *own], dtype=torch.float32)}

    def learn(self, captions: str) -> None:
        """Take the tensors of captions from a table; the second time there is nothing to do."""
        if captions in self.learnt:
            return
        tensors = safetensors.torch.load(storage.read_bytes(captions))
        for key in {name.partition("/")[0] for name in tensors}:
            self.known[key] = Encoded(tokens=tensors[f"{key}/tokens"], pooled=tensors.get(f"{key}/pooled"))
        self.learnt.add(captions)

    def tensors_of(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Return the tensors of captions under their sha256, with those of the empty one and of the recipe's."""
        tensors = {}
        for caption in {*captions, self.caption, ""}:
            encoded = self.encoded(caption)._asdict()
            tensors |= {f"{key_of(caption)}/{name}": value for name, value in encoded.items() if value is not None}
        return tensors

    @plain_tensors
    def _encoded(self, caption: str) -> Encoded:
        if known := self.known.get(key_of(caption)):
            return known
        tokens, pooled = self.texts.encode(caption)
        return Encoded(tokens=tokens.float().cpu(), pooled=None if pooled is None else pooled.float().cpu())
