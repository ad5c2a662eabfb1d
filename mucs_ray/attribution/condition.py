"""Condition scores by the cosine of an image's label or caption and the condition the item was generated from (spec
9.2).
"""

import torch
from jaxtyping import Float
from torch import Tensor

from mucs_ray.attribution.cards import cosine
from mucs_ray.attribution.embedding import CosineAttributor
from mucs_ray.diffusion.batch import Batch
from mucs_ray.errors import InputError


class Condition(CosineAttributor):
    """This method scores by cos(y_i, c), with the first caption's embedding or the one-hot class (spec 9.2).

    An item has the condition of the test image that supplied its idx, also where the model ignores it. Images of one
    class are equal here, so the method's result rests on the ranking's order of ties, which is random.
    """

    card = cosine.CONDITION

    def vectors(self, batch: Batch) -> Float[Tensor, "b d"]:
        """Return all tensors of the condition as one vector. It raises InputError if the data set has no condition."""
        if not batch.condition:
            raise InputError("condition compares labels or captions, and this data set has none: choose other methods")
        return torch.cat([tensor.flatten(1) for tensor in batch.condition.values()], dim=1)
