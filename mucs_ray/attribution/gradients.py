"""Gradient methods make a projected gradient phi of each image, and compare by K = Phi^T Phi + lambda I (spec 9.5).

phi(z) = S mean_j grad_theta f_j(z), where f_j is a function of the raw network output F_theta (image_gradients.py). For
D-TRAK and DAS f is not the loss, because the gradient of the loss compares worse [D-TRAK]. They share this module, and
each defines its f.

Axes: b images, i items, n noises, k = dim, *shape of an image.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from mucs_ray.attribution.base import Attributor, Columns, ItemState, MethodSettings, Passes, Tensors
from mucs_ray.attribution.card import MethodStage
from mucs_ray.attribution.cards.gradients import FeatureConfig
from mucs_ray.attribution.finite import require_finite
from mucs_ray.attribution.image_gradients import ImageGradients, Measured, Output
from mucs_ray.diffusion.batch import Batch, Item
from mucs_ray.diffusion.condition import Condition, moved, one_by_one
from mucs_ray.diffusion.model import DiffusionModel
from mucs_ray.diffusion.noise import NoiseSet, generator
from mucs_ray.errors import RunFailed


class FeatureAttributor(Attributor):
    """A method of this kind keeps phi of every image, and scores by the product of phi with a vector for each item.

    So a further item takes no pass over the images. Subclasses define what is differentiated, and the vectors.
    """

    unit_length: ClassVar[bool] = False
    """Whether gradients are scaled to length 1."""

    @property
    def per_noise(self) -> bool:
        """Return True if there is a backward pass for each noise, whose gradients are averaged after."""
        return False

    @classmethod
    def passes(cls, stage: MethodStage, settings: MethodSettings, *, num_images: int, num_items: int) -> Passes:
        """Count a backward pass on the whole set of noises, for each image of which a feature is made."""
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
    def function(output: Output) -> Float[Tensor, " n"]:
        """Return f, the function that is differentiated, of the network's answer at each noise."""

    @abstractmethod
    def parameter_names(self) -> list[str]:
        """Return the names of the tensors whose gradients are taken."""

    @cached_property
    def gradients(self) -> ImageGradients:
        """Return the gradients with the method's noises, made at the first use in the stages that use the model."""
        context = self.context
        config: FeatureConfig = self.config
        seed = context.settings.seed
        levels = context.model.process.training_levels(generator(seed, f"{self.card.name}/sigma"), config.noises)
        noises = NoiseSet.draw(seed, f"{self.card.name}/noise", levels, context.model.shape).to(context.device)
        return ImageGradients(
            context.model,
            self.function,
            noises,
            names=self.parameter_names(),
            unit_length=self.unit_length,
            per_noise=self.per_noise,
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

    def kernel(self, rows: Iterator[Columns]) -> Float[Tensor, "k k"]:
        """Return K = Phi^T Phi + lambda I in float64, with lambda = damping trace(Phi^T Phi) / dim.

        K is summed in float64 (8 dim^2 bytes, 2.1 GB at dim = 16384): gradients of images are much alike, so K is
        dominated by a few directions, and fp32 would lose the small ones that lambda decides about.
        """
        dim = self.config.dim
        kernel = torch.zeros(dim, dim, dtype=torch.float64, device=self.context.device)
        for columns in rows:
            block = columns["feature"].to(kernel)
            kernel.addmm_(block.T, block)
        kernel.diagonal().add_(self.config.damping * kernel.trace() / dim)
        return kernel

    def factored(self, kernel: Float[Tensor, "k k"]) -> Float[Tensor, "k k"]:
        """Return the lower Cholesky factor of K in fp32.

        It is factored in float64 and then may be rounded, which changes K by far less than lambda. It raises RunFailed
        if K cannot be factored.
        """
        cholesky, failed = torch.linalg.cholesky_ex(kernel)
        if failed or not cholesky.isfinite().all():
            raise self.singular()
        return cholesky.float()

    def singular(self) -> RunFailed:
        """Return the error for a K that cannot be inverted."""
        return RunFailed(
            f"{self.card.label}: the matrix of all gradient features cannot be inverted (zero, too large, or "
            f"damped too little); check that the model is trained, or raise method.{self.card.section}.damping"
        )

    def forwards(self, columns: Columns) -> int:
        """Count one forward for each image and noise where features are made; scoring takes none."""
        makes_features = self.context.denoiser is not None and "feature" in columns
        return len(columns["feature"]) * self.config.noises if makes_features else 0

    def keep(self, vectors: Sequence[Float[Tensor, " k"]]) -> None:
        """Keep the vectors of all items."""
        self.vectors = torch.stack(list(vectors), dim=1).to(self.context.device, torch.float64)

    def score(self, rows: Columns) -> Float[Tensor, "b i"]:
        """Return the products in float64, so that once rounded to fp32 they do not show how rows were cut."""
        return rows["feature"].to(self.vectors) @ self.vectors


class GradientAttributor(FeatureAttributor):
    """A method of this kind scores by phi(item)^T K^-1 phi_i; subclasses define what is differentiated, and what else
    counts.
    """

    @property
    def per_noise(self) -> bool:
        """Return True if the recipe asks for a backward pass for each noise, as published."""
        return self.config.gradients == "per_noise"

    def parameter_names(self) -> list[str]:
        """Return the names of the tensors that the recipe selects."""
        return self.context.model.names(self.config.parameters)

    def fit(self, sums: Tensors, rows: Iterator[Columns]) -> Tensors:
        """Return the Cholesky factor of K. It raises RunFailed if K cannot be factored."""
        return {"cholesky": self.factored(self.kernel(rows))}

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
        self.keep([tensors["vector"] for tensors in item_states])
