"""Shares of groups: they sum to 1, have intervals that cover, and are nobody's where noise explains the scores."""

import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mucs_ray.errors import InputError
from mucs_ray.evaluation.shares import (
    COLUMNS,
    NOBODY,
    AuditRecord,
    QueryShares,
    floor_of,
    normalised,
    read_shares,
    repetitions,
    shares_csv,
    shares_of,
)

NAMES = ("Anna", "Ben", "Cleo", "Dan")
TRUE = np.array([6.0, 3.0, 1.0, -2.0])
AUDIT = AuditRecord(
    model="m", data="d", groups="g", queries="q", method="retrack", recipe={"seed": 1}, versions={"torch": "2"},
    date="2026-01-01T00:00:00Z",
)  # fmt: skip


def shares(scores: np.ndarray, **changes: float) -> list[QueryShares]:
    """Return the shares of scores [r, q, k]."""
    names = [f"g{k}" for k in range(scores.shape[2])] if scores.shape[2] != 4 else NAMES
    return shares_of(scores, names, queries=range(scores.shape[1]), **{"seed": 1, **changes})  # type: ignore[arg-type]


def repeated(true: np.ndarray, *, noise: float, times: int = 3, queries: int = 1, seed: int = 1) -> np.ndarray:
    stream = np.random.default_rng(seed)
    return true + noise * stream.standard_normal((times, queries, len(true)))


def test_shares_are_positive_parts_by_hand():
    (image,) = shares(repeated(TRUE, noise=0))
    assert [(own.group, own.share, own.score) for own in image.shares] == [
        ("Anna", 0.6, 6.0), ("Ben", 0.3, 3.0), ("Cleo", 0.1, 1.0), ("Dan", 0.0, -2.0),
    ]  # fmt: skip
    assert all(own.low == own.share == own.high for own in image.shares)  # without noise there is no doubt


@settings(deadline=None)
@given(seed=st.integers(0, 200), noise=st.floats(0.01, 3))
def test_shares_sum_to_one_and_lie_in_their_intervals(seed: int, noise: float):
    for image in shares(repeated(TRUE, noise=noise, queries=3, seed=seed)):
        if not image.nobody:
            assert sum(own.share for own in image.shares) == pytest.approx(1)
            assert all(0 <= own.low <= own.share <= own.high <= 1 for own in image.shares)


def test_intervals_cover_the_share_without_noise():
    """In 400 images the interval of the first group misses its true share in about 5 %."""
    images = shares(repeated(TRUE, noise=0.5, times=2, queries=400))
    own = [next(each for each in image.shares if each.group == "Anna") for image in images]
    missed = np.mean([not each.low <= 0.6 <= each.high for each in own])
    assert 0.01 < missed < 0.1
    assert np.mean([each.high - each.low for each in own]) < 0.25


def test_noise_alone_is_nobody_in_particular():
    found = [image.nobody for image in shares(repeated(np.zeros(10), noise=1.0, times=3, queries=400))]
    assert np.mean(found) > 0.95


def test_groups_that_all_matter_alike_are_nobody_in_particular():
    (alike,), (first,) = shares(repeated(np.full(10, 50.0), noise=1.0)), shares(repeated(50 * np.eye(10)[0], noise=1.0))
    assert alike.nobody and not first.nobody


def test_scores_below_a_floor_from_elsewhere_are_nobody_in_particular():
    (image,) = shares(repeated(TRUE, noise=0), floor=7.0)
    assert image.nobody and image.floor == 7.0
    (image,) = shares(repeated(TRUE, noise=0), floor=3.0)
    assert not image.nobody  # 6 is above 3, and 4 above the mean


def test_the_floor_by_seeds_by_hand():
    """Scores that differ by 2 between two seeds have a standard deviation of sqrt(2)."""
    first = np.zeros((3, 4))
    assert floor_of(first, first + 2) == pytest.approx(1.96 * 2**0.5)


def test_several_seeds_make_wider_intervals_than_noise_alone():
    stream = np.random.default_rng(2)
    of_seed = TRUE + 0.8 * stream.standard_normal((3, 1, 1, 4))
    scores = of_seed + 0.05 * stream.standard_normal((3, 2, 1, 4))
    by_seed, by_noise = repetitions(scores), repetitions(scores[:1])
    assert by_seed.shape == (3, 1, 4) and by_noise.shape == (2, 1, 4)
    np.testing.assert_allclose(by_seed[1], scores[1].mean(axis=0))
    (wide,), (narrow,) = shares(by_seed), shares(by_noise)
    assert wide.standard_error > 4 * narrow.standard_error


def test_an_image_has_the_same_shares_whatever_other_images_there_are():
    scores = repeated(TRUE, noise=0.5, queries=5)
    alone = shares_of(scores[:, 3:4], NAMES, queries=[3], seed=1)
    assert alone[0] == shares(scores)[3]


def test_no_share_without_an_interval_and_none_without_all_groups():
    with pytest.raises(InputError, match=r"set groups.noise_sets to 2 or more"):
        shares(repeated(TRUE, noise=0, times=1))
    scores = repeated(TRUE, noise=0)
    scores[1, 0, 2] = np.nan
    with pytest.raises(InputError, match="group 'Cleo' has no score for some image"):
        shares(scores)


def test_nothing_positive_has_no_shares():
    assert normalised(np.array([[-1.0, 0.0], [1.0, 3.0]])).tolist() == [[0, 0], [0.25, 0.75]]


def test_the_file_has_an_interval_for_every_share_and_names_the_record():
    first, second = (shares(repeated(true, noise=0.1))[0] for true in (TRUE, np.zeros(4)))
    text = shares_csv([first, replace(second, query=1)], AUDIT).decode()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert tuple(rows[0]) == COLUMNS and len(rows) == 5
    assert [row["group"] for row in rows] == [*NAMES, NOBODY]
    for row in rows[:4]:
        assert float(row["low"]) <= float(row["share"]) <= float(row["high"])
    assert (rows[4]["query"], rows[4]["share"], rows[4]["low"]) == ("1", "", "")
    assert {row["audit"] for row in rows} == {AUDIT.digest}
    assert json.loads(json.dumps(AUDIT.to_json()))["digest"] == AUDIT.digest
    read = read_shares(text.encode())
    assert [image.nobody for image in read] == [False, True] and [image.query for image in read] == [0, 1]
    assert [own.group for own in read[0].shares] == list(NAMES)
    assert read[0].shares[0].share == pytest.approx(first.shares[0].share, abs=1e-6)
    assert (read[1].standard_error, read[1].floor) == pytest.approx((second.standard_error, second.floor), rel=1e-5)
    assert replace(AUDIT, date="2026-01-02T00:00:00Z").digest != AUDIT.digest
