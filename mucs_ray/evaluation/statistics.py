"""The statistics of the counterfactual test: is A's similarity lower than that of random removal (spec 11.2)?

All similarities are higher for more similar images; distances are negated. A lower similarity after A's images were
removed means that A found images that mattered. Values that are not finite, and empty samples, raise a ValueError that
names the argument.

Axes: n, m items (generated images), k top images.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int64
from scipy import sparse, stats

Sample = Float[np.ndarray, " n"]
Alternative = Literal["less", "two-sided"]
HALF_WIDTHS = 1.98  # the paper's code has 1.98, not 1.96 (DIFF-11)
MEDIAN_FLOOR = 0.01
HIT_BELOW = 0.95


class Estimate(NamedTuple):
    """A mean, 1.98 standard errors (None for a single value), and the number of values."""

    mean: float
    half_width: float | None
    num: int


def auc(similarity: Sample, random: Sample) -> float:
    """Return P(S_rand > S_A) + P(S_rand = S_A) / 2, in [0, 1]: 0.5 = no effect, 1 = A always changed images more."""
    similarity, random = _sample("similarity", similarity), np.sort(_sample("random", random))
    not_above = np.searchsorted(random, similarity, side="left") + np.searchsorted(random, similarity, side="right")
    return 1 - float(not_above.sum()) / (2 * len(similarity) * len(random))


def mann_whitney(similarity: Sample, other: Sample, alternative: Alternative = "less") -> tuple[float, float]:
    """Return U = #(S_A > S_B) + #(=) / 2 and its unpaired p; "less" tests whether A's similarities are smaller.

    The p is exact for up to 8 items on one side without ties, else the normal approximation, as scipy chooses.
    """
    similarity, other = _sample("similarity", similarity), _sample("other", other)
    u, p = stats.mannwhitneyu(similarity, other, alternative=alternative)
    return float(u), float(p)


def normalized_difference(similarity: Sample, random: Sample) -> Estimate | None:
    """Return the mean of 100 (s_i / median(S_rand) - 1) in percent, the median floored at 0.01.

    Negative = A changed images more. None where a ratio to the median says nothing: for negated distances, that is if
    the median is negative or no value at all is positive (there -0.2 against -0.1 would read as +100 %, although the
    image changed more).
    """
    similarity, random = _sample("similarity", similarity), _sample("random", random)
    median = float(np.median(random))
    if median < 0 or _no_positive(similarity, random):
        return None
    return _estimate(100 * (similarity / max(median, MEDIAN_FLOOR) - 1))


def hit_rate(similarity: Sample, random: Sample) -> float | None:
    """Return the share of items with s_A < 0.95 s_rand, paired, in [0, 1].

    None for negated distances and if any s_rand is negative: 0.95 times a negative number is the larger one.
    """
    similarity, random = _paired(similarity, random)
    if random.min() < 0 or _no_positive(similarity, random):
        return None
    return float(np.mean(similarity < HIT_BELOW * random))


def paired_wilcoxon(similarity: Sample, random: Sample) -> float:
    """Return the one-sided p of the signed-rank test that s_A - s_rand of the same item tends to be negative.

    It is 1 if there is no difference.
    """
    similarity, random = _paired(similarity, random)
    difference = (similarity - random)[similarity != random]
    if not len(difference):
        return 1.0
    _, p = np.asarray(stats.wilcoxon(difference, alternative="less"))
    return float(p)


def within_overlap(top: Int64[np.ndarray, "m k"]) -> Estimate | None:
    """Return the mean of 100 |T_a n T_b| / min(|T_a|, |T_b|) over the unordered pairs of items, in [0, 100].

    None for one item. Pairs count as independent, as in the paper, which makes the half-width too small. Random lists
    have 100 k / N.
    """
    (lists,) = _memberships(top)
    if len(top) < 2:
        return None
    shared = (lists @ lists.T).toarray()
    return _estimate(100 / top.shape[1] * shared[np.triu_indices(len(top), k=1)])


def between_overlap(top_a: Int64[np.ndarray, "m k"], top_b: Int64[np.ndarray, "m k"]) -> float:
    """Return the mean over the items of 100 |T_A n T_B| / k, in [0, 100], for two methods' lists of the same items."""
    if top_a.shape != top_b.shape:
        raise ValueError(f"expected top lists of the same items, found shapes {top_a.shape} and {top_b.shape}")
    lists_a, lists_b = _memberships(top_a, top_b)
    return 100 * float(lists_a.multiply(lists_b).sum()) / top_a.size


def cluster_bootstrap(
    groups_a: Sequence[Float[np.ndarray, "n ..."]],
    groups_b: Sequence[Float[np.ndarray, "n ..."]],
    statistic: Callable[[np.ndarray, np.ndarray], float],
    num: int = 2000,
    *,
    rng: np.random.Generator,
) -> tuple[float, float] | None:
    """Return the 95 % percentile interval of `statistic(a, b)` when whole seeds are redrawn; None for fewer than two
    seeds.

    groups_a[s] and groups_b[s] are the items of seed s, and the same seeds are drawn for both. The statistic must not
    depend on the order of the seeds: draws of the same seeds are computed once (462 at most for the paper's six).
    """
    if len(groups_a) != len(groups_b):
        raise ValueError(f"groups_a has {len(groups_a)} seeds, groups_b has {len(groups_b)}: expected the same seeds")
    if len(groups_a) < 2:
        return None
    draws = np.sort(rng.integers(len(groups_a), size=(num, len(groups_a))), axis=1)
    distinct, draw_of = np.unique(draws, axis=0, return_inverse=True)
    values = np.array(
        [
            statistic(np.concatenate([groups_a[s] for s in draw]), np.concatenate([groups_b[s] for s in draw]))
            for draw in distinct
        ]
    )
    low, high = np.percentile(values[draw_of.reshape(-1)], [2.5, 97.5])
    return float(low), float(high)


def _estimate(values: Sample) -> Estimate:
    num = len(values)
    half_width = HALF_WIDTHS * float(values.std(ddof=1)) / math.sqrt(num) if num > 1 else None
    return Estimate(float(values.mean()), half_width, num)


def _sample(name: str, values: Sample) -> Sample:
    """Convert to float64: the sum of many small float32 numbers is not the same on every machine."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"{name}: expected a list of numbers, one for each item; found shape {values.shape}")
    if not np.isfinite(values).all():
        item = int(np.flatnonzero(~np.isfinite(values))[0])
        raise ValueError(f"{name}: item {item} is {values[item]}; expected finite numbers")
    return values


def _paired(similarity: Sample, random: Sample) -> tuple[Sample, Sample]:
    similarity, random = _sample("similarity", similarity), _sample("random", random)
    if len(similarity) != len(random):
        raise ValueError(f"similarity has {len(similarity)} items, random has {len(random)}: expected the same items")
    return similarity, random


def _no_positive(*samples: Sample) -> bool:
    """Return True for what negated distances look like."""
    return all(sample.max() <= 0 for sample in samples)


def _memberships(*tops: Int64[np.ndarray, "m k"]) -> list[sparse.csr_array]:
    """Return, for each array of lists, a sparse matrix that is 1 where an item's list has the image whose idx is the
    column.
    """
    for top in tops:
        if top.ndim != 2 or not top.size or top.min() < 0:
            raise ValueError(f"top: expected lists of idx of training images, [m, k]; found shape {top.shape}")
        if (np.diff(np.sort(top, axis=1), axis=1) == 0).any():
            raise ValueError("top: the list of one item contains an image twice")
    num_columns = 1 + max(int(top.max()) for top in tops)
    return [
        sparse.csr_array(
            (np.ones(top.size), np.sort(top, axis=1).reshape(-1), np.arange(0, top.size + 1, top.shape[1])),
            shape=(len(top), num_columns),
        )
        for top in tops
    ]
