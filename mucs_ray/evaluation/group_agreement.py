"""The agreement of methods with a reference on groups, with 95 % intervals over the queries (spec/backbones 7).

Axes: q queries (generated images), k groups.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mucs_ray.attribution.finite import require_finite
from mucs_ray.diffusion.noise import generator
from mucs_ray.errors import InputError
from mucs_ray.evaluation.group_metrics import METRICS, Metric, Scores, Values, in_both

Interval = tuple[float, float]
DRAWS = 2000
DRAWN_AT_ONCE = 1 << 22
"""Numbers of one block of the bootstrap, so that its memory does not grow with the number of queries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """One metric over the queries; a number that is not defined is None."""

    metric: str
    mean: float | None
    median: float | None
    sd: float | None
    """The standard deviation, of n - 1 degrees of freedom."""
    interval: Interval | None
    """The 95 % percentile interval of the mean from redrawing queries; None for a single query."""
    chance: float | None
    """The expected value for a random order; None where it depends on the reference scores."""
    num: int
    undefined: int
    """The number of queries for which the metric is not defined, which are left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How one method agrees with the reference."""

    num_groups: int
    absent: tuple[int, ...]
    """The groups left out because one of the two has no score of theirs."""
    summaries: tuple[Summary, ...]
    values: dict[str, Values]
    """Every metric by name, query by query; NaN where it is not defined."""


def agreement(gold: Scores, predicted: Scores, *, seed: int, metrics: Sequence[Metric] = METRICS) -> Agreement:
    """Return all metrics of predicted scores. Groups with NaN have no model, and are left out.

    InputError if the tables have other queries or groups, or fewer than two groups are left; RunFailed for a score that
    is infinite.
    """
    if gold.shape != predicted.shape:
        raise InputError(f"expected scores of the same queries and groups, found {gold.shape} and {predicted.shape}")
    both = in_both(gold, predicted)
    if both.sum() < 2:
        raise InputError(f"{both.sum()} of {len(both)} groups have a score and a reference; expected two or more")
    gold, predicted = (np.asarray(table[:, both], dtype=np.float64) for table in (gold, predicted))
    for table, what in ((gold, "the reference score of query"), (predicted, "the group score of query")):
        require_finite(table, range(len(table)), what)
    values = {metric.name: metric.function(gold, predicted) for metric in metrics}
    num_groups, intervals = int(both.sum()), intervals_of_means(np.stack(list(values.values()), axis=1), seed)
    return Agreement(
        num_groups=num_groups,
        absent=tuple(np.flatnonzero(~both).tolist()),
        summaries=tuple(
            summary(metric, values[metric.name], interval, num_groups)
            for metric, interval in zip(metrics, intervals, strict=True)
        ),
        values=values,
    )


def summary(metric: Metric, values: Values, interval: Interval | None, num_groups: int) -> Summary:
    """Return the summary of a metric's values."""
    known = values[~np.isnan(values)]
    return Summary(
        metric=metric.name,
        mean=float(known.mean()) if len(known) else None,
        median=float(np.median(known)) if len(known) else None,
        sd=float(known.std(ddof=1)) if len(known) > 1 else None,
        interval=interval,
        chance=metric.chance(num_groups) if metric.chance else None,
        num=len(known),
        undefined=len(values) - len(known),
    )


def intervals_of_means(values: Float[np.ndarray, "q m"], seed: int) -> list[Interval | None]:
    """Return the 95 % percentile interval of each column's mean by the bootstrap; None for fewer than two values.

    Values that are not defined are left out of the mean of each draw. The draws depend on the seed and the number of
    queries alone, so that those of all columns are the same.
    """
    num, defined = len(values), ~np.isnan(values)
    stream, at_once = generator(seed, "groups/bootstrap"), max(1, DRAWN_AT_ONCE // num)
    means = []
    for start in range(0, DRAWS, at_once):
        drawn = stream.integers(num, size=(min(at_once, DRAWS - start), num))
        first_of_draw = num * np.arange(len(drawn))[:, None]
        counts = np.bincount((drawn + first_of_draw).reshape(-1), minlength=drawn.size).reshape(drawn.shape)
        with np.errstate(invalid="ignore"):  # a draw without a value that is defined
            means.append((counts @ np.where(defined, values, 0.0)) / (counts @ defined.astype(np.float64)))
    table = np.concatenate(means)
    ends = [
        np.nanpercentile(table[:, column], [2.5, 97.5]) if n > 1 else None for column, n in enumerate(defined.sum(0))
    ]
    return [None if pair is None else (float(pair[0]), float(pair[1])) for pair in ends]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How much larger a metric is for one method than for another, on the queries for which it is defined for both."""

    metric: str
    mean: float | None
    interval: Interval | None
    """The paired 95 % interval; where it holds 0, the queries do not tell the methods apart."""
    num: int


def differences(first: Agreement, second: Agreement, *, seed: int) -> tuple[Difference, ...]:
    """Return first - second for each metric. InputError if they were not compared on the same groups and queries."""
    if first.absent != second.absent or first.num_groups != second.num_groups:
        raise InputError("the two methods have scores of different groups; compare them on those that both have")
    one, other = (np.stack(list(each.values.values()), axis=1) for each in (first, second))
    if one.shape != other.shape:
        raise InputError(f"expected metrics of the same queries, found {len(one)} and {len(other)}")
    table = one - other
    known = [column[~np.isnan(column)] for column in table.T]
    return tuple(
        Difference(metric=name, mean=float(own.mean()) if len(own) else None, interval=interval, num=len(own))
        for name, own, interval in zip(first.values, known, intervals_of_means(table, seed), strict=True)
    )
