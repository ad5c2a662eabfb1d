"""Which images can be left out early: bounds on their scores, learned from a random sample that is scored in full.

A score is a mean over noises of skews. After the first few noises, a linear prediction of it says of most images that
they are far from the top; successive halving leaves those out and goes on with the others. How far from the top is far
enough follows from the prediction's errors on the sample, so that an asked recall of the true top-k holds; the recall
reached is estimated by cross-validation on the same sample.

Axes: b images of the sample, i items, n noises, r rounds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int64
from scipy.stats import qmc

FOLDS = 5
TAIL = 0.1
"""Errors of the prediction are taken from this share of the images, with the highest scores: there they matter."""
RIDGE = 1e-3
Z = 1.96


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """After its noises the images whose predicted score is below the threshold are left out."""

    weights: Float[np.ndarray, " n"]
    """Prediction of the whole score: a weight for each noise, 0 for those not measured yet, ..."""
    constant: Float[np.ndarray, " i"]
    """... and a constant."""
    threshold: Float[np.ndarray, " i"]

    def predict(self, skews: Float[np.ndarray, "b i n"]) -> Float[np.ndarray, "b i"]:
        """The whole score, from the noises of this round and those before."""
        used = self.weights != 0
        # not a matrix product: its rounding would depend on which images are together
        return (np.ascontiguousarray(skews[..., used]) * self.weights[used]).sum(axis=-1) + self.constant


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutRecall:
    """The recall of bounds on images that they were not learned from."""

    recall: float
    """Share of the true top images that were kept, over all items."""
    low: float
    high: float
    """95 % interval (Wilson), as if items were independent."""
    tops: int
    """How many true top images there were to keep."""
    share: float
    """Of the forwards with F2 that scoring everything takes."""


def van_der_corput_order(num: int) -> Int64[np.ndarray, " n"]:
    """0..num-1 in the order of van der Corput's sequence, of which every beginning is spread evenly."""
    return np.argsort(np.argsort(qmc.Halton(d=1, scramble=False).random(num)[:, 0]))


def noise_counts(num_noises: int, shares: Sequence[float]) -> list[int]:
    """The number of noises after each round; after the last one it is all of them."""
    counts = {min(num_noises, max(1, round(share * num_noises))) for share in shares}
    return [*sorted(counts - {num_noises}), num_noises]


def learn(skews: Float[np.ndarray, "b i n"], *, top_share: float, counts: Sequence[int], recall: float) -> list[Round]:
    """Bounds for all rounds but the last, from the skews of a sample. Each may lose an equal part of 1 - recall."""
    order, scores = van_der_corput_order(skews.shape[2]), skews.mean(axis=2, dtype=np.float64)
    scale = scores.std(axis=0)
    some = scale > 1e-6 * scale.max()  # of an item whose F2 is F1 all scores are 0, and say nothing
    # where the top-k ends is known only as well as the sample tells: rather too low than too high
    wider = top_share + np.sqrt(top_share * (1 - top_share) / len(scores))
    ends = np.quantile(scores, 1 - wider, axis=0)
    # scores above the end of the top-k and errors near it, in units of the item's own spread, pooled over the items
    above = ((scores - ends)[:, some] / scale[some])[(scores >= ends)[:, some]]
    near = (scores >= np.quantile(scores, 1 - TAIL, axis=0))[:, some]
    rounds = []
    for count in counts[:-1]:
        weights = regression(skews[:, some] / scale[some, None], order[:count]) if some.any() else np.zeros(len(order))
        constant = scores.mean(axis=0) - skews.mean(axis=0, dtype=np.float64) @ weights
        bounds = Round(weights=weights, constant=constant, threshold=np.full(len(ends), -np.inf))
        if some.any():
            errors = ((bounds.predict(skews) - scores)[:, some] / scale[some])[near]
            lost = np.quantile(above[:, None] + errors[None, :], (1 - recall) / len(counts[:-1]))
            bounds.threshold[some] = (ends + scale * lost)[some]
        rounds.append(bounds)
    return rounds


def regression(skews: Float[np.ndarray, "b i n"], used: Int64[np.ndarray, " m"]) -> Float[np.ndarray, " n"]:
    """Least squares, within items, of the mean over all noises on some of them; a little towards their plain mean."""
    centred = (skews - skews.mean(axis=0)).astype(np.float64).reshape(-1, skews.shape[2])
    x, y = centred[:, used], centred.mean(axis=1)
    plain = np.full(len(used), 1 / len(used))
    square = x.T @ x / len(x)
    ridge = RIDGE * np.trace(square) / len(used) + 1e-12
    weights = np.zeros(skews.shape[2])
    weights[used] = plain + np.linalg.solve(square + ridge * np.eye(len(used)), x.T @ (y - x @ plain) / len(x))
    return weights


def kept(rounds: Sequence[Round], skews: Float[np.ndarray, "b i n"]) -> Bool[np.ndarray, "r b i"]:
    """Which images are still there after each round."""
    alive = np.ones((len(rounds), *skews.shape[:2]), dtype=bool)
    for number, each in enumerate(rounds):
        alive[number:] &= each.predict(skews) >= each.threshold
    return alive


def held_out(
    skews: Float[np.ndarray, "b i n"], *, top_share: float, counts: Sequence[int], recall: float
) -> HeldOutRecall:
    """Cross-validated: bounds learned without a fold, tried on it. Top images are those of the whole sample."""
    scores = skews.mean(axis=2)
    top = scores >= np.quantile(scores, 1 - top_share, axis=0)
    alive = np.ones((len(counts) - 1, *scores.shape), dtype=bool)
    for fold in range(FOLDS):
        out = np.arange(len(skews)) % FOLDS == fold
        if out.any() and not out.all():
            alive[:, out] = kept(learn(skews[~out], top_share=top_share, counts=counts, recall=recall), skews[out])
    steps = np.diff([0, *counts]) / counts[-1]
    share = steps[0] + sum(step * each.mean() for step, each in zip(steps[1:], alive, strict=True))
    tops, kept_tops = int(top.sum()), float(top[alive[-1]].sum() if len(alive) else top.sum())
    low, high = wilson(kept_tops, tops)
    return HeldOutRecall(recall=kept_tops / tops, low=low, high=high, tops=tops, share=float(share))


def wilson(kept_tops: float, tops: int) -> tuple[float, float]:
    """Wilson's 95 % interval of the share of top images that was kept."""
    share = kept_tops / tops
    middle = (share + Z**2 / (2 * tops)) / (1 + Z**2 / tops)
    half = Z / (1 + Z**2 / tops) * np.sqrt(share * (1 - share) / tops + Z**2 / (4 * tops**2))
    # rounding would put the end of the interval below the 1 that it holds
    return float(middle - half), 1.0 if kept_tops == tops else float(middle + half)
