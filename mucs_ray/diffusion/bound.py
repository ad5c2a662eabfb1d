"""The bound to which an item can be unlearned, level by level (spec/models 2.5).

A denoiser that knows only the mean square v of the images has, at best, the loss b(level), whatever the network
predicts. The loss of a network that returns 0 is another: for one that predicts noise it is 2.7 to 6 times larger, out
of reach unless the network becomes actively wrong.

Axes: n levels.
"""

from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from mucs_ray.diffusion.process import Coefficients


def linear_bound(at: "Coefficients", mean_square: float) -> Float[Tensor, " n"]:
    """Return b = weight det^2 v / (alpha^2 v + s^2), the expected loss of the best linear denoiser."""
    return at.weight * at.det**2 * mean_square / (at.alpha**2 * mean_square + at.s**2)


def zero_output_loss(at: "Coefficients", mean_square: float) -> Float[Tensor, " n"]:
    """Return weight (p^2 v + q^2), the expected loss of a network whose output is 0."""
    return at.weight * (at.p**2 * mean_square + at.q**2)


def relative_sigma(at: "Coefficients", mean_square: float) -> Float[Tensor, " n"]:
    """Return sigma / std(z), the axis on which the levels of different families can be compared."""
    return at.s / at.alpha / mean_square**0.5
