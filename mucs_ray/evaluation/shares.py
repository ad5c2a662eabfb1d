"""The share of each group in a generated image, with an interval, or the word that it is nobody in particular.

A share is the positive part of a group's score in units of the sum of all positive parts. Scores are computed several
times, with other noise or with models of other seeds, and from how much they differ comes the interval.
Axes: r repetitions, q queries (generated images), k groups, d draws.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any

import numpy as np
from jaxtyping import Float

from mucs_ray.diffusion.noise import generator
from mucs_ray.errors import InputError

DRAWS = 4000
ERROR_RATE = 0.05
"""The probability with which an interval may miss, and with which an image of nobody may be given to somebody."""
NOBODY = "nobody in particular"
COLUMNS = ("query", "group", "share", "low", "high", "score", "standard_error", "floor", "audit")


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupShare:
    """The share of one group in one image, in [0, 1], with its 95 % interval."""

    group: str
    share: float
    low: float
    high: float
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryShares:
    """The shares of all groups in one image, which sum to 1; none if they would say nothing."""

    query: int
    shares: tuple[GroupShare, ...]
    """In descending order; empty if the image is nobody's in particular."""
    standard_error: float
    """That of the mean score of a group over the repetitions, from all groups together."""
    floor: float
    """The score that the best group must exceed, by itself and above the mean of all groups."""

    @property
    def nobody(self) -> bool:
        """Whether no group stands out from what noise alone, or another seed, would give."""
        return not self.shares


def repetitions(scores: Float[np.ndarray, "seeds sets q k"]) -> Float[np.ndarray, "r q k"]:
    """Return what intervals are made of: seeds, averaged over noise sets, where there are several; else noise sets.

    Scores of one seed differ less than those of several, whose models differ.
    """
    return scores.mean(axis=1) if len(scores) > 1 else scores[0]


def floor_of(first: Float[np.ndarray, "q k"], second: Float[np.ndarray, "q k"]) -> float:
    """Return the floor by seeds: 1.96 standard deviations of a score between models of two seeds."""
    return 1.96 * float(np.sqrt(np.mean((first - second) ** 2) / 2))


def shares_of(
    scores: Float[np.ndarray, "r q k"], names: Sequence[str], *, queries: Sequence[int], seed: int, floor: float = 0.0
) -> list[QueryShares]:
    """Return the shares of the groups in each image.

    `floor` is a least score from elsewhere, such as `floor_of`; the noise of an image may make its own floor higher.
    InputError for fewer than two repetitions, since no share is told without its interval, or a group without scores.
    """
    if len(scores) < 2:
        raise InputError(
            "shares are told with an interval only, and scores of one noise and one seed have none; set"
            " groups.noise_sets to 2 or more"
        )
    unknown = np.flatnonzero(~np.isfinite(scores).all(axis=(0, 1)))
    if len(unknown):
        raise InputError(
            f"group {names[unknown[0]]!r} has no score for some image, and shares are of all groups; compute it first"
        )
    tables = scores.astype(np.float64).transpose(1, 0, 2)
    return [
        shares_in(query, table, names, floor, generator(seed, f"groups/shares/query={query}"))
        for query, table in zip(queries, tables, strict=True)
    ]


def shares_in(
    query: int, scores: Float[np.ndarray, "r k"], names: Sequence[str], floor: float, stream: np.random.Generator
) -> QueryShares:
    """Return the shares in one image."""
    from scipy import stats  # slow to import

    times, num_groups = scores.shape
    mean = scores.mean(axis=0)
    freedom = (times - 1) * num_groups
    # the groups' errors are pooled: two or three repetitions of a single group would say too little about them
    error = float(np.sqrt(((scores - mean) ** 2).sum() / freedom / times))
    own_floor = max(floor, error * float(stats.t.ppf(1 - ERROR_RATE / (2 * num_groups), freedom)))
    if mean.max() <= own_floor or mean.max() - mean.mean() <= own_floor:
        return QueryShares(query=query, shares=(), standard_error=error, floor=own_floor)
    share = normalised(mean[None])[0]
    drawn = normalised(mean + error * stream.standard_t(freedom, size=(DRAWS, num_groups)))
    low, high = np.percentile(drawn, [100 * ERROR_RATE / 2, 100 * (1 - ERROR_RATE / 2)], axis=0)
    # scores below 0 are cut, so that noise can only add to those groups: the share itself is kept inside
    low, high = np.minimum(low, share), np.maximum(high, share)
    order: list[int] = np.argsort(-mean, kind="stable").tolist()
    found = [
        GroupShare(group=names[k], share=float(share[k]), low=float(low[k]), high=float(high[k]), score=float(mean[k]))
        for k in order
    ]
    return QueryShares(query=query, shares=tuple(found), standard_error=error, floor=own_floor)


def normalised(scores: Float[np.ndarray, "d k"]) -> Float[np.ndarray, "d k"]:
    """Return the positive parts in units of their sum; all 0 where nothing is positive."""
    positive = np.maximum(scores, 0)
    total = positive.sum(axis=1, keepdims=True)
    return np.divide(positive, total, out=np.zeros_like(positive), where=total > 0)


# --- the file -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRecord:
    """What shares were computed from, so that they can be filed and computed again."""

    model: str
    """The digest of the weights."""
    data: str
    """The fingerprint of the prepared data set."""
    groups: str
    """The digest of the manifest of groups."""
    queries: str
    """The digest of the manifest of generated images."""
    method: str
    """How the models without a group were made, such as "retrack", or "retrained"."""
    recipe: Mapping[str, Any]
    versions: Mapping[str, str]
    date: str
    """The day and time in UTC, in ISO 8601."""

    @property
    def digest(self) -> str:
        """The first digits of the sha256 of the record, by which rows of shares name it."""
        return sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]

    def to_json(self) -> dict[str, Any]:
        """Return the content of the file, with the digest."""
        return {**asdict(self), "digest": self.digest}


def share_rows(images: Iterable[QueryShares], audit: AuditRecord) -> Iterator[tuple[object, ...]]:
    """Yield the rows of shares.csv; an image of nobody in particular has one row, without numbers of a share."""
    for image in images:
        error, floor = f"{image.standard_error:.6g}", f"{image.floor:.6g}"
        if image.nobody:
            yield image.query, NOBODY, "", "", "", "", error, floor, audit.digest
        for own in image.shares:
            numbers = (f"{value:.6f}" for value in (own.share, own.low, own.high))
            yield image.query, own.group, *numbers, f"{own.score:.6g}", error, floor, audit.digest


def shares_csv(images: Iterable[QueryShares], audit: AuditRecord) -> bytes:
    """Return the content of shares.csv."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([COLUMNS, *share_rows(images, audit)])
    return text.getvalue().encode()


def read_shares(content: bytes) -> list[QueryShares]:
    """Read shares.csv; numbers are those that the file shows."""
    rows: dict[int, list[Mapping[str, str]]] = {}
    for row in csv.DictReader(io.StringIO(content.decode())):
        rows.setdefault(int(row["query"]), []).append(row)
    return [
        QueryShares(
            query=query,
            shares=tuple(
                GroupShare(
                    group=row["group"],
                    **{name: float(row[name]) for name in ("share", "low", "high", "score")},
                )
                for row in of_query
                if row["share"]
            ),
            standard_error=float(of_query[0]["standard_error"]),
            floor=float(of_query[0]["floor"]),
        )
        for query, of_query in rows.items()
    ]
