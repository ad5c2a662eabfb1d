"""The exponential moving average of the weights (spec 5)."""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


def frozen_copy(module: Module) -> Module:
    """Return a copy in eval mode that takes no gradients."""
    return copy.deepcopy(module).eval().requires_grad_(False)


@torch.no_grad()
def update_ema(average: nn.Module, live: nn.Module, decay: float) -> None:
    """Set average <- decay average + (1 - decay) live, in place; buffers and frozen weights do not change in
    training.
    """
    pairs = zip(average.parameters(), live.parameters(), strict=True)
    trained: list[tuple[Tensor, Tensor]] = [(mean, new) for mean, new in pairs if new.requires_grad]
    means, news = [mean for mean, _ in trained], [new for _, new in trained]
    torch._foreach_lerp_(means, news, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
