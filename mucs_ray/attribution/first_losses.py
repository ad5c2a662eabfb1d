"""F1's losses of the batch at hand, kept for all methods of one pass that would compute the same ones again.

Methods that share F1 and a set of noises differ in their F2s only. Whoever comes first with a batch computes the losses
of F1; others take them, if everything that the losses depend on, their last bits too, is the same.
"""

from collections.abc import Hashable

from jaxtyping import Float
from torch import Tensor

from mucs_ray.diffusion.batch import Batch


class FirstLosses:
    """The losses of one batch by what they depend on; those of the batch before are forgotten."""

    def __init__(self) -> None:
        """Empty."""
        self.batch: Batch | None = None
        self.tables: dict[Hashable, Float[Tensor, "1 b n"]] = {}

    def find(self, batch: Batch, key: Hashable) -> Float[Tensor, "1 b n"] | None:
        """What was kept of this very batch under this key, if anything was."""
        return self.tables.get(key) if batch is self.batch else None

    def keep(self, batch: Batch, key: Hashable, table: Float[Tensor, "1 b n"]) -> None:
        """Keep the losses of F1 for whoever asks next with this batch and this key."""
        if batch is not self.batch:
            self.batch, self.tables = batch, {}
        self.tables[key] = table
