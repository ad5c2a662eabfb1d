"""The exponential moving average of the weights (spec 5)."""

import copy
from typing import TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def frozen_copy(module: Module) -> Module:
    """Return a copy in eval mode that takes no gradients."""
    return copy.deepcopy(module).eval().requires_grad_(False)


@torch.no_grad()
def update_ema(average: nn.Module, live: nn.Module, decay: float) -> None:
    """Set average <- decay average + (1 - decay) live, in place; buffers do not change in training."""
    torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
        list(average.parameters()), list(live.parameters()), 1 - decay
    )
