"""A sketch turns a gradient into `dim` numbers by a seeded sparse random projection S, which is never a matrix in
memory.

Every coordinate x_j of a vector of named tensors is added to `signs` of the `dim` places, each time with a random sign
and the factor 1 / sqrt(signs): a count-sketch for signs = 1, a sparse Johnson-Lindenstrauss map above (spec 9.5). Each
draw is unbiased, E[<S x, S y>] = <x, y>, with a variance of about (|x|^2 |y|^2 + <x, y>^2) / dim.

Axes: p coordinates of one tensor, s signs, k = dim.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mucs_ray.diffusion.noise import generator


class Sketch:
    """A sketch is S for one list of tensors.

    The places of all coordinates are drawn once, from (seed, name of the tensor), and kept: a sketch is then one pass
    over the gradient, without a copy of it, and the draw (1 s for 100 M weights, on the CPU, so that every device has
    the same numbers) is not repeated for each image. A place and its sign are one int32, the sign being the half of a
    table of 2 dim sums: 4 signs bytes a weight, 400 MB for 100 M weights with signs = 1. On a GPU the sums are atomic,
    so their last bits vary, unless torch.use_deterministic_algorithms is on.
    """

    def __init__(self, sizes: Mapping[str, int], *, dim: int, signs: int, seed: int, device: torch.device) -> None:
        """Draw the places; `sizes` counts the coordinates of each tensor."""
        self.dim, self.signs, self.device = dim, signs, device
        self.places = [
            torch.from_numpy(
                generator(seed, f"sketch/{name}").integers(0, 2 * dim, size=(signs, size), dtype=np.int32)
            ).to(device)
            for name, size in sizes.items()
        ]

    def __call__(self, tensors: Iterable[Float[Tensor, "..."]]) -> Float[Tensor, " k"]:
        """Return S x in fp32; `tensors` come in the order of `sizes`."""
        sums = torch.zeros(2 * self.dim, device=self.device)
        for places, tensor in zip(self.places, tensors, strict=True):
            for place in places:
                sums.index_add_(0, place, tensor.flatten())
        return (sums[: self.dim] - sums[self.dim :]) / self.signs**0.5
