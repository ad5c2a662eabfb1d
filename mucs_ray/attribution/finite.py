"""This module refuses numbers that are not finite, and names the image they belong to. It does not import torch.

Axes: b images.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mucs_ray.errors import RunFailed

if TYPE_CHECKING:
    from torch import Tensor


def require_finite(values: "np.ndarray | Tensor", idx: "Sequence[int] | np.ndarray | Tensor", what: str) -> None:
    """Raise RunFailed unless all `values` are finite; the message names the first image that has one that is not.

    `values` has the axes b or b ..., on any device, and `idx` the b numbers of the images, on the CPU. `what` says what
    a row of `values` is, e.g. "the score of training image".
    """
    finite: Any = np.isfinite(values) if isinstance(values, np.ndarray) else values.isfinite()
    if finite.all():
        return
    while finite.ndim > 1:
        finite = finite.all(-1)
    raise RunFailed(f"{what} idx={int(idx[finite.tolist().index(False)])} is not finite")
