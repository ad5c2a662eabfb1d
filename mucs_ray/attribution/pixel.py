"""Pixel scores by the cosine of the images themselves, the simplest method that looks at both."""

from jaxtyping import Float
from torch import Tensor

from mucs_ray.attribution.cards import cosine
from mucs_ray.attribution.embedding import CosineAttributor
from mucs_ray.diffusion.batch import Batch


class Pixel(CosineAttributor):
    """This method scores by the cosine of images in [-1, 1], as D-TRAK's "raw pixel" baseline does; no mean is
    subtracted.

    Mid-grey is the origin, so that brightness counts: two dark images resemble each other.
    """

    card = cosine.PIXEL

    def vectors(self, batch: Batch) -> Float[Tensor, "b d"]:
        """Return all pixels of all channels as one vector."""
        return batch.z.flatten(1)
