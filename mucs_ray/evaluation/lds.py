"""The linear datamodeling score (LDS): does the sum of a method's scores over a subset predict what a model trained on
that subset makes of an item?

LDS of an item = Spearman over subsets S of (sum of its scores over S) and f(S). f is the similarity of the item, made
again by the model of S, to the original one, or minus that model's loss of the original item: higher means that more of
the item is left. Subsets of different strata (of single images, of whole blocks) are ranked apart, because what they do
to all items differs, whichever images they have. An item that no subset changes has no LDS; it is left out and counted.

Axes: s subsets (and r of them that were repeated), m items, d draws of the bootstrap.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64
from scipy.stats import rankdata

from mucs_ray.diffusion.noise import generator

LOSS = "loss"
"""The name of f = minus the loss among the names of similarities."""
NUM_DRAWS = 1000
DRAWS_AT_ONCE = 50
"""Draws of the bootstrap are ranked together, which takes memory."""
LEAST_SUBSETS = 4
"""With fewer a rank correlation says nothing."""

Table = Float[np.ndarray, "s m"]
Strata = Int64[np.ndarray, " s"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A mean over items, with its 95 % interval when items and subsets are drawn again."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodScores:
    """The LDS of one method by the name of f, and its paired difference to the method that is compared with."""

    method: str
    scores: dict[str, Score]
    differences: dict[str, Score]
    """Empty for the method that the others are compared with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SubsetScores:
    """The scores of all methods over one kind of subsets."""

    kind: str
    """all; pooled, which are the same, ranked together; uniform; or blocks."""
    subsets: int
    methods: list[MethodScores]
    unchanged: dict[str, int]
    """By the name of f, the number of items that were left out because no subset changes them. An f for which these
    are all items has no scores."""
    repeats: int
    """The number of subsets on which two models were trained."""
    ceiling: dict[str, float]
    """By the name of f, the LDS of a second model of the same subsets; empty if too few subsets were repeated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lds:
    """The scores of all methods of a run."""

    items: int
    versus: str
    """The method that the others are compared with."""
    names: list[str]
    """The names of f, the first of which is the headline."""
    kinds: list[SubsetScores]


def item_scores(predicted: Table, seen: Table, strata: Strata) -> Float[np.ndarray, " m"]:
    """Return the Spearman correlation over subsets for each item, in [-1, 1].

    It is NaN where nothing was seen to change, and 0 where only the prediction does not change.
    """
    return correlations(ranks(predicted, strata), ranks(seen, strata))


def ranks(values: Float[np.ndarray, "*d s m"], strata: Strata) -> Float[np.ndarray, "*d s m"]:
    """Return the ranks of the subsets within their stratum, less their mean and as shares of the stratum.

    Equal values share the mean of their ranks.
    """
    found = np.empty(values.shape)
    for stratum in np.unique(strata):
        rows = strata == stratum
        ranked = rankdata(values[..., rows, :], axis=-2)
        found[..., rows, :] = (ranked - ranked.mean(axis=-2, keepdims=True)) / rows.sum()
    return found


def correlations(
    predicted: Float[np.ndarray, "*d s m"], seen: Float[np.ndarray, "*d s m"]
) -> Float[np.ndarray, "*d m"]:
    """Return the correlation of centred ranks over the subsets."""
    products, own, other = ((a * b).sum(axis=-2) for a, b in ((predicted, seen), (predicted, predicted), (seen, seen)))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(other == 0, np.nan, np.where(own == 0, 0.0, products / np.sqrt(own * other)))


def mean_over_items(
    scores: Float[np.ndarray, "*d m"], weight: Float[np.ndarray, "*d m"] | None = None
) -> Float[np.ndarray, "*d"]:
    """Return the mean of the items that have a score; NaN if none has one."""
    weight = np.ones_like(scores) if weight is None else weight
    counted = np.where(np.isnan(scores), 0.0, weight)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (np.nan_to_num(scores) * counted).sum(axis=-1) / counted.sum(axis=-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What was predicted and seen over one kind of subsets."""

    kind: str
    predicted: Mapping[str, Table]
    """By method, the sum of its scores over each subset for each item."""
    seen: Mapping[str, Table]
    """Each f of the models of these subsets, by its name."""
    strata: Strata
    repeated: Mapping[str, tuple[Table, Table]]
    """Each f of both models of the subsets that were repeated."""
    repeated_strata: Int64[np.ndarray, " r"]


def lds(measured: Sequence[Measured], *, versus: str, seed: int, num_draws: int = NUM_DRAWS) -> Lds:
    """Return the scores of all methods, of which each is compared with `versus`, or if that is "" with the best one.

    The best one is that with the highest score by the first f over the first kind of subsets.
    """
    first = measured[0]
    names = list(first.seen)
    means = {method: point(table, first.seen[names[0]], first.strata) for method, table in first.predicted.items()}
    versus = versus or max(means, key=lambda method: np.nan_to_num(means[method], nan=-1.0))
    return Lds(
        items=first.seen[names[0]].shape[1],
        versus=versus,
        names=names,
        kinds=[subset_scores(of_kind, versus=versus, seed=seed, num_draws=num_draws) for of_kind in measured],
    )


def point(predicted: Table, seen: Table, strata: Strata) -> float:
    """Return the mean over the items that subsets change; NaN if there is none."""
    return float(mean_over_items(item_scores(predicted, seen, strata)))


def subset_scores(measured: Measured, *, versus: str, seed: int, num_draws: int = NUM_DRAWS) -> SubsetScores:
    """Return the scores of all methods over one kind of subsets."""
    strata = measured.strata
    unchanged = {name: int(np.isnan(item_scores(f, f, strata)).sum()) for name, f in measured.seen.items()}
    seen = {name: f for name, f in measured.seen.items() if unchanged[name] < f.shape[1]}
    points = {(m, name): point(table, f, strata) for m, table in measured.predicted.items() for name, f in seen.items()}
    draws = bootstrap(measured.predicted, seen, strata, rng=generator(seed, "lds/bootstrap"), num_draws=num_draws)

    def difference(method: str, name: str) -> Score:
        mean = points[method, name] - points[versus, name]
        return score(mean, draws[method, name] - draws[versus, name])

    return SubsetScores(
        kind=measured.kind,
        subsets=len(next(iter(measured.seen.values()))),
        methods=[
            MethodScores(
                method=method,
                scores={name: score(points[method, name], draws[method, name]) for name in seen},
                differences={name: difference(method, name) for name in seen if method != versus},
            )
            for method in measured.predicted
        ],
        unchanged=unchanged,
        repeats=len(measured.repeated_strata),
        ceiling=ceiling(measured.repeated, measured.repeated_strata),
    )


def ceiling(repeated: Mapping[str, tuple[Table, Table]], strata: Int64[np.ndarray, " r"]) -> dict[str, float]:
    """Return by the name of f how well the outputs of one model of a subset predict those of another one.

    A method that knew the expected outputs would do better: its LDS would be about the square root.
    """
    if len(strata) < LEAST_SUBSETS:
        return {}
    values = {name: point(*pair, strata) for name, pair in repeated.items()}
    return {name: value for name, value in values.items() if not np.isnan(value)}


def score(mean: float, draws: Float[np.ndarray, " d"]) -> Score:
    """Return a mean with the 95 % percentile interval of its draws, of which some may have no changed item."""
    finite = draws[np.isfinite(draws)]
    low, high = np.percentile(finite, [2.5, 97.5]) if len(finite) else (mean, mean)
    return Score(mean=mean, low=float(low), high=float(high))


def bootstrap(
    predicted: Mapping[str, Table],
    seen: Mapping[str, Table],
    strata: Strata,
    *,
    rng: np.random.Generator,
    num_draws: int = NUM_DRAWS,
) -> dict[tuple[str, str], Float[np.ndarray, " d"]]:
    """Return by method and name of f the mean over items when both subsets and items are drawn again.

    All methods and all f have the same draws, so that their differences are paired.
    """
    if not seen:
        return {}
    num_items = next(iter(seen.values())).shape[1]
    drawn: dict[tuple[str, str], list[np.ndarray]] = {(method, name): [] for method in predicted for name in seen}
    for subsets, weight in draws_of(strata, num_items, rng=rng, num_draws=num_draws):
        ranks_seen = {name: ranks(f[subsets], strata) for name, f in seen.items()}
        for method, table in predicted.items():
            own = ranks(table[subsets], strata)
            for name, ranked in ranks_seen.items():
                drawn[method, name].append(mean_over_items(correlations(own, ranked), weight))
    return {key: np.concatenate(parts) for key, parts in drawn.items()}


def draws_of(
    strata: Strata, num_items: int, *, rng: np.random.Generator, num_draws: int
) -> Iterator[tuple[Int64[np.ndarray, "d s"], Float[np.ndarray, "d m"]]]:
    """Yield subsets drawn within their strata, and how often each item is drawn, for some draws at a time."""
    for start in range(0, num_draws, DRAWS_AT_ONCE):
        count = min(DRAWS_AT_ONCE, num_draws - start)
        subsets = np.empty((count, len(strata)), dtype=np.int64)
        for stratum in np.unique(strata):
            (rows,) = np.nonzero(strata == stratum)
            subsets[:, rows] = rng.choice(rows, size=(count, len(rows)))
        weight = rng.multinomial(num_items, np.full(num_items, 1 / num_items), size=count)
        yield subsets, weight.astype(np.float64)
