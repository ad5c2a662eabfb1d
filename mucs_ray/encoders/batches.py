"""Pretrained networks applied to many images: in batches, in true fp32, without gradients."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor
from torch.backends import cudnn

from mucs_ray.spaces.pictures import Pictures

BATCH = 16
"""The number of images per forward. Each similarity concerns one pair, so this bounds memory only: LPIPS (VGG) takes
120 MB a pair.
"""


@contextmanager
def exact() -> Iterator[None]:
    """Disable gradients, autocast, and TF32 (which cuDNN uses by default)."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    flags = cudnn.flags(
        enabled=cudnn.enabled, benchmark=cudnn.benchmark, deterministic=cudnn.deterministic, allow_tf32=False
    )
    try:
        with torch.inference_mode(), flags, torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


def in_batches(
    function: Callable[..., Float[Tensor, "n ..."]], *stacks: Pictures, device: torch.device
) -> Float[Tensor, "n ..."]:
    """Apply a function to batches of images (at least one image), on `device`.

    The results are where the images are.
    """
    first = stacks[0]
    with exact():
        parts = [
            function(*(part.to(device, torch.float32) for part in parts)).to(first.device)
            for parts in zip(*(stack.split(BATCH) for stack in stacks), strict=True)
        ]
    return torch.cat(parts)
