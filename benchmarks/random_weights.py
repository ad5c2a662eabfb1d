"""Random weights that every layer has a say in, and random F2s near them; on torch alone."""

import torch
from torch import Tensor, nn

from mucs_ray.models.dit import unlearned_names

SMALL = 0.1
"""Standard deviation of what fills layers that start at zero, and of a random F2's change in units of the changed
tensor's own; so that skews are far above rounding."""


def filled(network: nn.Module) -> nn.Module:
    """With small normal values wherever everything starts at zero, so that every layer has a say."""
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=SMALL)
    return network


def nudged(network: nn.Module) -> dict[str, Tensor]:
    """A small random change of the tensors that unlearning changes."""
    own = {name: network.get_parameter(name).detach() for name in unlearned_names(network)}
    return {name: each + SMALL * each.std() * torch.randn_like(each) for name, each in own.items()}
