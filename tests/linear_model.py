"""A model of one matrix, for which influence is known in closed form."""

from typing import Any

import torch
from torch import Tensor, nn

from mucs_ray.diffusion.condition import Condition
from mucs_ray.diffusion.edm import EDM
from mucs_ray.diffusion.model import DiffusionModel, Selector
from mucs_ray.diffusion.noise import generator, normal
from mucs_ray.diffusion.process import Coefficients
from mucs_ray.diffusion.rows import per_row

SIZE = 6


class LinearModel(DiffusionModel):
    """F(x) = W c_in x on vectors."""

    process = EDM()

    def __init__(self) -> None:
        """Draw W from a name, and freeze it."""
        super().__init__(nn.Linear(SIZE, SIZE, bias=False))
        with torch.no_grad():
            self.network.get_parameter("weight").copy_(0.3 * normal(generator(1, "toy"), SIZE, SIZE))
        self.requires_grad_(False).eval()

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a vector."""
        return (SIZE,)

    def raw(self, noisy: Tensor, at: Coefficients, condition: Condition, stem: Any = None) -> Tensor:
        """Return F."""
        return self.network(per_row(at.c_in, noisy) * noisy)

    def nothing(self, num: int) -> Condition:
        """Return no condition."""
        return {}

    def names(self, which: Selector) -> list[str]:
        """Return the name of W."""
        return ["weight"]
