"""Pixel: the cosine of the images themselves, the simplest thing that looks at both."""

from jaxtyping import Float
from torch import Tensor

from mucs_ray.attribution.embedding import CosineAttributor
from mucs_ray.diffusion.batch import Batch


class Pixel(CosineAttributor):
    """The raw cosine of images in [-1, 1], as D-TRAK's "raw pixel" baseline has it: no mean is subtracted.

    Mid-grey is the origin, so that brightness counts: two dark images resemble each other.
    """

    name = "pixel"
    label = "Pixel"
    summary = "cosine of the pixels in [-1, 1]"
    needs = "nothing"
    cost = "one pass over the data"
    source = "D-TRAK, baseline raw pixel (cosine)"

    def vectors(self, batch: Batch) -> Float[Tensor, "b d"]:
        """All pixels of all channels."""
        return batch.image.flatten(1)
