"""Linear layers and convolutions as matrices: their inputs and output gradients, from which K-FAC makes its factors.

A layer is y = W x, where x ends with a 1 if the layer has a bias, which then is the last column of W. A convolution is
such a layer on patches. `tokens` are all places of an input, of all its rows, at which a layer is applied.

Axes: t tokens, p inputs of a layer, o outputs of a layer.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeGuard

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad, unfold

from mucs_ray.errors import InputError

Layers = dict[str, nn.Linear | nn.Conv2d]
"""The layers of a network by their names, in its order."""


def layers_of(network: nn.Module) -> Layers:
    """Return the linear layers and the convolutions with padding by zeros and in one group.

    It raises InputError, with what has parameters instead, if there is none.
    """
    layers: Layers = {name: module for name, module in network.named_modules() if is_covered(module)}
    if not layers:
        kinds = Counter(type(module).__name__ for module in network.modules() if [*module.parameters(recurse=False)])
        found = ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "no parameters"
        raise InputError(f"kfac: expected linear layers or convolutions; found {found}; choose another method")
    return layers


def is_covered(module: nn.Module) -> TypeGuard[nn.Linear | nn.Conv2d]:
    """Return True if the layer is a matrix applied to tokens or patches."""
    if isinstance(module, nn.Conv2d):
        return module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return isinstance(module, nn.Linear)


def parameter_names(layers: Layers) -> list[str]:
    """Return the names of the layers' weights and biases in the network."""
    own = [(name, each) for name, layer in layers.items() for each, _ in layer.named_parameters(recurse=False)]
    return [f"{name}.{each}".lstrip(".") for name, each in own]


def as_matrices(layers: Layers, tensors: Mapping[str, Tensor]) -> dict[str, Float[Tensor, "o p"]]:
    """Return, by layer, weights or their gradients as matrices, with the bias as the last column."""
    matrices = {}
    for name, layer in layers.items():
        weight = tensors[f"{name}.weight".lstrip(".")].flatten(1)
        bias = [] if layer.bias is None else [tensors[f"{name}.bias".lstrip(".")][:, None]]
        matrices[name] = torch.cat([weight, *bias], dim=1)
    return matrices


@dataclass(slots=True)
class Calls:
    """This holds what passed through the layers, in the order of their calls; a layer may be called more than once."""

    names: list[str] = field(default_factory=list)
    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)


@contextmanager
def recorded_calls(layers: Layers) -> Iterator[Calls]:
    """Record the calls of the layers, by hooks that are gone afterwards."""
    calls = Calls()

    def record(name: str, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        calls.names.append(name)
        calls.inputs.append(arguments[0].detach())
        calls.outputs.append(output)

    def hook_of(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        return lambda _, arguments, output: record(name, arguments, output)

    handles = [layer.register_forward_hook(hook_of(name)) for name, layer in layers.items()]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def input_tokens(layer: nn.Linear | nn.Conv2d, inputs: Tensor) -> Float[Tensor, "t p"]:
    """Return the inputs of a layer, with a 1 at the end of each if there is a bias."""
    if isinstance(layer, nn.Conv2d):
        inputs = unfold(
            inputs,
            layer.kernel_size,
            dilation=layer.dilation,
            padding=layer.padding,  # pyright: ignore[reportArgumentType] - no str (is_covered)
            stride=layer.stride,
        ).transpose(1, 2)
    tokens = inputs.flatten(0, -2)
    return tokens if layer.bias is None else pad(tokens, (0, 1), value=1.0)


def output_tokens(layer: nn.Linear | nn.Conv2d, outputs: Tensor) -> Float[Tensor, "t o"]:
    """Return the outputs of a layer, or their gradients."""
    if isinstance(layer, nn.Conv2d):
        outputs = outputs.flatten(2).transpose(1, 2)
    return outputs.flatten(0, -2)
