"""Condition: the cosine of what an image is labelled or captioned with, and what the item was generated from."""

import torch
from jaxtyping import Float
from torch import Tensor

from mucs_ray.attribution.cards import cosine
from mucs_ray.attribution.embedding import CosineAttributor
from mucs_ray.diffusion.batch import Batch
from mucs_ray.errors import InputError


class Condition(CosineAttributor):
    """cos(y_i, c), with the first caption's embedding or the one-hot class (spec 9.2).

    An item has the condition of the test image that lent it its idx, also where the model ignores it. Images of one
    class are equals here; their order is the ranking's, which is random, and on it the method's result rests.
    """

    card = cosine.CONDITION

    def vectors(self, batch: Batch) -> Float[Tensor, "b d"]:
        """InputError if there are none."""
        if not batch.condition:
            raise InputError("condition compares labels or captions, and this data set has none: choose other methods")
        return torch.cat([tensor.flatten(1) for tensor in batch.condition.values()], dim=1)
