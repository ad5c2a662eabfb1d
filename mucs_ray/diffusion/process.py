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
import torch
from jaxtyping import Float
from torch import Tensor

from mucs_ray.diffusion.bound import linear_bound, zero_output_loss
from mucs_ray.diffusion.noise import generator
from mucs_ray.diffusion.rows import per_row

NULL_LEVELS = 10_000
"""The number of training levels over which the null loss is averaged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Coefficients:
    """The coefficients of a process at some levels."""

    time: Float[Tensor, " n"]
    """The time that the network receives for the level."""
    alpha: Float[Tensor, " n"]
    s: Float[Tensor, " n"]
    p: Float[Tensor, " n"]
    q: Float[Tensor, " n"]
    weight: Float[Tensor, " n"]
    """The weight of (r - target)^2 in the loss."""
    c_in: Float[Tensor, " n"]
    """The factor that scales the network's input."""

    @property
    def det(self) -> Float[Tensor, " n"]:
        """The determinant alpha q - p s, which is 0 where the output says nothing about z."""
        return self.alpha * self.q - self.p * self.s


class Process(ABC):
    """The mathematics of noise levels, without state. Levels are numbers whose meaning is the process's own."""

    second_moment: float = 1.0
    """The mean square of the elements of z, about: 1 for latents that are scaled to it."""

    @abstractmethod
    def at(self, level: Float[Tensor, " n"]) -> Coefficients:
        """Return the coefficients at these levels."""

    @abstractmethod
    def training_levels(self, stream: np.random.Generator, num: int) -> Float[Tensor, " n"]:
        """Draw levels as training does, in fp32."""

    @abstractmethod
    def scoring_levels(self, num: int, keep: float, stream: np.random.Generator | None = None) -> Float[Tensor, " n"]:
        """Return the `num` noisiest of num / keep levels, in fp32, noisiest first.

        The levels are those of the sampler's schedule or, with a stream, random positions on it.
        """

    @abstractmethod
    def sampling_levels(self, steps: int) -> Float[Tensor, " m"]:
        """Return the levels through which a sampler goes to no noise, noisiest first."""

    def noised(
        self, image: Float[Tensor, "b *shape"], noise: Float[Tensor, "b *shape"], level: Float[Tensor, " b"]
    ) -> Float[Tensor, "b *shape"]:
        """Return x = alpha z + s eps."""
        at = self.at(level)
        return per_row(at.alpha, image) * image + per_row(at.s, noise) * noise

    def target(
        self, image: Float[Tensor, "b *shape"], noise: Float[Tensor, "b *shape"], level: Float[Tensor, " b"]
    ) -> Float[Tensor, "b *shape"]:
        """Return p z + q eps, the target of the raw output."""
        at = self.at(level)
        return per_row(at.p, noise) * image + per_row(at.q, noise) * noise

    def denoised(
        self, raw: Float[Tensor, "b *shape"], noisy: Float[Tensor, "b *shape"], level: Float[Tensor, " b"]
    ) -> Float[Tensor, "b *shape"]:
        """Return D = (q x - s r) / det."""
        at = self.at(level)
        return per_row(at.q / at.det, noisy) * noisy - per_row(at.s / at.det, noisy) * raw

    def loss_weight(self, level: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return weight det^2 / s^2, so that weight (r - target)^2 is this multiple of (D - z)^2."""
        at = self.at(level)
        return at.weight * (at.det / at.s) ** 2

    def linear_bound(self, level: Float[Tensor, " n"], mean_square: float) -> Float[Tensor, " n"]:
        """The most that an item can be unlearned at these levels: the loss of the best linear denoiser of images whose
        elements have this mean square.
        """
        return linear_bound(self.at(level), mean_square)

    def training_quantiles(self, num: int) -> Float[Tensor, " n"]:
        """Return the training levels at `num` even quantiles, (j + 1/2) / num, of many draws, in fp32."""
        drawn = self.training_levels(generator(0, "null loss"), NULL_LEVELS).sort().values
        return drawn[((torch.arange(num) + 0.5) / max(1, num) * NULL_LEVELS).long()]

    def zero_output_bound(self, level: Float[Tensor, " n"], mean_square: float) -> Float[Tensor, " n"]:
        """The loss at these levels of a network whose output is 0. It is not below the linear bound, and for EDM the
        same where the mean square is sd^2, and at both ends of the levels.
        """
        return zero_output_loss(self.at(level), mean_square)

    def null_loss(self, mean_square: float) -> float:
        """The linear bound, averaged over training levels."""
        return self.linear_bound(self._many_training_levels(), mean_square).mean().item()

    def zero_output_loss(self, mean_square: float) -> float:
        """The loss of a network whose output is 0, averaged over training levels."""
        return self.zero_output_bound(self._many_training_levels(), mean_square).mean().item()

    def _many_training_levels(self) -> Float[Tensor, " n"]:
        return self.training_levels(generator(0, "null loss"), NULL_LEVELS).double()
