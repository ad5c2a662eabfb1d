"""MUCS to first order: a product in place of the losses of every image under every item's model.

Unlearning an item q moves the weights by Delta_q = F2_q - F1. The skew of image i at the noise j is tanh(1/2 log(l' /
l)), where l is its loss before and l' after, so to first order in Delta it is 1/2 grad log l_ij . Delta_q: positive,
and the image influential, if unlearning the item raises its loss. Here

    psi_i = mean_j grad log l_ij, scaled to length 1 and sketched,        K = Psi^T Psi + lambda I,
    a_iq  = psi_i^T K^-alpha S Delta_q,                                   higher = more influential,

where l_ij is the mean square of the raw output against its target. With alpha = 0 this is twice the first order of the
skew over |mean_j grad log l_ij|; alpha = 1 divides out what all images share, as D-TRAK and DAS do. The features and K
do not depend on the items, so a further item costs its unlearning and a product.

Axes: i items, n noises, k = dim.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mucs_ray.attribution.base import Columns, Tensors
from mucs_ray.attribution.cards.linear import CARD, LinearConfig
from mucs_ray.attribution.cards.mucs import MUCSConfig
from mucs_ray.attribution.gradients import FeatureAttributor
from mucs_ray.attribution.image_gradients import Output
from mucs_ray.attribution.projection import Sketch
from mucs_ray.attribution.unlearn import changed_names


class LinearMUCS(FeatureAttributor):
    """This is MUCS as a product of an image's feature with what unlearning moved."""

    card = CARD
    config: LinearConfig
    unit_length = True
    places_item_states = True

    @staticmethod
    def function(output: Output) -> Float[Tensor, " n"]:
        """Return log l; a weight of the loss would add a constant."""
        return output.losses.log()

    def parameter_names(self) -> list[str]:
        """Return the names of the tensors that unlearning changes."""
        return changed_names(self.context.model, self.context.settings.method.get("mucs", MUCSConfig()))

    def fit(self, sums: Tensors, rows: Iterator[Columns]) -> Tensors:
        """Return what K^-alpha is applied with: nothing for alpha = 0, the Cholesky factor of K for alpha = 1, and else
        its eigenvectors, which take some thirty times as long.

        It raises RunFailed if K cannot be inverted.
        """
        if self.config.power == 0:
            return {}
        kernel = self.kernel(rows)
        if self.config.power == 1:
            return {"cholesky": self.factored(kernel)}
        if not kernel.isfinite().all():
            raise self.singular()
        eigenvalues, eigenvectors = torch.linalg.eigh(kernel)
        if eigenvalues[0] <= 0:
            raise self.singular()
        return {"eigenvalues": eigenvalues, "eigenvectors": eigenvectors.float()}

    def load(self, fitted: Tensors, item_states: Sequence[Tensors]) -> None:
        """Keep K^-alpha S Delta of all items."""
        network, device, config = self.context.model.network, self.context.device, self.config
        before = {name: network.get_parameter(name).detach() for name in self.parameter_names()}
        sizes = {name: weight.numel() for name, weight in before.items()}
        sketch = Sketch(sizes, dim=config.dim, signs=config.signs, seed=self.context.settings.seed, device=device)
        vectors = []
        for after in item_states:
            moved = [after[name].to(device) - weight for name, weight in before.items()]
            vectors.append(self.whitened(sketch(moved).double(), fitted))
        self.keep(vectors)

    def whitened(self, vector: Float[Tensor, " k"], fitted: Tensors) -> Float[Tensor, " k"]:
        """Return K^-alpha times the vector, in float64."""
        if self.config.power == 0:
            return vector
        if self.config.power == 1:
            return torch.cholesky_solve(vector[:, None], fitted["cholesky"].to(vector))[:, 0]
        basis, scales = fitted["eigenvectors"].to(vector), fitted["eigenvalues"].to(vector) ** -self.config.power
        return basis @ (scales * (basis.T @ vector))
