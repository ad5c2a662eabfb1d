"""The base share: how well the base of a fine-tune explains a picture by itself (spec/models 5).

share = (L_base - L_own) / (L_base + L_own), with the mean losses of the base and of the fine-tuned model on the noises
that all pictures share. Near 0 the fine-tune, and so its training images, has nothing to do with the picture.
"""

import numpy as np
from jaxtyping import Float

NEAR_ZERO = 0.1
"""A picture whose share is less than this part of the training images' median is explained by the base alone."""


def shares(base: Float[np.ndarray, " q"], own: Float[np.ndarray, " q"]) -> Float[np.ndarray, " q"]:
    """Return the base share of each picture, in (-1, 1), from its losses under the base and the fine-tuned model."""
    return (base - own) / (base + own)


def is_of_base(share: float, median: float) -> bool:
    """Return True if the base alone explains a picture; `median` is that of the shares of the training images."""
    return share <= NEAR_ZERO * max(median, 0.0)


def sentence(name: str, *, base: float, own: float, share: float, median: float) -> str:
    """Return what the share of a picture means, in words."""
    numbers = (
        f"its loss is {base:.4g} under the base and {own:.4g} under the fine-tuned model, a base share of {share:.3f}"
        f" where the training images have {median:.3f} (median)"
    )
    if median <= 0:
        return f"{name}: {numbers}. The fine-tune does not explain its own training images better than the base does"
    if is_of_base(share, median):
        return f"{name}: the base alone explains it; the training images did not make this ({numbers})"
    return f"{name}: the fine-tune explains it better than the base alone ({numbers})"
