"""Random is the reference for every other method: its scores are U(0, 1), independent for each (item, image)."""

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mucs_ray.attribution.base import Attributor
from mucs_ray.attribution.cards.random import CARD
from mucs_ray.attribution.ranking import tie_break
from mucs_ray.diffusion.batch import Batch


class Random(Attributor):
    """This method puts the training images in a random order for each item."""

    card = CARD

    def score(self, rows: Batch) -> Float[Tensor, "b i"]:
        """Return scores in [0, 1)."""
        seed, num_items = self.context.settings.seed, len(self.context.items)
        return torch.from_numpy(random_scores(rows.idx.numpy(), seed=seed, num_items=num_items))


def random_scores(idx: Int64[np.ndarray, " b"], *, seed: int, num_items: int) -> Float[np.ndarray, "b items"]:
    """Return float32 in [0, 1), a hash of (seed, item, idx), which is the same in whatever order images come (spec
    9.1).
    """
    columns = [tie_break(idx, seed, f"random/item={number}") >> np.uint64(40) for number in range(num_items)]
    return (np.stack(columns, axis=1) / 2**24).astype(np.float32)
