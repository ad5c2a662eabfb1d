"""DAS compares gradients of the signed mean output at length 1, and how wrong the model is on each image (spec 9.6)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mucs_ray.attribution.base import Columns, Tensors
from mucs_ray.attribution.cards.das import CARD, DASConfig
from mucs_ray.attribution.gradients import GradientAttributor
from mucs_ray.attribution.image_gradients import Measured, Output
from mucs_ray.diffusion.rows import row_means


class DAS(GradientAttributor):
    """DAS scores by [phi(item)^T K^-1 phi_i r_i / (1 - h_i)]^2: how far the output for the item moves without image i.

    r_i is the residual and h_i = phi_i^T K^-1 phi_i the leverage, which is left out unless the recipe asks for it.
    """

    card = CARD
    unit_length = True
    config: DASConfig

    @staticmethod
    def function(output: Output) -> Float[Tensor, " n"]:
        """Return the signed mean of F over its elements."""
        return row_means(output.raw)

    def row(self, measured: Measured) -> Columns:
        """Return the feature, and the residual: the mean of sqrt(loss) over the noises, after these have length 1 as a
        vector.
        """
        errors = measured.losses.sqrt()
        return super().row(measured) | {"residual": (errors / errors.norm()).mean()}

    def load(self, fitted: Tensors, item_states: Sequence[Tensors]) -> None:
        """Keep K^-1 phi of all items, and K itself only for the leverage."""
        super().load(fitted, item_states)
        self.cholesky = fitted["cholesky"].to(self.vectors) if self.config.leverage else None

    def score(self, rows: Columns) -> Float[Tensor, "b i"]:
        """Return the scores, which are squared, and so >= 0, unless the recipe says otherwise."""
        weight = rows["residual"].to(self.vectors)
        if self.cholesky is not None:
            half = torch.linalg.solve_triangular(self.cholesky, rows["feature"].to(self.vectors).T, upper=False)
            weight = weight / (1 - half.square().sum(dim=0))
        scores = super().score(rows) * weight[:, None]
        return scores.square() if self.config.square else scores
