"""Low-rank branches (LoRA) beside the matrices of any diffusion model: y = W x + (alpha / rank) B A x.

The weights W keep their names and are frozen. A and B are parameters `lora_a` and `lora_b` of the same layer; a
convolution has the kernel of W in A, and B mixes channels. B starts at zero, and so the model at its base.

Axes: r rank, o outputs, i inputs of a layer, b batch, *shape of an image.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear

from mucs_ray.diffusion.condition import Condition
from mucs_ray.diffusion.model import DiffusionModel, Selector
from mucs_ray.diffusion.noise import generator, normal
from mucs_ray.diffusion.process import Coefficients
from mucs_ray.errors import InputError

A, B, SCALE = "lora_a", "lora_b", "lora_scale"


class LowRankModel(DiffusionModel):
    """A diffusion model whose branches alone are trained and unlearned."""

    model: DiffusionModel
    """The model without its branches, with the same network."""

    def __init__(self, model: DiffusionModel, branches: Sequence[str]) -> None:
        """Take over `model`, beside whose network these parameters stand."""
        super().__init__(model.network)
        # not as a submodule, or the network would have two names
        object.__setattr__(self, "model", model)
        for name in ("limit", "stem_parameters"):  # of the model's class
            object.__setattr__(self, name, getattr(model, name))
        self.process, self.branches = model.process, list(branches)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one image."""
        return self.model.shape

    def raw(
        self,
        noisy: Float[Tensor, "b *shape"],
        at: Coefficients,
        condition: Condition,
        stem: Any = None,  # noqa: ANN401 - whatever the model's own stem makes
    ) -> Float[Tensor, "b *shape"]:
        """Return the network's output, branches included."""
        return self.model.raw(noisy, at, condition, stem)

    def nothing(self, num: int) -> Condition:
        """Return the null condition of the base."""
        return self.model.nothing(num)

    def names(self, which: Selector) -> list[str]:
        """Return the names of the branches, whichever tensors a method asks for: the others were not trained."""
        return list(self.branches)

    def blocks(self) -> Sequence[nn.Module]:
        """Return the modules worth compiling."""
        return self.model.blocks()

    def stem(self, noisy: Float[Tensor, "b *shape"], level: Float[Tensor, " b"]) -> Tensor:
        """Compute the part of the network that no unlearned parameter influences."""
        return self.model.stem(noisy, level)


def with_branches(model: DiffusionModel, which: Selector, *, rank: int, alpha: float) -> LowRankModel:
    """Put branches of this rank, which add nothing yet, beside the matrices that `which` selects.

    InputError, naming the matrix, if one does not belong to a linear layer or a convolution in one group.
    """
    names = []
    for name in model.names(which):
        owner, _, tensor = name.rpartition(".")
        layer = model.network.get_submodule(owner)
        if tensor != "weight" or not takes_branch(layer):
            raise InputError(
                f"finetune.targets {which}: expected linear layers and convolutions; found {name} of a"
                f" {type(layer).__name__}; choose other targets, or finetune.kind full"
            )
        weight = model.network.get_parameter(name)
        outputs, *inputs = weight.shape
        layer.register_parameter(A, nn.Parameter(torch.zeros(rank, *inputs, device=weight.device)))
        layer.register_parameter(B, nn.Parameter(torch.zeros(outputs, rank, device=weight.device)))
        setattr(layer, SCALE, alpha / rank)
        layer.register_forward_hook(add_branch)
        names += [f"{owner}.{A}", f"{owner}.{B}"]
    return LowRankModel(model, names)


def takes_branch(layer: nn.Module) -> bool:
    """Return True for a layer whose branch is known."""
    if isinstance(layer, nn.Conv2d):
        return layer.groups == 1 and layer.padding_mode == "zeros"
    return isinstance(layer, nn.Linear)


def add_branch(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:  # noqa: ANN401 - with A and B
    """Return the output of a layer with that of its branch added; a forward hook."""
    (x,) = inputs
    a, b, scale = layer.lora_a, layer.lora_b, layer.lora_scale
    if isinstance(layer, nn.Conv2d):
        low = conv2d(x, a, None, layer.stride, layer.padding, layer.dilation)
        return output + scale * conv2d(low, b[:, :, None, None])
    return output + scale * linear(linear(x, a), b)


@torch.no_grad()
def start_branches(model: LowRankModel, seed: int) -> None:
    """Set each A to normal numbers, of which each has its name, of variance 1 / inputs; B stays zero.

    Then only the branches take gradients.
    """
    model.requires_grad_(False)
    for name in model.branches:
        parameter = model.network.get_parameter(name)
        parameter.requires_grad_(True)
        if name.endswith(A):
            drawn = normal(generator(seed, f"train/init/{name}"), *parameter.shape)
            parameter.copy_(drawn / parameter[0].numel() ** 0.5)
