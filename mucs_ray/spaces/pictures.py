"""Pictures as tensors and arrays: three colours, rows and columns of pixels.

What a data set stores and what an encoder, a metric or a report looks at is a picture; what a model works on is z,
which need not be one (codec.py).
"""

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

CHANNELS = 3
Pictures = Float[Tensor, "n 3 h w"]
"""In [0, 1]."""
Squares = Float[Tensor, "n 3 px px"]
"""Pictures of the size that a pretrained network takes, or in its units."""
StoredPictures = UInt8[Tensor, "n 3 h w"]
StoredPicture = UInt8[np.ndarray, "3 h w"]


def are_pictures(tensor: Tensor) -> bool:
    """Return True if the tensor has the axes of pictures."""
    return tensor.ndim == 4 and tensor.shape[1] == CHANNELS


def to_bytes(picture: Float[Tensor, "3 h w"]) -> StoredPicture:
    """Convert a picture in [0, 1] to 8-bit pixels (spec 2)."""
    return (picture * 255).round().to(torch.uint8).cpu().numpy()


def as_image(picture: StoredPicture) -> Image.Image:
    """Convert 8-bit pixels to PIL's picture."""
    return Image.fromarray(np.ascontiguousarray(picture.transpose(1, 2, 0)))
