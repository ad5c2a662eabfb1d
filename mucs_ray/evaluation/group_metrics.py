"""How well predicted scores rank groups as reference scores do, query by query (spec/backbones 7).

The reference ("gold") is the score of models retrained without a group. Orders are descending, ties go to the smaller
index. A value that is not defined, such as a correlation with a constant, is NaN, and the summary counts it.
Axes: q queries (generated images), k groups.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int64

Scores = Float[np.ndarray, "q k"]
Values = Float[np.ndarray, " q"]
Gain = Literal["exp", "linear", "value", "exp-value"]
"""The gain of a group in NDCG. With the rank relevance rho = k - rank: exp, 2^rho - 1, as in GUDA's CIFAR-10 tables;
linear, rho + 1, as in its UnlearnCanvas tables. value: the reference score itself above the least of all queries, ties
averaged, as in scikit-learn. exp-value: 2^(score above the least of the query) - 1.
"""
Ties = Literal["strict", "skip"]
"""Pairs with equal predicted scores count as wrong (GUDA's CIFAR-10 tables), or not at all (its other tables)."""
RBO_P = 0.9
GOLD_TIE, SKIPPED_TIE = 1e-12, 1e-6


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric: its name in tables, its function, and its expected value for a random order of k groups."""

    name: str
    function: Callable[[Scores, Scores], Values]
    chance: Callable[[int], float] | None = None
    """None where it depends on the reference scores."""
    higher_is_better: bool = True


def in_both(gold: Scores, predicted: Scores) -> Bool[np.ndarray, " k"]:
    """Return the groups that have both scores; one without a model, whose scores are all NaN, is absent, never 0."""
    return np.asarray(~(np.isnan(gold).all(axis=0) | np.isnan(predicted).all(axis=0)))


def order(scores: Scores) -> Int64[np.ndarray, "q k"]:
    """Return the groups of each query by descending score."""
    return np.argsort(-scores, axis=1, kind="stable")


def ranks(scores: Scores) -> Int64[np.ndarray, "q k"]:
    """Return the place of each group, from 1."""
    return np.argsort(order(scores), axis=1, kind="stable") + 1


def overlap(gold: Scores, predicted: Scores, depth: int) -> Values:
    """Return the share of the first `depth` groups that both orders have; with depth 1, whether the first agree."""
    depth = min(depth, gold.shape[1])
    return ((ranks(gold) <= depth) & (ranks(predicted) <= depth)).sum(axis=1) / depth


def mrr(gold: Scores, predicted: Scores) -> Values:
    """Return 1 / the predicted rank of the group that is first by the reference."""
    return 1 / np.take_along_axis(ranks(predicted), order(gold)[:, :1], axis=1)[:, 0]


def discounts(num: int, depth: int) -> Float[np.ndarray, " k"]:
    """Return 1 / log2(rank + 1) up to a depth, and 0 beyond it."""
    places = np.arange(1, num + 1)
    return np.where(places <= depth, 1 / np.log2(places + 1), 0.0)


def gains(gold: Scores, gain: Gain) -> Scores:
    """Return the gain of each group, up to a factor for each query, which NDCG does not see."""
    relevance = gold.shape[1] - ranks(gold)
    match gain:
        case "exp":
            return 2.0**relevance - 1
        case "linear":
            return relevance + 1.0
        case "value":
            return gold - min(gold.min(), 0.0)
        case "exp-value":  # times 2^(least - most), since the power itself overflows from 1024 on
            most, least = gold.max(axis=1, keepdims=True), gold.min(axis=1, keepdims=True)
            return 2.0 ** (gold - most) - 2.0 ** (least - most)


def ndcg(gold: Scores, predicted: Scores, depth: int, gain: Gain) -> Values:
    """Return the discounted gain of the predicted order, in units of that of the best order."""
    gained, discount = gains(gold, gain), discounts(gold.shape[1], depth)
    best = -np.sort(-gained, axis=1) @ discount
    if gain == "value":
        reached = np.array([tied_dcg(g, p, discount) for g, p in zip(gained, predicted, strict=True)])
    else:
        reached = np.take_along_axis(gained, order(predicted), axis=1) @ discount
    return divided(reached, best)


def tied_dcg(gained: Float[np.ndarray, " k"], scores: Float[np.ndarray, " k"], discount: np.ndarray) -> float:
    """Return the discounted gain, averaged over the orders of groups with equal scores."""
    _, tie = np.unique(-scores, return_inverse=True)
    counts = np.bincount(tie)
    ends = np.cumsum(counts)
    of_tie = np.diff(np.concatenate([[0.0], np.cumsum(discount)[ends - 1]]))
    return float((np.bincount(tie, weights=gained) / counts) @ of_tie)


def wpra(gold: Scores, predicted: Scores, first: int, ties: Ties) -> Values:
    """Return the share of pairs that are ordered as by the reference, weighted by their difference in the reference.

    Pairs count of which one is among the reference's `first` groups, and which the reference does tell apart.
    """
    a, b = np.triu_indices(gold.shape[1], k=1)
    gold_margin, margin = gold[:, a] - gold[:, b], predicted[:, a] - predicted[:, b]
    among_first = ranks(gold) <= first
    counts = among_first[:, a] | among_first[:, b]
    if ties == "strict":
        counts &= np.abs(gold_margin) >= GOLD_TIE
    else:
        counts &= (np.abs(gold_margin) >= SKIPPED_TIE) & (np.abs(margin) >= SKIPPED_TIE)
    weight = np.where(counts, np.abs(gold_margin), 0.0)
    return divided((weight * (np.sign(gold_margin) == np.sign(margin))).sum(axis=1), weight.sum(axis=1))


def rbo(gold: Scores, predicted: Scores, depth: int | None = None, *, normalised: bool = False) -> Values:
    """Return the rank-biased overlap (1 - p) sum_d p^(d-1) overlap_d, p = 0.9, which is at most 1 - p^depth.

    The normalised one is divided by that maximum.
    """
    deepest = min(depth or gold.shape[1], gold.shape[1])
    overlaps = np.stack([overlap(gold, predicted, d) for d in range(1, deepest + 1)], axis=1)
    value = (1 - RBO_P) * overlaps @ RBO_P ** np.arange(deepest)
    return value / (1 - RBO_P**deepest) if normalised else value


def correlation(gold: Scores, predicted: Scores, kind: Literal["spearman", "pearson", "kendall"]) -> Values:
    """Return a correlation: of average ranks, of the scores, or tau-b of pairs. NaN if either is constant."""
    from scipy import stats  # slow to import

    function = {"spearman": stats.spearmanr, "pearson": stats.pearsonr, "kendall": stats.kendalltau}[kind]
    varies = (np.ptp(gold, axis=1) > 0) & (np.ptp(predicted, axis=1) > 0)
    return np.array(
        [function(g, p)[0] if v else np.nan for g, p, v in zip(gold, predicted, varies, strict=True)], dtype=np.float64
    )


def residuals(gold: Scores, predicted: Scores, *, one_fit: bool = False) -> Scores:
    """Return what is left of the reference after the best a s + b, fitted to each query or once to all."""
    if one_fit:
        return residuals(gold.reshape(1, -1), predicted.reshape(1, -1)).reshape(gold.shape)
    g, s = (table - table.mean(axis=1, keepdims=True) for table in (gold, predicted))
    spread = (s * s).sum(axis=1, keepdims=True)
    return g - np.where(spread > 0, (g * s).sum(axis=1, keepdims=True) / np.where(spread > 0, spread, 1.0), 0.0) * s


def calibrated_mse(gold: Scores, predicted: Scores, *, one_fit: bool = False) -> Values:
    """Return the mean square of the residuals."""
    return (residuals(gold, predicted, one_fit=one_fit) ** 2).mean(axis=1)


def calibrated_mae(gold: Scores, predicted: Scores, *, one_fit: bool = False) -> Values:
    """Return the mean size of the residuals of least squares."""
    return np.abs(residuals(gold, predicted, one_fit=one_fit)).mean(axis=1)


def divided(share: Values, whole: Values) -> Values:
    """Return share / whole, and NaN where the whole is 0."""
    return np.where(whole > 0, share / np.where(whole > 0, whole, 1.0), np.nan)


# --- chance -------------------------------------------------------------------------------------------------------


def chance_overlap(k: int, depth: int) -> float:
    """Return the expected overlap of random orders."""
    return min(depth, k) / k


def chance_mrr(k: int) -> float:
    """Return the mean of 1 / rank."""
    return sum(1 / rank for rank in range(1, k + 1)) / k


def chance_ndcg(k: int, depth: int, gain: Gain) -> float:
    """Return the expected NDCG of a random order, for a gain that depends on ranks only."""
    gained, discount = gains(-np.arange(k, dtype=np.float64)[None], gain)[0], discounts(k, depth)
    return float(gained.mean() * discount.sum() / (gained @ discount))


def chance_rbo(k: int, *, normalised: bool = False) -> float:
    """Return the expected rank-biased overlap of random orders."""
    value = (1 - RBO_P) * sum(RBO_P ** (d - 1) * d / k for d in range(1, k + 1))
    return value / (1 - RBO_P**k) if normalised else value


# --- all ----------------------------------------------------------------------------------------------------------


def of_depth(name: str, depth: int) -> Metric:
    """Return the metric of the overlap at a depth."""
    return Metric(name, lambda g, s: overlap(g, s, depth), lambda k: chance_overlap(k, depth))


def of_gain(depth: int, gain: Gain) -> Metric:
    """Return NDCG at a depth in one of its forms."""
    by_rank = gain in ("exp", "linear")
    chance = (lambda k: chance_ndcg(k, depth, gain)) if by_rank else None
    return Metric(f"NDCG@{depth} ({gain})", lambda g, s: ndcg(g, s, depth, gain), chance)


def of_pairs(first: int, ties: Ties) -> Metric:
    """Return the agreement on pairs with one of the first groups."""
    return Metric(f"WPRA@{first} ({ties})", lambda g, s: wpra(g, s, first, ties), lambda _: 0.5)


DEPTHS = 3, 5
NDCG_DEPTHS = *DEPTHS, 10
METRICS = (
    of_depth("top-1", 1),
    Metric("MRR", mrr, chance_mrr),
    *(of_gain(depth, "exp") for depth in NDCG_DEPTHS),
    *(of_gain(depth, "linear") for depth in NDCG_DEPTHS),
    *(of_gain(depth, gain) for gain in ("value", "exp-value") for depth in DEPTHS),
    of_depth("top-3 overlap", 3),
    of_depth("top-5 overlap", 5),
    Metric("RBO", rbo, chance_rbo),
    Metric("RBO / maximum", lambda g, s: rbo(g, s, normalised=True), lambda k: chance_rbo(k, normalised=True)),
    Metric("Spearman", lambda g, s: correlation(g, s, "spearman"), lambda _: 0.0),
    Metric("Pearson", lambda g, s: correlation(g, s, "pearson"), lambda _: 0.0),
    Metric("Kendall tau-b", lambda g, s: correlation(g, s, "kendall"), lambda _: 0.0),
    *(of_pairs(first, ties) for ties in ("strict", "skip") for first in DEPTHS),
    Metric("WPRA (strict)", lambda g, s: wpra(g, s, g.shape[1], "strict"), lambda _: 0.5),
    Metric("calibrated MSE", calibrated_mse, higher_is_better=False),
    Metric("calibrated MAE", calibrated_mae, higher_is_better=False),
    Metric("calibrated MSE, one fit", lambda g, s: calibrated_mse(g, s, one_fit=True), higher_is_better=False),
    Metric("calibrated MAE, one fit", lambda g, s: calibrated_mae(g, s, one_fit=True), higher_is_better=False),
)
"""All metrics, those of GUDA's tables first."""
HEADLINE = ("top-1", "MRR", "NDCG@3 (exp)", "Spearman")
"""The metrics that are printed and shown in reports."""
