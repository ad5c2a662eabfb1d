"""These methods compare: an image influences an item as much as it resembles it, by the cosine of two vectors.

Subclasses define the vectors: pixels, conditions, or what a pretrained network makes of the image. Axes: b training
images, i items, d vector.
"""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from mucs_ray.attribution.base import Attributor, Tensors
from mucs_ray.attribution.finite import require_finite
from mucs_ray.diffusion.batch import Batch, Item
from mucs_ray.diffusion.condition import stacked
from mucs_ray.spaces.codec import Codec
from mucs_ray.spaces.pixels import PIXELS


class CosineAttributor(Attributor):
    """A method of this kind has scores in [-1, 1]; a vector of zeros has the cosine 0 with everything."""

    @abstractmethod
    def vectors(self, batch: Batch) -> Float[Tensor, "b d"]:
        """Return the vectors to compare, of any length.

        Items come as a batch too, without what a picture cannot show.
        """

    def load(self, fitted: Tensors, item_states: Sequence[Tensors]) -> None:
        """Make the vectors of the items, once."""
        items = as_batch(self.context.items, self.context.codec).to(self.context.device)
        self.of_items = self._unit(items, "generated image")

    def score(self, rows: Batch) -> Float[Tensor, "b i"]:
        """Return fp32 cosines computed in float64.

        In fp32 a GPU would round the factors to TF32, and sums would depend on how the batch is cut.
        """
        return (self._unit(rows, "training image") @ self.of_items.T).float()

    def _unit(self, batch: Batch, what: str) -> Float[Tensor, "b d"]:
        vectors = self.vectors(batch)
        require_finite(vectors, batch.idx, f"{self.card.label}: the vector of {what}")
        return normalize(vectors.double(), dim=1)


class EmbeddingAttributor(CosineAttributor):
    """A method of this kind compares what the pretrained network named `encoder` makes of the images."""

    def vectors(self, batch: Batch) -> Float[Tensor, "b d"]:
        """Decode the batch to pictures, which the network expects, and return their embeddings."""
        assert self.context.encode is not None, "the method names no encoder"
        return self.context.encode(self.context.codec.decode(batch.z))


def as_batch(items: Sequence[Item], codec: Codec = PIXELS) -> Batch:
    """Return items as if they were training images, without what a picture could not show."""
    return Batch(
        idx=torch.tensor([item.idx for item in items]),
        z=codec.shown(torch.stack([item.z for item in items])),
        condition=stacked([item.condition for item in items]),
    )
