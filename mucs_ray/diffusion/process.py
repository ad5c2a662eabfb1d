"""What a diffusion process is: how it mixes in noise at each level, what a network predicts, which levels count.

    x = alpha z + s eps      target = p z + q eps      det = alpha q - p s
    denoised D = (q x - s r) / det, where r is the network's raw output; D - z = -(s / det) (r - target)

So five numbers a level (alpha, s, p, q and the weight of the loss) tell EDM, noise-, velocity- and image-prediction and
flows apart, and all else follows from them.
Axes: b rows, n levels, *shape of what a row holds.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

from mucs_ray.diffusion.bound import linear_bound, zero_output_loss
from mucs_ray.diffusion.noise import generator
from mucs_ray.diffusion.rows import per_row

NULL_LEVELS = 10_000
"""Training levels over which the null loss is averaged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Coefficients:
    """The numbers of a process at some levels."""

    time: Float[Tensor, " n"]
    """What the network is told of the level."""
    alpha: Float[Tensor, " n"]
    s: Float[Tensor, " n"]
    p: Float[Tensor, " n"]
    q: Float[Tensor, " n"]
    weight: Float[Tensor, " n"]
    """Of (r - target)^2 in the loss."""
    c_in: Float[Tensor, " n"]
    """What the network's input is scaled by."""

    @property
    def det(self) -> Float[Tensor, " n"]:
        """alpha q - p s, which is 0 where the output says nothing of z."""
        return self.alpha * self.q - self.p * self.s


class Process(ABC):
    """The mathematics of noise levels; it has no state. Levels are numbers whose meaning is the process's own."""

    second_moment: float = 1.0
    """The mean square of the elements of z, about: 1 for latents that are scaled to it."""

    @abstractmethod
    def at(self, level: Float[Tensor, " n"]) -> Coefficients:
        """The coefficients at these levels."""

    @abstractmethod
    def training_levels(self, stream: np.random.Generator, num: int) -> Float[Tensor, " n"]:
        """Levels as training draws them; fp32."""

    @abstractmethod
    def scoring_levels(self, num: int, keep: float, stream: np.random.Generator | None = None) -> Float[Tensor, " n"]:
        """The `num` noisiest of num / keep levels of the sampler's schedule, or, with a stream, of as many random
        positions on it; fp32, noisiest first.
        """

    @abstractmethod
    def sampling_levels(self, steps: int) -> Float[Tensor, " m"]:
        """The levels that a sampler goes through on its way to no noise, noisiest first."""

    def noised(
        self, image: Float[Tensor, "b *shape"], noise: Float[Tensor, "b *shape"], level: Float[Tensor, " b"]
    ) -> Float[Tensor, "b *shape"]:
        """x = alpha z + s eps."""
        at = self.at(level)
        return per_row(at.alpha, image) * image + per_row(at.s, noise) * noise

    def target(
        self, image: Float[Tensor, "b *shape"], noise: Float[Tensor, "b *shape"], level: Float[Tensor, " b"]
    ) -> Float[Tensor, "b *shape"]:
        """p z + q eps: what the raw output is to be."""
        at = self.at(level)
        return per_row(at.p, noise) * image + per_row(at.q, noise) * noise

    def denoised(
        self, raw: Float[Tensor, "b *shape"], noisy: Float[Tensor, "b *shape"], level: Float[Tensor, " b"]
    ) -> Float[Tensor, "b *shape"]:
        """D = (q x - s r) / det."""
        at = self.at(level)
        return per_row(at.q / at.det, noisy) * noisy - per_row(at.s / at.det, noisy) * raw

    def loss_weight(self, level: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """weight det^2 / s^2, by which weight (r - target)^2 is a multiple of (D - z)^2."""
        at = self.at(level)
        return at.weight * (at.det / at.s) ** 2

    def linear_bound(self, level: Float[Tensor, " n"], mean_square: float) -> Float[Tensor, " n"]:
        """The most that an item can be unlearned at these levels: the loss of the best linear denoiser of images whose
        elements have this mean square.
        """
        return linear_bound(self.at(level), mean_square)

    def null_loss(self, mean_square: float) -> float:
        """The linear bound, averaged over training levels."""
        return self.linear_bound(self._many_training_levels(), mean_square).mean().item()

    def zero_output_loss(self, mean_square: float) -> float:
        """The loss of a network whose output is 0, averaged over training levels."""
        return zero_output_loss(self.at(self._many_training_levels()), mean_square).mean().item()

    def _many_training_levels(self) -> Float[Tensor, " n"]:
        return self.training_levels(generator(0, "null loss"), NULL_LEVELS).double()
