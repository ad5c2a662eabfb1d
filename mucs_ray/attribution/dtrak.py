"""D-TRAK: gradients of the mean square of the network's output, projected and compared as in TRAK (spec 9.5)."""

from jaxtyping import Float
from torch import Tensor

from mucs_ray.attribution.cards.dtrak import CARD
from mucs_ray.attribution.gradients import GradientAttributor


class DTRAK(GradientAttributor):
    """phi(item)^T K^-1 phi_i, where phi is the gradient of mean F^2."""

    card = CARD

    @staticmethod
    def function(raw: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
        """Mean of F^2 over pixels."""
        return raw.square().mean(dim=(1, 2, 3))
