"""Influence by K-FAC: g_i^T (G + lambda I)^-1 g_q, with the Gauss-Newton matrix G as Kronecker products (2410.13850).

g is the gradient of the denoising loss, averaged over noises that are the same for all images and items. To first order
the item's loss rises by this over N if image i is left out of training: higher = more influential.

The loss of a draw is weight mean (F - F*)^2 over the d elements of F, whose curvature by F is 2 weight / d times the
identity. So the mean over draws of J^T (2 weight / d) J is G, which is also the second moment of u^T J with u ~ N(0, 2
weight / d): gradients for outputs that are sampled around the model's own. For a layer y = W x, applied to tokens,

    G ~= S (x) A,    S = mean over draws of sum over tokens of (dF/dy)^T u u^T (dF/dy),
                     A = mean over draws and tokens of x x^T,

which takes tokens as independent ("expand"), and layers as well. Layers are all linear ones and convolutions; norms,
embeddings and what is left have no part.

Axes: b images, i items, n draws, p inputs of a layer, o outputs of a layer, *shape of an image.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from mucs_ray.attribution.base import Attributor, ItemState, MethodSettings, Passes, Tensors
from mucs_ray.attribution.card import MethodStage
from mucs_ray.attribution.cards.kfac import CARD, KFACConfig
from mucs_ray.attribution.finite import require_finite
from mucs_ray.attribution.image_gradients import AveragedGradient, Output, answer
from mucs_ray.attribution.layers import (
    Layers,
    as_matrices,
    input_tokens,
    layers_of,
    output_tokens,
    parameter_names,
    recorded_calls,
)
from mucs_ray.diffusion.batch import Batch, Item
from mucs_ray.diffusion.condition import Condition, moved, one_by_one
from mucs_ray.diffusion.model import DiffusionModel
from mucs_ray.diffusion.noise import NoiseSet, generator, normal
from mucs_ray.diffusion.rows import per_row
from mucs_ray.errors import RunFailed

COUNT = "count"
"""The name of the number of draws in the sums, beside which it is stored."""
INPUTS, OUTPUTS = "inputs", "outputs"
"""The ends of the names of A and S."""
MOST_SUMS = 16
"""Files of sums over the training set, at most (docs/run-directory.md)."""


class KFAC(Attributor):
    """This is the influence of training images on the loss of an item, with the curvature of K-FAC."""

    card = CARD
    config: KFACConfig

    @classmethod
    def passes(cls, stage: MethodStage, settings: MethodSettings, *, num_images: int, num_items: int) -> Passes:
        """Count a backward pass for each draw of the factors, and for each noise of an item and of an image."""
        config: KFACConfig = cls.config_in(settings)
        counts = {"accumulate": num_images * config.factor_draws, "fit_item": num_items * config.noises}
        return Passes(backwards=counts.get(stage.hook, num_images * config.noises if stage.hook == "score" else 0))

    @classmethod
    def written_bytes(
        cls, stage: MethodStage, settings: MethodSettings, *, model: DiffusionModel, num_images: int, num_items: int
    ) -> int:
        """Count the factors, their eigenvectors, a matrix for each layer and item, and scores."""
        weights = dict(model.network.named_parameters())
        shapes = [matrix.shape for matrix in as_matrices(layers_of(model.network), weights).values()]
        factors, entries = sum(o * o + p * p for o, p in shapes), sum(o * p for o, p in shapes)
        counts = {"accumulate": 2 * MOST_SUMS * factors, "fit": factors, "fit_item": num_items * entries}
        return 4 * counts.get(stage.hook, num_images * num_items)

    def accumulate(self, rows: Batch) -> Tensors:
        """Return the sums over images and draws of A and S of each layer, in float64.

        It raises RunFailed, naming the image, if one of them is not finite.
        """
        sums = {COUNT: torch.zeros((), dtype=torch.float64)}
        for at in range(len(rows)):
            one = rows[at : at + 1]
            self.context.on_progress()
            for name, factor in self.factors(one).items():
                require_finite(factor[None], one.idx, "the curvature of the loss of training image")
                sums[name] = sums[name] + factor if name in sums else factor
            sums[COUNT] += self.config.factor_draws
        return sums

    def factors(self, one: Batch) -> Tensors:
        """Return A and S of each layer, summed over the draws of one image."""
        model, num = self.context.model, self.config.factor_draws
        stream = generator(self.context.settings.seed, f"kfac/factors/idx={int(one.idx)}")
        level = model.process.training_levels(stream, num)
        noise, sampled = (normal(stream, num, *model.shape).to(one.z.device) for _ in range(2))
        (condition,) = one_by_one(one.condition, 1)
        with recorded_calls(self.layers) as calls:
            output = answer(model, self.aliases, one.z[0], condition, level.to(one.z.device), noise)
        scales = (2 * output.weight / output.raw[0].numel()).sqrt()
        by_outputs = torch.autograd.grad(
            output.raw, calls.outputs, per_row(scales, sampled) * sampled, materialize_grads=True
        )
        factors: Tensors = {}
        for name, inputs, gradient in zip(calls.names, calls.inputs, by_outputs, strict=True):
            x, g = input_tokens(self.layers[name], inputs), output_tokens(self.layers[name], gradient)
            own = {f"{name}/{INPUTS}": x.T @ x / (len(x) / num), f"{name}/{OUTPUTS}": g.T @ g}
            for key, factor in own.items():
                factors[key] = factors[key] + factor.double() if key in factors else factor.double()
        return factors

    def fit(self, sums: Tensors, rows: Iterator[Batch]) -> Tensors:
        """Return eigenvectors and eigenvalues of A and S of each layer, and lambda.

        A layer whose outputs do not matter, as at initialisation, has no part. It raises RunFailed if all are such.
        """
        names = [key.removesuffix(f"/{OUTPUTS}") for key in sums if key.endswith(f"/{OUTPUTS}") and sums[key].any()]
        if not names:
            raise RunFailed(f"{self.card.label}: the output depends on no layer; check that the model is trained")
        fitted: Tensors = {}
        trace, entries = 0.0, 0
        for name in names:
            factors = [sums[f"{name}/{side}"] / sums[COUNT] for side in (INPUTS, OUTPUTS)]
            for side, factor in zip((INPUTS, OUTPUTS), factors, strict=True):
                values, vectors = torch.linalg.eigh(factor)
                fitted |= {f"{name}/{side}": vectors.float(), f"{name}/{side}/values": values.clamp(min=0)}
            trace += factors[0].trace().item() * factors[1].trace().item()
            entries += len(factors[0]) * len(factors[1])
        return fitted | {"lambda": torch.tensor(self.config.damping * trace / entries, dtype=torch.float64)}

    def fit_item(self, item: Item, fitted: Tensors, on_update: Callable[[int, float], None]) -> ItemState:
        """Return (G + lambda I)^-1 times the gradient of the item's loss, a matrix for each layer."""
        gradients = self.loss_gradient(item.z, item.condition)
        tensors = {
            name: solved(gradient.double(), fitted, name).float()
            for name, gradient in gradients.items()
            if f"{name}/{INPUTS}" in fitted
        }
        for tensor in tensors.values():
            what = f"{self.card.label}, item {item.number}: the gradient of the loss of the generated image"
            require_finite(tensor[None], [item.idx], what)
        return ItemState(tensors=tensors)

    def loss_gradient(self, image: Float[Tensor, "*shape"], condition: Condition) -> dict[str, Float[Tensor, "o p"]]:
        """Return the gradient of one image's loss by layer, averaged over noises; the image may be on any device."""
        device = self.context.device
        self.context.on_progress()
        gradients, _ = self.gradient(image.to(device), moved(condition, device))
        return as_matrices(self.layers, dict(zip(self.gradient.trainable, gradients, strict=True)))

    @cached_property
    def layers(self) -> Layers:
        """The layers of the network that are covered."""
        return layers_of(self.context.model.network)

    @cached_property
    def aliases(self) -> Tensors:
        """F1's weights, which stay frozen, as tensors that let gradients through."""
        named = self.context.model.network.named_parameters()
        return {name: weight.detach().requires_grad_(True) for name, weight in named}

    @cached_property
    def gradient(self) -> AveragedGradient:
        """The gradients with the method's noises, made at the first use."""
        context, config, seed = self.context, self.config, self.context.settings.seed
        levels = context.model.process.training_levels(generator(seed, "kfac/sigma"), config.noises)
        return AveragedGradient(
            context.model,
            weighted_loss,
            NoiseSet.draw(seed, "kfac/noise", levels, context.model.shape).to(context.device),
            names=parameter_names(self.layers),
            noises_per_pass=min(config.noises_per_forward, config.noises),
        )

    def load(self, fitted: Tensors, item_states: Sequence[Tensors]) -> None:
        """Keep the items' matrices."""
        self.of_items = list(item_states)

    def score(self, rows: Batch) -> Float[Tensor, "b i"]:
        """Return the products, summed in float64 for each item alone; an image takes one gradient for all items."""
        scores = []
        for at in range(len(rows)):
            one = rows[at : at + 1]  # a single row does not wait for later ones
            gradients = self.loss_gradient(one.z[0], one_by_one(one.condition, 1)[0])
            scores.append(torch.stack([product(gradients, own) for own in self.of_items]))
            require_finite(scores[-1][None], one.idx, f"{self.card.label}: the score of training image")
        return torch.stack(scores)


def weighted_loss(output: Output) -> Float[Tensor, " n"]:
    """Return the denoising loss at each noise."""
    return output.weight * output.losses


def solved(gradient: Float[Tensor, "o p"], fitted: Tensors, name: str) -> Float[Tensor, "o p"]:
    """Return (S (x) A + lambda I)^-1 times a layer's gradient, in the eigenbasis, in float64."""
    left, right = (fitted[f"{name}/{side}"].to(gradient) for side in (OUTPUTS, INPUTS))
    values = torch.outer(fitted[f"{name}/{OUTPUTS}/values"], fitted[f"{name}/{INPUTS}/values"]).to(gradient)
    return left @ (left.T @ gradient @ right / (values + fitted["lambda"].to(gradient))) @ right.T


def product(gradients: Tensors, own: Tensors) -> Float[Tensor, ""]:
    """Return the sum over layers of the products of two matrices entry by entry."""
    parts = [(gradients[name] * matrix).sum(dtype=torch.float64) for name, matrix in own.items()]
    return torch.stack(parts).sum()
