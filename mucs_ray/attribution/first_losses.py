"""F1's losses of the current batch are kept for all methods of one pass that would compute the same ones again.

Methods that share F1 and a set of noises differ in their F2s only. The first method that gets a batch computes the
losses of F1; others take them if everything is equal that the losses depend on, down to their last bits.
"""

from collections.abc import Hashable

from jaxtyping import Float
from torch import Tensor

from mucs_ray.diffusion.batch import Batch


class FirstLosses:
    """This keeps the losses of one batch by what they depend on; those of the batch before are forgotten."""

    def __init__(self) -> None:
        """Start without losses."""
        self.batch: Batch | None = None
        self.tables: dict[Hashable, Float[Tensor, "1 b n"]] = {}

    def find(self, batch: Batch, key: Hashable) -> Float[Tensor, "1 b n"] | None:
        """Return the losses that were kept of this very batch under this key, or None."""
        return self.tables.get(key) if batch is self.batch else None

    def keep(self, batch: Batch, key: Hashable, table: Float[Tensor, "1 b n"]) -> None:
        """Keep the losses of F1 for the next caller with this batch and this key."""
        if batch is not self.batch:
            self.batch, self.tables = batch, {}
        self.tables[key] = table
