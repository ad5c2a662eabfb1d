"""Gradients of one image at a time, averaged over noises, and their sketch phi (spec 9.5).

A mean over elements of a function of the raw network output F_theta is differentiated at x_j = alpha_j z + s_j eps_j.
The pairs of level and noise, with levels distributed as in training, are the same for all images and items.

Axes: n noises, k = dim, *shape of an image.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import get_total_norm

from mucs_ray.attribution.cards.gradients import FeatureConfig
from mucs_ray.attribution.projection import Sketch
from mucs_ray.diffusion.condition import Condition, for_each, mapped
from mucs_ray.diffusion.model import DiffusionModel
from mucs_ray.diffusion.noise import NoiseSet
from mucs_ray.diffusion.process import Coefficients
from mucs_ray.diffusion.replay import Replay
from mucs_ray.diffusion.rows import copies, row_means


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """This is what the network answers for one image at some noises, and what it was asked for."""

    raw: Float[Tensor, "n *shape"]
    """F, with its graph."""
    target: Float[Tensor, "n *shape"]
    """F*."""
    weight: Float[Tensor, " n"]
    """The weight of (F - F*)^2 in the loss."""

    @property
    def losses(self) -> Float[Tensor, " n"]:
        """Return mean (F - F*)^2 over the elements, with its graph: the loss without its weight."""
        return row_means((self.raw - self.target).square())


Function = Callable[[Output], Float[Tensor, " n"]]
"""The function that is differentiated, at each noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The passes of one image give these."""

    feature: Float[Tensor, " k"]
    losses: Float[Tensor, " n"]
    """mean (F - F*)^2 over the elements: the denoising loss, where its weight of the raw output is 1 (spec 3.1)."""


class RawOutput(nn.Module):
    """This module makes a model the function whose gradients are taken, instead of a denoiser."""

    def __init__(self, model: DiffusionModel) -> None:
        """Wrap `model`, which stays unchanged."""
        super().__init__()
        self.model = model

    def forward(
        self, noisy: Float[Tensor, "n *shape"], at: Coefficients, condition: Condition
    ) -> Float[Tensor, "n *shape"]:
        """Return F, the raw output."""
        return self.model.raw(noisy, at, condition)


def answer(
    model: DiffusionModel,
    weights: Mapping[str, Tensor],
    image: Float[Tensor, "*shape"],
    condition: Condition,
    level: Float[Tensor, " n"],
    unit: Float[Tensor, "n *shape"],
) -> Output:
    """Return what the network with these weights answers for one image at these noises."""
    process, images = model.process, copies(image, len(level))
    at = process.at(level)
    inputs = process.noised(images, unit, level), at, for_each(condition, len(level))
    named = {f"model.network.{name}": weight for name, weight in weights.items()}
    raw = functional_call(RawOutput(model), named, inputs)
    return Output(raw=raw, target=process.target(images, unit, level), weight=at.weight)


class AveragedGradient:
    """This computes the gradient of a function at one image, averaged over the noises."""

    def __init__(
        self,
        model: DiffusionModel,
        function: Function,
        noises: NoiseSet,
        *,
        names: Sequence[str],
        noises_per_pass: int,
        scale_each: bool = False,
        scale_average: bool = False,
    ) -> None:
        """Prepare for images with these noises, and for the gradients of the tensors of these names.

        `model` is frozen and stays so: gradients are taken at aliases of its weights. With `scale_average` the average
        has length 1, with `scale_each` the gradient of each pass before it is averaged.
        """
        self.model, self.function, self.noises = model, function, noises
        self.weights = {name: weight.detach() for name, weight in model.network.named_parameters()}
        self.trainable = {name: self.weights[name].requires_grad_(True) for name in names}
        count = len(noises.level)
        self.cuts = [slice(at, at + noises_per_pass) for at in range(0, count, noises_per_pass)]
        self.scale_each, self.scale_average = scale_each, scale_average

    def __call__(
        self, image: Float[Tensor, "*shape"], condition: Condition
    ) -> tuple[list[Tensor], Float[Tensor, " n"]]:
        """Return the gradient of each tensor, and the losses, from one backward pass for each cut of the noises."""
        trainable = list(self.trainable.values())
        total = [torch.zeros_like(weight) for weight in trainable]
        losses = []
        for cut in self.cuts:
            output = self.output(image, condition, cut)
            share = len(output.raw) / len(self.noises.level)
            gradients = torch.autograd.grad(self.function(output).mean(), trainable, materialize_grads=True)
            length = get_total_norm(gradients) + 1e-8 if self.scale_each else 1.0
            for summed, gradient in zip(total, gradients, strict=True):
                summed += gradient * share / length
            losses.append(output.losses.detach())
        if self.scale_average:
            length = get_total_norm(total) + 1e-8
            total = [summed / length for summed in total]
        return total, torch.cat(losses)

    def output(self, image: Float[Tensor, "*shape"], condition: Condition, cut: slice) -> Output:
        """Return what the network answers at some of the noises."""
        return answer(self.model, self.weights, image, condition, self.noises.level[cut], self.noises.unit[cut])


class ImageGradients:
    """This computes phi of one image at a time, so that no other image of a batch changes a bit of it."""

    def __init__(
        self,
        denoiser: DiffusionModel,
        function: Function,
        noises: NoiseSet,
        *,
        names: Sequence[str],
        unit_length: bool,
        per_noise: bool,
        config: FeatureConfig,
        seed: int,
        captures: bool = False,
    ) -> None:
        """Prepare for images with these noises, and for the gradients of the tensors of these names.

        With `unit_length` a gradient is scaled to length 1: that of the average, or, with `per_noise`, each one before
        averaging. With `captures` the passes of an image are captured as a CUDA graph at the first one.
        """
        self.gradient = AveragedGradient(
            denoiser,
            function,
            noises,
            names=names,
            noises_per_pass=1 if per_noise else min(config.noises_per_forward, len(noises.level)),
            scale_each=unit_length and per_noise,
            scale_average=unit_length and not per_noise,
        )
        sizes = {name: weight.numel() for name, weight in self.gradient.trainable.items()}
        self.sketch = Sketch(sizes, dim=config.dim, signs=config.signs, seed=seed, device=noises.level.device)
        self.captures = captures
        self.replay: Replay | None = None

    def __call__(self, image: Float[Tensor, "*shape"], condition: Condition) -> Measured:
        """Return phi and the losses of one image; the numbers are the same with and without `captures`."""
        if not self.captures:
            return Measured(**self._passes(image, condition))
        if self.replay is None:
            self.fixed = image.clone(), mapped(condition, Tensor.clone)
            self.replay = Replay(lambda: self._passes(*self.fixed), image.device)
        fixed_image, fixed_condition = self.fixed
        fixed_image.copy_(image)
        for name, tensor in fixed_condition.items():
            tensor.copy_(condition[name])
        return Measured(**mapped(self.replay(), Tensor.clone))

    def _passes(self, image: Float[Tensor, "*shape"], condition: Condition) -> dict[str, Tensor]:
        """Return the fields of `Measured`.

        The average is projected, not each gradient, because the projection is linear and takes a pass over all weights.
        """
        total, losses = self.gradient(image, condition)
        return {"feature": self.sketch(total), "losses": losses}
