"""Gradient methods make a projected gradient phi of each image, and compare by K = Phi^T Phi + lambda I (spec 9.5).

phi(z) = S mean_j grad_theta f_j(z), where f_j is a mean over elements of a function of the raw network output F_theta
at x_j = alpha_j z + s_j eps_j. The pairs of level and noise, with levels distributed as in training, are the same for
all training images and items. f is not the loss, because the gradient of the loss compares worse [D-TRAK]. D-TRAK and
DAS share this module, and each defines its f.

Axes: b images, i items, n noises, k = dim, *shape of an image.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import get_total_norm

from mucs_ray.attribution.base import Attributor, Columns, ItemState, MethodSettings, Passes, Tensors
from mucs_ray.attribution.card import MethodStage
from mucs_ray.attribution.cards.gradients import GradientConfig
from mucs_ray.attribution.finite import require_finite
from mucs_ray.attribution.projection import Sketch
from mucs_ray.diffusion.batch import Batch, Item
from mucs_ray.diffusion.condition import Condition, for_each, mapped, moved, one_by_one
from mucs_ray.diffusion.model import DiffusionModel
from mucs_ray.diffusion.noise import NoiseSet, generator
from mucs_ray.diffusion.process import Coefficients
from mucs_ray.diffusion.replay import Replay
from mucs_ray.diffusion.rows import copies, row_means
from mucs_ray.errors import RunFailed

ElementMean = Callable[[Float[Tensor, "n *shape"]], Float[Tensor, " n"]]


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


class ImageGradients:
    """This computes phi of one image at a time, so that no other image of a batch changes a bit of it."""

    def __init__(
        self,
        denoiser: DiffusionModel,
        function: ElementMean,
        noises: NoiseSet,
        *,
        unit_length: bool,
        config: GradientConfig,
        seed: int,
        captures: bool = False,
    ) -> None:
        """Prepare for images with these noises.

        `denoiser` is frozen and stays so: gradients are taken at aliases of its weights. With `unit_length` a gradient
        is scaled to length 1: that of the average, or each one before averaging. With `captures` the passes of an image
        are captured as a CUDA graph at the first one.
        """
        self.model, self.function, self.noises = denoiser, function, noises
        self.weights = {name: weight.detach() for name, weight in denoiser.network.named_parameters()}
        names = denoiser.names(config.parameters)
        self.trainable = [self.weights[name].requires_grad_(True) for name in names]
        sizes = {name: self.weights[name].numel() for name in names}
        self.sketch = Sketch(sizes, dim=config.dim, signs=config.signs, seed=seed, device=noises.level.device)
        count = len(noises.level)
        per_noise = config.gradients == "per_noise"
        at_once = 1 if per_noise else min(config.noises_per_forward, count)
        self.scale_each, self.scale_average = unit_length and per_noise, unit_length and not per_noise
        self.cuts = [slice(at, at + at_once) for at in range(0, count, at_once)]
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
        """Return the fields of `Measured`, from one backward pass for each cut of the noises.

        The average is projected, not each gradient, because the projection is linear and takes a pass over all weights.
        """
        total = [torch.zeros_like(weight) for weight in self.trainable]
        losses = []
        for cut in self.cuts:
            raw, errors = self._forward(image, condition, cut)
            share = len(raw) / len(self.noises.level)
            gradients = torch.autograd.grad(self.function(raw).mean(), self.trainable, materialize_grads=True)
            length = get_total_norm(gradients) + 1e-8 if self.scale_each else 1.0
            for summed, gradient in zip(total, gradients, strict=True):
                summed += gradient * share / length
            losses.append(errors)
        if self.scale_average:
            length = get_total_norm(total) + 1e-8
            total = [summed / length for summed in total]
        return {"feature": self.sketch(total), "losses": torch.cat(losses)}

    def _forward(
        self, image: Float[Tensor, "*shape"], condition: Condition, cut: slice
    ) -> tuple[Float[Tensor, "n *shape"], Float[Tensor, " n"]]:
        """Return F at some of the noises, with its graph, and the losses there, without one.

        The losses are the training loss without its weight.
        """
        level, unit = self.noises.level[cut], self.noises.unit[cut]
        process, images = self.model.process, copies(image, len(level))
        inputs = process.noised(images, unit, level), process.at(level), for_each(condition, len(level))
        weights = {f"model.network.{name}": weight for name, weight in self.weights.items()}
        raw = functional_call(RawOutput(self.model), weights, inputs)
        target = process.target(images, unit, level)
        return raw, row_means((raw.detach() - target).square())


class GradientAttributor(Attributor):
    """A method of this kind scores by phi(item)^T K^-1 phi_i; subclasses define what is differentiated, and what else
    counts.
    """

    unit_length: ClassVar[bool] = False
    """Whether gradients are scaled to length 1 before they are averaged."""

    @classmethod
    def passes(cls, stage: MethodStage, settings: MethodSettings, *, num_images: int, num_items: int) -> Passes:
        """Count a backward pass on the whole set of noises, for each training image and each item."""
        counts = {"features": num_images, "fit_item": num_items}
        return Passes(backwards=counts.get(stage.hook, 0) * cls.config_in(settings).noises)

    @classmethod
    def written_bytes(
        cls, stage: MethodStage, settings: MethodSettings, *, model: DiffusionModel, num_images: int, num_items: int
    ) -> int:
        """Count features, the factor of their covariance, a vector for each item, and scores."""
        dim = cls.config_in(settings).dim
        counts = {
            "features": num_images * dim,
            "fit": dim**2,
            "fit_item": num_items * dim,
            "score": num_images * num_items,
        }
        return 4 * counts[stage.hook]

    @staticmethod
    @abstractmethod
    def function(raw: Float[Tensor, "n *shape"]) -> Float[Tensor, " n"]:
        """Return f, the function that is differentiated, of the raw network output at each noise."""

    @cached_property
    def gradients(self) -> ImageGradients:
        """Return the gradients with the method's noises, made at the first use in the stages that use the model."""
        context = self.context
        config: GradientConfig = self.config
        seed = context.settings.seed
        levels = context.model.process.training_levels(generator(seed, f"{self.card.name}/sigma"), config.noises)
        noises = NoiseSet.draw(seed, f"{self.card.name}/noise", levels, context.model.shape).to(context.device)
        return ImageGradients(
            context.model,
            self.function,
            noises,
            unit_length=self.unit_length,
            config=config,
            seed=seed,
            captures=context.captures,
        )

    def measure(self, image: Float[Tensor, "*shape"], condition: Condition) -> Measured:
        """Return what the passes of one image give; the image may be on any device."""
        device = self.context.device
        on_device = moved(condition, device)
        self.context.on_progress()
        return self.gradients(image.to(device), on_device)

    def row(self, measured: Measured) -> Columns:
        """Return the columns that are kept of a training image."""
        return {"feature": measured.feature}

    def features(self, batch: Batch) -> Columns:
        """Return feature[dim] and what else `row` has, on the CPU.

        It raises RunFailed, naming the image, if a number is not finite.
        """
        singles = (batch[at : at + 1] for at in range(len(batch)))  # a single row does not wait for later ones
        table = [self.row(self.measure(one.z[0], one_by_one(one.condition, 1)[0])) for one in singles]
        columns = {name: torch.stack([row[name] for row in table]).cpu() for name in table[0]}
        for name, column in columns.items():
            require_finite(column, batch.idx, f"{self.card.label}: the {name} of training image")
        return columns

    def fit(self, sums: Tensors, rows: Iterator[Columns]) -> Tensors:
        """Return the lower Cholesky factor of K = Phi^T Phi + lambda I in fp32, with lambda = damping trace(Phi^T Phi)
        / dim.

        K is summed and factored in float64 (twice 8 dim^2 bytes, 4.3 GB at dim = 16384): gradients of images are much
        alike, so K is dominated by a few directions, and fp32 would lose the small ones that lambda decides about. The
        factor itself may be rounded, which changes K by far less than lambda. It raises RunFailed if K cannot be
        factored.
        """
        dim = self.config.dim
        kernel = torch.zeros(dim, dim, dtype=torch.float64, device=self.context.device)
        for columns in rows:
            block = columns["feature"].to(kernel)
            kernel.addmm_(block.T, block)
        kernel.diagonal().add_(self.config.damping * kernel.trace() / dim)
        cholesky, failed = torch.linalg.cholesky_ex(kernel)
        if failed or not cholesky.isfinite().all():
            raise RunFailed(
                f"{self.card.label}: the matrix of all gradient features cannot be inverted (zero, too large, or "
                f"damped too little); check that the model is trained, or raise method.{self.card.section}.damping"
            )
        return {"cholesky": cholesky.float()}

    def fit_item(self, item: Item, fitted: Tensors, on_update: Callable[[int, float], None]) -> ItemState:
        """Return vector[dim] = K^-1 phi(item). The image is unclamped, and has its own condition and no guidance."""
        feature = self.measure(item.z, item.condition).feature.double()
        require_finite(
            feature[None], [item.idx], f"{self.card.label}, item {item.number}: the feature of the generated image"
        )
        vector = torch.cholesky_solve(feature[:, None], fitted["cholesky"].to(feature))
        return ItemState(tensors={"vector": vector[:, 0].float()})

    def load(self, fitted: Tensors, item_states: Sequence[Tensors]) -> None:
        """Keep K^-1 phi of all items."""
        vectors = torch.stack([tensors["vector"] for tensors in item_states], dim=1)
        self.vectors = vectors.to(self.context.device, torch.float64)

    def forwards(self, columns: Columns) -> int:
        """Count one forward for each image and noise in the stages that use the model; scoring takes none."""
        num_images = len(next(iter(columns.values())))
        return num_images * self.config.noises if self.context.denoiser is not None else 0

    def score(self, rows: Columns) -> Float[Tensor, "b i"]:
        """Return phi_i^T K^-1 phi(item) in float64, so that once rounded to fp32 it does not show how rows were cut."""
        return rows["feature"].to(self.vectors) @ self.vectors
