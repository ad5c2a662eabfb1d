"""A matched filter over the noises weights each skew by how far unlearning moved the item itself at that noise.

Where the item was hardly unlearned, the skew of an image says little about the item. If s_ij = b_i u_j + noise of equal
variance, where u_j is the item's own skew, the weights that tell images apart best are in proportion to u_j; squares
lean further on the levels at which the item moved most.
Axes: i items, n noises.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Power = Literal["linear", "squared"]


def matched_weights(own_skews: Float[Tensor, "i n"], power: Power) -> Float[Tensor, "i n"]:
    """Return w_j = max(u_j, 0)^p / sum_j max(u_j, 0)^p, or even weights for an item that was unlearned at no noise."""
    sizes = own_skews.clamp(min=0) ** {"linear": 1, "squared": 2}[power]
    total = sizes.sum(dim=1, keepdim=True)
    even = torch.full_like(sizes, 1 / sizes.shape[1])
    return torch.where(total > 0, sizes / total.clamp(min=torch.finfo(total.dtype).tiny), even)
