"""Scores of groups against the reference values, numpy's own functions, and numbers computed by hand."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fixture_files import document
from mucs_ray.errors import RunFailed
from mucs_ray.evaluation.group_scores import (
    FUNCTIONS,
    Aggregation,
    Members,
    ScoreTables,
    batches_of,
    group_scores,
    median_scores,
    skew_of_groups,
)

REFERENCE = document("guda_u/groups")
SCORES = np.array(REFERENCE["scores"], dtype=np.float32).T
GROUP = np.array(REFERENCE["group_ids"])
MEMBERS = Members(idx=np.arange(len(GROUP)), group=GROUP, num=REFERENCE["num_groups"])
ALL = [Aggregation(name, positive, top=REFERENCE["top_k"]) for name in FUNCTIONS for positive in (False, True)]


def in_tables(scores: np.ndarray, rows: int, idx: np.ndarray | None = None) -> ScoreTables:
    """Return the scores as tables of so many rows."""
    idx = np.arange(len(scores)) if idx is None else idx

    def read() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for at in range(0, len(idx), rows):
            yield idx[at : at + rows], scores[at : at + rows]

    return read


@pytest.mark.parametrize("rows", [1, 7, 20])
def test_all_ten_aggregations_are_the_reference_ones(rows: int):
    """The reference sums in fp32. Its fifth group is empty and has the score 0; here it has none."""
    found = group_scores(in_tables(SCORES, rows), MEMBERS, ALL)
    assert len(found) == len(REFERENCE["aggregated"]) == 10
    for how in ALL:
        function = "top_k_mean" if how.function == "top-mean" else how.function
        expected = np.array(REFERENCE["aggregated"][f"{function}_positive" if how.positive else function])
        np.testing.assert_allclose(found[how][:, :4], expected[:, :4], rtol=0, atol=1e-6)
        assert np.isnan(found[how][:, 4]).all() and (expected[:, 4] == 0).all()


@settings(deadline=None)
@given(seed=st.integers(0, 100), rows=st.integers(1, 30))
def test_images_in_several_groups_count_in_each(seed: int, rows: int):
    stream = np.random.default_rng(seed)
    idx, scores = np.sort(stream.choice(100, 25, replace=False)), stream.standard_normal((25, 2)).astype(np.float32)
    inside = stream.random((25, 3)) < 0.5
    inside[0] = True
    row, group = np.nonzero(inside)
    members = Members(idx=idx[row], group=group, num=3)
    found = group_scores(in_tables(scores, rows, idx), members, ALL)
    for number in range(3):
        own = scores[inside[:, number]].astype(np.float64)
        top = -np.sort(-own, axis=0)[:2]
        expected = {"sum": own.sum(0), "mean": own.mean(0), "max": own.max(0), "median": np.median(own, 0)}
        for function, values in {**expected, "top-mean": top.mean(0)}.items():
            np.testing.assert_allclose(found[Aggregation(function, top=2)][:, number], values, rtol=1e-12, atol=1e-12)  # type: ignore[arg-type]


def test_the_order_of_the_images_changes_nothing():
    order = np.random.default_rng(1).permutation(len(SCORES))
    shuffled = group_scores(in_tables(SCORES[order], 6, order), MEMBERS, ALL)
    for how, expected in group_scores(in_tables(SCORES, 6), MEMBERS, ALL).items():
        np.testing.assert_allclose(shuffled[how], expected, rtol=1e-12)


def test_a_group_without_positive_scores_has_zero_and_one_without_scores_has_none():
    members = Members(idx=np.array([0, 1, 9]), group=np.array([0, 1, 2]), num=3)
    found = group_scores(in_tables(np.array([[-1.0], [2.0]]), 2), members, ALL)
    for how, scores in found.items():
        np.testing.assert_array_equal(scores, [[0.0 if how.positive else -1.0, 2.0, np.nan]])


def test_medians_need_not_hold_all_groups_at_once():
    medians = [how for how in ALL if how.function == "median"]
    at_once = median_scores(in_tables(SCORES, 7), MEMBERS, medians)
    one_by_one = median_scores(in_tables(SCORES, 7), MEMBERS, medians, most_bytes=1)
    for how in medians:
        np.testing.assert_array_equal(one_by_one[how], at_once[how])
    assert list(batches_of(np.array([3, 4, 9, 1, 1]), 7)) == [[0, 1], [2], [3, 4]]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_score_that_is_not_finite_is_an_error_that_names_the_image(function: str):
    scores = SCORES.copy()
    scores[13, 1] = np.nan
    with pytest.raises(RunFailed, match="the score of training image idx=13 is not finite"):
        group_scores(in_tables(scores, 5), MEMBERS, [Aggregation(function)])  # type: ignore[arg-type]


def test_names_tell_what_was_done():
    names = [how.name for how in (Aggregation("sum"), Aggregation("top-mean", top=5), Aggregation("max", True))]
    assert names == ["sum", "top-5 mean", "max, positive"]


def test_the_skew_of_mean_losses_by_hand():
    """Group 0 has the losses 1 and 3 before, 2 and 4 after the first query; the second query changes nothing."""
    idx, members = np.arange(3), Members(idx=np.arange(3), group=np.array([0, 0, 1]), num=2)
    before = np.array([[1.0, 1.0], [3.0, 1.0], [5.0, 1.0]], dtype=np.float16)
    after = np.stack([before + np.array([1, 0], dtype=np.float16), before], axis=1)
    found = skew_of_groups([(idx[:2], before[:2], after[:2]), (idx[2:], before[2:], after[2:])], members, 0.5)
    np.testing.assert_allclose(found, [[(1 / 5.5 + 0) / 2, (1 / 11.5 + 0) / 2], [0, 0]], rtol=1e-15)
