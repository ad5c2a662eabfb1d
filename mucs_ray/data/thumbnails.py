"""Small versions of all training images at once, to find those that look alike.

Axes: n images, d numbers of a thumbnail.
"""

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch.nn.functional import adaptive_avg_pool2d

from mucs_ray.data.batch import crop
from mucs_ray.data.table import Dataset, stored_images

THUMBNAIL_PX = 8
"""At this size the images of a large data set fit in memory together."""
NO_LABEL = -1


def thumbnails(
    dataset: Dataset,
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"], Float[np.ndarray, "n d"]]:
    """Return idx, label and pixels (0 to 255) of the training images, in order of idx; -1 stands for no label."""
    described = []
    for table in dataset.stream("train", ["idx", "image", "height", "width", "label"]):
        pixels = np.stack([crop(image, dataset.card.size) for image in stored_images(table)])
        small = adaptive_avg_pool2d(torch.from_numpy(pixels).float(), THUMBNAIL_PX).flatten(1).numpy()
        label = table["label"].fill_null(NO_LABEL).to_numpy().astype(np.int64)
        described.append((table["idx"].to_numpy(), label, small))
    idx, label, small = (np.concatenate(parts) for parts in zip(*described, strict=True))
    return idx, label, small
