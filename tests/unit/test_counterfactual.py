"""The removal of training images, and the reference method."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mucs_ray.attribution.random import random_scores
from mucs_ray.errors import InputError
from mucs_ray.evaluation.statistics import within_overlap
from mucs_ray.evaluation.unions import drawn_in_turn, expected_union, union, unrelated_pairs

LISTS = st.lists(st.permutations(range(12)), min_size=1, max_size=5)


def arrays(lists: list[list[int]]) -> list[np.ndarray]:
    return [np.asarray(each, dtype=np.int64) for each in lists]


def test_union_by_hand():
    assert union(arrays([[3, 1], [1, 7], [7, 3]])) == {1, 3, 7}


def test_drawn_in_turn_by_hand():
    """The places are (3, 5), then (1, 3), then (9, 8): the second 3 adds nothing."""
    lists = arrays([[3, 1, 9], [5, 3, 8]])
    assert [drawn_in_turn(lists, size) for size in range(6)] == [
        frozenset(), {3}, {3, 5}, {3, 5, 1}, {3, 5, 1, 9}, {3, 5, 1, 9, 8},
    ]  # fmt: skip


def test_lists_that_are_used_up_are_told():
    with pytest.raises(InputError, match=r"remove\.size is 4, but there are only 3 training images"):
        drawn_in_turn(arrays([[1, 2], [2, 3]]), 4)


@given(LISTS, st.integers(0, 12), st.integers(0, 12))
def test_more_removed_is_a_superset(lists: list[list[int]], one: int, other: int):
    fewer, more = (drawn_in_turn(arrays(lists), size) for size in sorted((one, other)))
    assert len(fewer) == min(one, other) and fewer <= more


@given(LISTS, st.integers(1, 12))
def test_as_many_as_the_union_is_the_union(lists: list[list[int]], k: int):
    """Matching a method to its own size changes nothing."""
    whole = union([each[:k] for each in arrays(lists)])
    assert drawn_in_turn(arrays(lists), len(whole)) == whole


def test_expected_union_is_a_third_in_the_paper():
    """20 lists of 2 % have 33.2 % of the images together, not 40 % (spec 11.3)."""
    assert expected_union(50_000, 1000, 20) == pytest.approx(0.332 * 50_000, rel=2e-3)
    assert expected_union(100, 100, 3) == 100 and expected_union(100, 7, 1) == 7


def test_random_lists_have_that_union_and_overlap_by_k():
    scores = random_scores(np.arange(5000), seed=3, num_items=20)
    top = np.argsort(-scores, axis=0)[:100].T
    assert len(union(list(top))) == pytest.approx(expected_union(5000, 100, 20), rel=0.03)
    actual = within_overlap(top)
    assert actual is not None and actual[0] == pytest.approx(2.0, abs=0.3)


def test_random_scores_are_uniform_and_independent():
    scores = random_scores(np.arange(20_000), seed=1, num_items=3)
    assert scores.dtype == np.float32 and scores.min() >= 0 and scores.max() < 1
    counts = np.stack([np.histogram(column, 10, (0, 1))[0] for column in scores.T])
    assert (abs(counts - 2000) < 250).all()
    assert (abs(np.corrcoef(scores.T) - np.eye(3)) < 0.03).all()
    assert abs(np.corrcoef(scores[:-1, 0], scores[1:, 0])[0, 1]) < 0.03


@given(st.permutations(range(30)), st.integers(0, 30))
def test_random_scores_do_not_depend_on_the_order_or_the_cut(order: list[int], cut: int):
    idx = np.asarray(order, dtype=np.int64)
    whole = random_scores(np.arange(30), seed=5, num_items=2)
    parts = [random_scores(part, seed=5, num_items=2) for part in (idx[:cut], idx[cut:]) if len(part)]
    assert np.array_equal(np.concatenate(parts), whole[idx])
    assert not np.array_equal(random_scores(idx, seed=6, num_items=2), whole[idx])


def test_unrelated_pairs_are_ten_rolls():
    pairs = unrelated_pairs(20, 10)
    assert len(set(pairs)) == 200 and all((other - one) % 20 in range(1, 11) for one, other in pairs)
    assert unrelated_pairs(3, 10) == [(0, 1), (1, 2), (2, 0)]
    assert unrelated_pairs(1, 10) == []
