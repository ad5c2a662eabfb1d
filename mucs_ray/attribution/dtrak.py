"""D-TRAK: gradients of the mean square of the network's output, projected and compared as in TRAK (spec 9.5)."""

from jaxtyping import Float
from torch import Tensor

from mucs_ray.attribution.base import Knobs
from mucs_ray.attribution.config import DTRAKConfig
from mucs_ray.attribution.gradients import GradientAttributor, gradient_parts


class DTRAK(GradientAttributor):
    """phi(item)^T K^-1 phi_i, where phi is the gradient of mean F^2."""

    name = "dtrak"
    label = "D-TRAK"
    summary = "inner products of projected gradients of the output's mean square, weighted by their inverse covariance"
    cost = "N backward passes on a batch of noises, then one product an item"
    source = "D-TRAK: Intriguing Properties of Data Attribution on Diffusion Models (ICLR 2024)"
    parts = gradient_parts("dtrak")

    @staticmethod
    def section(knobs: Knobs) -> DTRAKConfig:
        """The recipe's [dtrak]."""
        return knobs.dtrak

    @staticmethod
    def function(raw: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
        """Mean of F^2 over pixels."""
        return raw.square().mean(dim=(1, 2, 3))
