"""An ensemble adds up, with weights, the ranks that several methods give an image for one item (spec 10).

R_i = sum_q w_q r_i^(q), where r = 1 is method q's most influential image. A small R means influential.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Float32, Int64

from mucs_ray.attribution.ranking import ranks
from mucs_ray.errors import InputError

WEIGHTS: dict[str, dict[str, float]] = {
    "R": {"mucs": 10.0},
    "A": {"mucs": 10.0, "das": 7.0, "dtrak": 6.0, "dino": 5.0, "clip": 5.0, "condition": 3.0, "forward-inf": 2.0},
    "B": {"mucs": 10.0, "dino": 5.0, "clip": 5.0, "condition": 3.0},
    "C": {"das": 7.0, "dtrak": 6.0, "dino": 5.0, "clip": 5.0, "condition": 3.0, "forward-inf": 2.0},
    "D": {"dino": 5.0, "clip": 5.0, "condition": 3.0},
}
"""The paper's weights; AbU has none in any. They were set by the results of the tests that the paper reports."""
LARGEST_WEIGHT = 10.0
NO_EFFECT = 0.5
"""The AUC of random removal."""
GRAIN = 1000
"""Weights are counted in thousandths, so that R is a whole number: sums of rounded fractions would make and break ties.
"""


def ensemble_scores(
    scores: Mapping[str, Float[np.ndarray, " n"]],
    weights: Mapping[str, float],
    idx: Int64[np.ndarray, " n"],
    *,
    seed: int,
    name: str,
) -> Float32[np.ndarray, " n"]:
    """Return 1 / the place of R_i among all its different values, in (0, 1]; it has the order of 1 / R_i and its ties.

    R itself is not returned because fp32 cannot tell its values apart with large sets and learned weights; it can tell
    places apart, below 2^22. `seed` and `name` are those of the item's ranking, so that a method's ties count as its
    own list has them.
    """
    total = np.zeros(len(idx), dtype=np.int64)
    for method, weight in weights.items():
        total += round(GRAIN * weight) * ranks(scores[method], idx, seed, name)
    _, place = np.unique(total, return_inverse=True)
    return (1 / (1 + place)).astype(np.float32)


def learned_weights(auc_by_method: Mapping[str, float]) -> dict[str, float]:
    """Return w = max(0, AUC - 0.5), scaled so that the largest is 10, without the methods whose weight is 0.

    The AUCs must be of other seeds than those on which the ensemble is tested, or it is tested on its own training
    data. It raises InputError if no method is above 0.5.
    """
    excess = {method: max(0.0, auc - NO_EFFECT) for method, auc in auc_by_method.items()}
    largest = max(excess.values(), default=0.0)
    if not largest:
        aucs = ", ".join(f"{method} {auc:.3f}" for method, auc in auc_by_method.items()) or "no method"
        raise InputError(f"no weights can be learned: an AUC above {NO_EFFECT} is expected, found {aucs}")
    weights = {method: round(LARGEST_WEIGHT * value / largest, 3) for method, value in excess.items()}
    return {method: weight for method, weight in weights.items() if weight}
