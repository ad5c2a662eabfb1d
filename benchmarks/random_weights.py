"""Random weights in which every layer has an effect, and random F2s near them; this needs torch alone."""

import torch
from torch import Tensor, nn

from mucs_ray.models.dit import unlearned_names

SMALL = 0.1
"""The standard deviation of the values that fill layers which start at zero, and of a random F2's change in units of
the changed tensor's own; it makes skews far larger than rounding.
"""


def filled(network: nn.Module) -> nn.Module:
    """Fill everything that starts at zero with small normal values, so that every layer has an effect."""
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=SMALL)
    return network


def nudged(network: nn.Module) -> dict[str, Tensor]:
    """Return a small random change of the tensors that unlearning changes."""
    own = {name: network.get_parameter(name).detach() for name in unlearned_names(network)}
    return {name: value + SMALL * value.std() * torch.randn_like(value) for name, value in own.items()}
