"""Screening leaves images out early by bounds on their scores, learned from a random sample that is scored in full.

A score is a mean over noises of skews. After the first few noises, a linear prediction of it says of most images that
they are far from the top; successive halving leaves those out and goes on with the others. How far from the top is far
enough follows from the prediction's errors on the sample, so that the recall of the true top-k that was asked for
holds; the recall reached is estimated by cross-validation on the same sample.

Axes: b images of the sample, i items, n noises, r rounds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int64

FOLDS = 5
TAIL = 0.1
"""The prediction's errors are taken from this share of the images, those with the highest scores, where they matter."""
RIDGE = 1e-3
Z = 1.96


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """A round leaves out the images whose predicted score is below the threshold after its noises."""

    weights: Float[np.ndarray, " n"]
    """The weight of each noise in the prediction of the whole score; 0 for those not measured yet."""
    constant: Float[np.ndarray, " i"]
    """The constant of the prediction, for each item."""
    threshold: Float[np.ndarray, " i"]

    def predict(self, skews: Float[np.ndarray, "b i n"]) -> Float[np.ndarray, "b i"]:
        """Predict the whole score from the noises of this round and those before."""
        used = self.weights != 0
        # not a matrix product: its rounding would depend on which images are together
        return (np.ascontiguousarray(skews[..., used]) * self.weights[used]).sum(axis=-1) + self.constant


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutRecall:
    """This is the recall of bounds on images that they were not learned from."""

    recall: float
    """The share of the true top images that were kept, over all items."""
    low: float
    high: float
    """The ends `low` and `high` of the 95 % interval (Wilson), as if items were independent."""
    tops: int
    """The number of true top images."""
    share: float
    """The forwards with F2, as a share of those that scoring everything takes."""


def van_der_corput_order(num: int) -> Int64[np.ndarray, " n"]:
    """Return 0..num-1 in the order of van der Corput's sequence, of which every beginning is spread evenly."""
    from scipy.stats import qmc  # half a second of imports, which workers that do not screen are spared

    return np.argsort(np.argsort(qmc.Halton(d=1, scramble=False).random(num)[:, 0]))


def noise_counts(num_noises: int, shares: Sequence[float]) -> list[int]:
    """Return the number of noises after each round; after the last one it is all of them."""
    counts = {min(num_noises, max(1, round(share * num_noises))) for share in shares}
    return [*sorted(counts - {num_noises}), num_noises]


def learn(skews: Float[np.ndarray, "b i n"], *, top_share: float, counts: Sequence[int], recall: float) -> list[Round]:
    """Learn bounds for all rounds but the last, from the skews of a sample.

    Each round may lose an equal part of 1 - recall.
    """
    order, scores = van_der_corput_order(skews.shape[2]), skews.mean(axis=2, dtype=np.float64)
    scale = scores.std(axis=0)
    informative = scale > 1e-6 * scale.max()  # where F2 is F1 all scores of the item are 0
    # the sample gives the end of the top-k with an error, which must rather be too low than too high
    wide_share = top_share + np.sqrt(top_share * (1 - top_share) / len(scores))
    cutoffs = np.quantile(scores, 1 - wide_share, axis=0)
    # scores above the end of the top-k and errors near it, in units of the item's own spread, pooled over the items
    excess = ((scores - cutoffs)[:, informative] / scale[informative])[(scores >= cutoffs)[:, informative]]
    near_top = (scores >= np.quantile(scores, 1 - TAIL, axis=0))[:, informative]
    rounds = []
    for count in counts[:-1]:
        weights = (
            regression(skews[:, informative] / scale[informative, None], order[:count])
            if informative.any()
            else np.zeros(len(order))
        )
        constant = scores.mean(axis=0) - skews.mean(axis=0, dtype=np.float64) @ weights
        bounds = Round(weights=weights, constant=constant, threshold=np.full(len(cutoffs), -np.inf))
        if informative.any():
            errors = ((bounds.predict(skews) - scores)[:, informative] / scale[informative])[near_top]
            lost = np.quantile(excess[:, None] + errors[None, :], (1 - recall) / len(counts[:-1]))
            bounds.threshold[informative] = (cutoffs + scale * lost)[informative]
        rounds.append(bounds)
    return rounds


def regression(skews: Float[np.ndarray, "b i n"], used: Int64[np.ndarray, " m"]) -> Float[np.ndarray, " n"]:
    """Regress the mean over all noises on some of them, by least squares within items, a little towards their plain
    mean.
    """
    centred = (skews - skews.mean(axis=0)).astype(np.float64).reshape(-1, skews.shape[2])
    x, y = centred[:, used], centred.mean(axis=1)
    plain = np.full(len(used), 1 / len(used))
    square = x.T @ x / len(x)
    ridge = RIDGE * np.trace(square) / len(used) + 1e-12
    weights = np.zeros(skews.shape[2])
    weights[used] = plain + np.linalg.solve(square + ridge * np.eye(len(used)), x.T @ (y - x @ plain) / len(x))
    return weights


def kept(rounds: Sequence[Round], skews: Float[np.ndarray, "b i n"]) -> Bool[np.ndarray, "r b i"]:
    """Return which images are not left out after each round."""
    remaining = np.ones((len(rounds), *skews.shape[:2]), dtype=bool)
    for number, bounds in enumerate(rounds):
        remaining[number:] &= bounds.predict(skews) >= bounds.threshold
    return remaining


def held_out(
    skews: Float[np.ndarray, "b i n"], *, top_share: float, counts: Sequence[int], recall: float
) -> HeldOutRecall:
    """Estimate the recall by cross-validation: bounds are learned without a fold and tried on it.

    Top images are those of the whole sample.
    """
    scores = skews.mean(axis=2)
    top = scores >= np.quantile(scores, 1 - top_share, axis=0)
    remaining = np.ones((len(counts) - 1, *scores.shape), dtype=bool)
    for fold in range(FOLDS):
        out = np.arange(len(skews)) % FOLDS == fold
        if out.any() and not out.all():
            remaining[:, out] = kept(learn(skews[~out], top_share=top_share, counts=counts, recall=recall), skews[out])
    steps = np.diff([0, *counts]) / counts[-1]
    share = steps[0] + sum(step * of_round.mean() for step, of_round in zip(steps[1:], remaining, strict=True))
    tops, kept_tops = int(top.sum()), float(top[remaining[-1]].sum() if len(remaining) else top.sum())
    low, high = wilson(kept_tops, tops)
    return HeldOutRecall(recall=kept_tops / tops, low=low, high=high, tops=tops, share=float(share))


def wilson(kept_tops: float, tops: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of the share of top images that was kept."""
    share = kept_tops / tops
    middle = (share + Z**2 / (2 * tops)) / (1 + Z**2 / tops)
    half = Z / (1 + Z**2 / tops) * np.sqrt(share * (1 - share) / tops + Z**2 / (4 * tops**2))
    # rounding would exclude 1 from the interval, which contains it
    return float(middle - half), 1.0 if kept_tops == tops else float(middle + half)
