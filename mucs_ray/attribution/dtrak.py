"""D-TRAK projects gradients of the mean square of the network's output, and compares them as TRAK does (spec 9.5)."""

from jaxtyping import Float
from torch import Tensor

from mucs_ray.attribution.cards.dtrak import CARD
from mucs_ray.attribution.gradients import GradientAttributor
from mucs_ray.attribution.image_gradients import Output
from mucs_ray.diffusion.rows import row_means


class DTRAK(GradientAttributor):
    """D-TRAK scores by phi(item)^T K^-1 phi_i, where phi is the gradient of mean F^2."""

    card = CARD

    @staticmethod
    def function(output: Output) -> Float[Tensor, " n"]:
        """Return the mean of F^2 over its elements."""
        return row_means(output.raw.square())
