"""Scores of groups from the scores of their training images (spec/backbones 6).

Tables of scores are streamed, and sums are in float64. Only the median needs all scores of a group, and takes as many
groups at a time as fit in memory. A group of which no image has a score has none either: NaN.
Axes: b training images of one table, q queries (generated images), g groups, p memberships, n noises.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Float, Int64

from mucs_ray.attribution.finite import require_finite

Function = Literal["sum", "mean", "max", "median", "top-mean"]
FUNCTIONS: tuple[Function, ...] = ("sum", "mean", "max", "median", "top-mean")
ScoreTables = Callable[[], Iterable[tuple[Int64[np.ndarray, " b"], Float[np.ndarray, "b q"]]]]
"""A function that starts to read the tables of idx and scores anew."""
LossTables = Iterable[tuple[Int64[np.ndarray, " b"], Float[np.ndarray, "b n"], Float[np.ndarray, "b q n"]]]
MEDIAN_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Aggregation:
    """How scores of images become that of their group."""

    function: Function
    positive: bool = False
    """Whether only scores above 0 count; a group that has none of them has the score 0."""
    top: int = 1
    """The number of scores that "top-mean" averages: the largest, or all in a smaller group."""

    @property
    def name(self) -> str:
        """The name in tables, such as "top-5 mean, positive"."""
        name = f"top-{self.top} mean" if self.function == "top-mean" else self.function
        return f"{name}, positive" if self.positive else name


@dataclass(frozen=True, slots=True, kw_only=True)
class Members:
    """Who is in which group, as memberships in order of idx."""

    idx: Int64[np.ndarray, " p"]
    group: Int64[np.ndarray, " p"]
    num: int
    """The number of groups."""

    def of(self, idx: Int64[np.ndarray, " b"]) -> tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " m"]]:
        """Return the memberships of these images, as rows of `idx` and groups."""
        first, last = np.searchsorted(self.idx, idx, "left"), np.searchsorted(self.idx, idx, "right")
        counts = last - first
        rows = np.repeat(np.arange(len(idx)), counts)
        place_in_image = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        return rows, self.group[first[rows] + place_in_image]

    def sizes(self) -> Int64[np.ndarray, " g"]:
        """Return the number of images in each group."""
        return np.bincount(self.group, minlength=self.num)


def group_scores(
    tables: ScoreTables, members: Members, aggregations: Sequence[Aggregation]
) -> dict[Aggregation, Float[np.ndarray, "q g"]]:
    """Return the scores of all groups by each aggregation. RunFailed, naming the image, for a score that is not finite.

    The tables are read once, and once more for every batch of groups of which a median is asked for.
    """
    streamed = [each for each in aggregations if each.function != "median"]
    found = stream_scores(tables, members, streamed) if streamed else {}
    medians = [each for each in aggregations if each.function == "median"]
    return found | (median_scores(tables, members, medians) if medians else {})


def in_groups(
    tables: ScoreTables, members: Members
) -> Iterator[tuple[Int64[np.ndarray, " m"], Float[np.ndarray, "m q"]]]:
    """Yield the group and the scores of each membership, table by table."""
    for idx, scores in tables():
        require_finite(scores, idx, "the score of training image")
        rows, group = members.of(idx)
        yield group, scores[rows].astype(np.float64)


@dataclass(slots=True)
class Running:
    """One aggregation on the way through the tables."""

    how: Aggregation
    members: Members
    total: Float[np.ndarray, "g q"] = field(default_factory=lambda: np.empty(0))
    count: Float[np.ndarray, "g q"] = field(default_factory=lambda: np.empty(0))
    """The number of scores that count."""
    best: list[Float[np.ndarray, "m q"]] = field(default_factory=list)
    """The largest scores of each group, in descending order."""

    def begin(self, num_queries: int) -> None:
        """Make room for so many queries."""
        self.total, self.count = (np.zeros((self.members.num, num_queries)) for _ in range(2))
        self.best = [np.empty((0, num_queries)) for _ in range(self.members.num)]

    def add(self, group: Int64[np.ndarray, " m"], scores: Float[np.ndarray, "m q"]) -> None:
        """Take the scores of more memberships."""
        counts = scores > 0 if self.how.positive else np.ones(scores.shape, dtype=bool)
        np.add.at(self.count, group, counts)
        if self.how.function in ("sum", "mean"):
            np.add.at(self.total, group, np.where(counts, scores, 0.0))
            return
        scores, most = np.where(counts, scores, -np.inf), self.how.top if self.how.function == "top-mean" else 1
        for number in np.unique(group):
            known = np.concatenate([self.best[number], scores[group == number]])
            self.best[number] = -np.sort(-known, axis=0)[:most]

    def result(self) -> Float[np.ndarray, "q g"]:
        """Return the scores of the groups."""
        total, count = self.total, self.count
        if self.how.function in ("max", "top-mean"):
            kept = [np.isfinite(best) for best in self.best]
            total = np.stack([np.where(k, best, 0.0).sum(axis=0) for k, best in zip(kept, self.best, strict=True)])
            count = np.stack([k.sum(axis=0) for k in kept])
        if self.how.function != "sum":
            total = total / np.maximum(count, 1)
        return total.T


def stream_scores(
    tables: ScoreTables, members: Members, aggregations: Sequence[Aggregation]
) -> dict[Aggregation, Float[np.ndarray, "q g"]]:
    """Return the scores by aggregations that see each score once."""
    running = {each: Running(each, members) for each in aggregations}
    scored = np.zeros(members.num, dtype=np.int64)
    for group, scores in in_groups(tables, members):
        for each in running.values():
            if not each.best:
                each.begin(scores.shape[1])
            each.add(group, scores)
        scored += np.bincount(group, minlength=members.num)
    return {how: absent(each.result(), scored) for how, each in running.items()}


def absent(scores: Float[np.ndarray, "q g"], scored: Int64[np.ndarray, " g"]) -> Float[np.ndarray, "q g"]:
    """Return NaN, and not 0, for groups of which no image was scored: 0 would take part in a ranking."""
    return np.where(scored > 0, scores, np.nan)


def median_scores(
    tables: ScoreTables, members: Members, aggregations: Sequence[Aggregation], most_bytes: int = MEDIAN_BYTES
) -> dict[Aggregation, Float[np.ndarray, "q g"]]:
    """Return the medians of the groups' scores; of an even number, the mean of the two in the middle."""
    num_queries = len(next(iter(tables()))[1][0])
    found = {how: np.full((num_queries, members.num), np.nan) for how in aggregations}
    for batch in batches_of(members.sizes(), max(1, most_bytes // (8 * num_queries))):
        kept: dict[int, list[np.ndarray]] = {number: [] for number in batch}
        for group, scores in in_groups(tables, members):
            for number in np.intersect1d(group, batch):
                kept[number].append(scores[group == number])
        for number, parts in kept.items():
            if parts:
                scores = np.concatenate(parts)
                for how in aggregations:
                    found[how][:, number] = positive_medians(scores) if how.positive else np.median(scores, axis=0)
    return found


def batches_of(sizes: Int64[np.ndarray, " g"], most: int) -> Iterator[list[int]]:
    """Yield the numbers of groups that have at most so many images together, or of one that alone has more."""
    batch: list[int] = []
    for number, size in enumerate(sizes.tolist()):
        if batch and sizes[batch].sum() + size > most:
            yield batch
            batch = []
        batch.append(number)
    yield batch


def positive_medians(scores: Float[np.ndarray, "m q"]) -> Float[np.ndarray, " q"]:
    """Return the median of each query's positive scores; 0 if it has none."""
    positive = (column[column > 0] for column in scores.T)
    return np.array([np.median(column) if len(column) else 0.0 for column in positive])


def skew_of_groups(
    tables: LossTables, members: Members, epsilon: float | Float[np.ndarray, " n"]
) -> Float[np.ndarray, "q g"]:
    """Return the skew of the mean losses of each group before and after unlearning a query, for MUCS with kept losses.

    `epsilon` is that of each noise (mucs_ray/attribution/skew.py). RunFailed, naming the image, if a loss is not
    finite.
    """
    scored = np.zeros(members.num, dtype=np.int64)
    before_sum, after_sum = np.empty(0), np.empty(0)
    for idx, before, after in tables:
        require_finite(before, idx, "the loss of training image")
        require_finite(after, idx, "the loss of training image")
        if not before_sum.size:
            before_sum, after_sum = (
                np.zeros((members.num, 1, before.shape[1])),
                np.zeros((members.num, *after.shape[1:])),
            )
        rows, group = members.of(idx)
        np.add.at(before_sum, group, before[rows, None].astype(np.float64))
        np.add.at(after_sum, group, after[rows].astype(np.float64))
        scored += np.bincount(group, minlength=members.num)
    count = np.maximum(scored, 1)[:, None, None]
    before_mean, after_mean = before_sum / count, after_sum / count
    skews = (after_mean - before_mean) / (after_mean + before_mean + epsilon)
    return absent(skews.mean(axis=2).T, scored)
