"""The top-k has the right size, its merging keeps its laws, and equals are ordered at random (spec 1, 7.3)."""

from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mucs_ray.attribution.ranking import Ranking, mutual_ranks, ranks, tie_break, top_k
from mucs_ray.errors import RunFailed

K = 5
scored = st.lists(st.sampled_from([-0.5, 0.0, 0.25, 1.0]), max_size=24)
"""Few values, so that there are ties."""


def empty(name: str = "rank/item=0", *, k: int = K, seed: int = 1) -> Ranking:
    return Ranking.empty(k, seed=seed, name=name)


def ranked(idx: list[int], score: list[float], start: Ranking | None = None) -> Ranking:
    return (start or empty()).add(np.asarray(idx, dtype=np.int64), np.asarray(score, dtype=np.float32))


def pairs(ranking: Ranking) -> list[tuple[int, float]]:
    return list(zip(ranking.idx.tolist(), ranking.score.tolist(), strict=True))


@pytest.mark.parametrize(
    ("images", "percent", "k"),
    [(50_000, 2.0, 1000), (118_287, 2.0, 2366), (49_900, 2.0, 998), (60, 10.0, 10), (1, 2.0, 1), (50_000, 0.5, 250)],
)
def test_top_k_of_the_paper(images: int, percent: float, k: int):
    assert top_k(images, percent) == k


def test_highest_first_by_hand():
    actual = ranked([10, 11, 12, 13, 14, 15, 16], [0.1, -0.9, 0.7, 0.3, -0.2, 0.9, 0.0])
    assert actual.idx.tolist() == [15, 12, 13, 10, 16]
    np.testing.assert_array_equal(actual.score, np.float32([0.9, 0.7, 0.3, 0.1, 0.0]))


@settings(deadline=None)
@given(scored, st.randoms(use_true_random=False), st.integers(0, 24), st.integers(0, 24))
def test_merging_is_ranking_everything_whatever_the_cut_and_the_order(
    scores: list[float], random: Random, a: int, b: int
):
    """Merging is associative and commutative, and the empty ranking is neutral; ties are included."""
    everything = list(enumerate(scores))
    hashes = dict(enumerate(tie_break(np.arange(len(scores)), 1, "rank/item=0").tolist()))
    expected = sorted(everything, key=lambda pair: (-pair[1], hashes[pair[0]]))[:K]
    random.shuffle(everything)
    low, high = sorted((a, b))
    first, second, third = (
        ranked([idx for idx, _ in part], [score for _, score in part])
        for part in (everything[:low], everything[low:high], everything[high:])
    )
    for merged in (
        first.merge(second).merge(third),
        first.merge(second.merge(third)),
        third.merge(second).merge(first),
        second.merge(empty()).merge(third.merge(first)),
    ):
        assert pairs(merged) == expected


def test_ties_are_broken_at_random_and_not_by_idx():
    """Of 40 equal images each comes first about equally often over 2,000 names (chi-squared, 39 degrees of freedom)."""
    idx = np.arange(40)
    first = [int(ranked(idx, [0.5] * 40, empty(f"item={name}", k=1)).idx[0]) for name in range(2000)]
    counts = np.bincount(first, minlength=40)
    chi_squared = ((counts - 50) ** 2 / 50).sum()
    assert 13 < chi_squared < 82  # outside with probability 1e-4
    low_before_high = np.mean(np.asarray(first) < 20)
    assert abs(low_before_high - 0.5) < 4 * 0.5 / np.sqrt(2000)


def test_the_order_among_ties_is_named():
    """The order is the same for a name and a seed, and another for another item or another seed."""
    idx, equal = list(range(100)), [0.0] * 100
    orders = {
        tuple(ranked(idx, equal, empty(name, seed=seed)).idx.tolist())
        for name, seed in (("item=0", 1), ("item=1", 1), ("item=0", 2))
    }
    assert len(orders) == 3
    assert tuple(ranked(idx[::-1], equal, empty("item=0")).idx.tolist()) in orders


def test_the_hash_has_no_collisions_among_a_million():
    """Two equal hashes would leave the order to the sort, and so to who came first."""
    hashes = tie_break(np.arange(10**6), 1, "rank/item=0")
    assert len(np.unique(hashes)) == 10**6
    assert hashes.dtype == np.uint64


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_score_that_is_not_finite_is_named(value: float):
    with pytest.raises(RunFailed, match="training image idx=31 is not finite"):
        ranked([30, 31, 32], [0.1, value, 0.2])


def test_fewer_images_than_k_are_all_kept():
    assert pairs(ranked([4, 2], [0.25, 0.5])) == [(2, 0.5), (4, 0.25)]
    assert pairs(empty()) == []


def ranked_all(scores: list[float], idx: list[int] | None = None, *, name: str = "rank/item=0") -> list[int]:
    numbers = np.arange(len(scores)) if idx is None else np.asarray(idx, dtype=np.int64)
    return ranks(np.asarray(scores, dtype=np.float32), numbers, 1, name).tolist()


def test_ranks_by_hand():
    assert ranked_all([0.1, -0.9, 0.7, 0.3]) == [3, 4, 1, 2]


@settings(deadline=None)
@given(scored, st.randoms(use_true_random=False))
def test_ranks_are_the_places_in_the_whole_ranking_whatever_the_order_of_rows(scores: list[float], random: Random):
    """Each of 1..N comes once, ties included."""
    actual = ranked_all(scores)
    assert sorted(actual) == list(range(1, len(scores) + 1))
    whole = ranked(list(range(len(scores))), scores, empty(k=max(1, len(scores))))
    assert [actual[idx] for idx in whole.idx] == list(range(1, len(scores) + 1))
    rows = list(range(len(scores)))
    random.shuffle(rows)
    assert ranked_all([scores[row] for row in rows], rows) == [actual[row] for row in rows]


def test_ranks_refuse_what_is_not_finite():
    with pytest.raises(RunFailed, match="training image idx=31 is not finite"):
        ranked_all([0.1, float("nan")], [30, 31])


def mutual(columns: list[list[float]], idx: list[int] | None = None) -> np.ndarray:
    """Return mutual ranks of scores, which are given with a line for each item."""
    scores = np.asarray(columns, dtype=np.float32).T
    numbers = np.arange(len(scores)) if idx is None else np.asarray(idx, dtype=np.int64)
    return mutual_ranks(scores, numbers, 1, [f"rank/item={number}" for number in range(len(columns))])


def test_mutual_ranks_by_hand():
    """The images' ranks are 1 2 3 and 1 3 2, the items' ranks for them 1.5 1.5, 1 2, 2 1. Scales do not compare."""
    actual = mutual([[9.0, 8.0, 7.0], [0.03, 0.01, 0.02]])
    expected = -np.sqrt([[1 * 1.5, 1 * 1.5], [2 * 1, 3 * 2], [3 * 2, 2 * 1]])
    np.testing.assert_allclose(actual, expected, rtol=1e-6)
    assert actual.dtype == np.float32


def test_with_one_item_mutual_ranks_keep_the_order():
    actual = mutual([[0.1, -0.9, 0.7, 0.3]])[:, 0]
    np.testing.assert_allclose(actual, -np.sqrt([3, 4, 1, 2]), rtol=1e-6)


@settings(deadline=None, max_examples=50)
@given(st.integers(4, 8), st.integers(0, 2**16))
def test_a_hub_that_is_first_for_every_item_comes_down(num_items: int, seed: int):
    """It ends below the image that is second for one item and low for the others, for every item alike."""
    num_images = 4 * num_items
    scores = np.random.default_rng(seed).random((num_items, num_images)) * 0.1
    hub, own = 0, np.arange(1, num_items + 1)
    scores[:, own] = -0.5
    scores[np.arange(num_items), own] = 0.5
    scores[:, hub] = 1.0
    actual = mutual(scores.tolist())
    np.testing.assert_allclose(actual[hub], -np.sqrt((num_items + 1) / 2), rtol=1e-6)
    assert (actual.argmax(axis=0) == own).all()


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=9, max_size=9), min_size=1, max_size=4), st.data())
def test_mutual_ranks_go_with_the_image_and_the_item(columns: list[list[float]], data: st.DataObject):
    """Rows in any order give the same scores; a monotone change of an item's scores changes nothing."""
    whole = mutual(columns)
    rows = data.draw(st.permutations(range(9)))
    np.testing.assert_array_equal(mutual([[column[row] for row in rows] for column in columns], rows), whole[rows])
    stretched = [[100 * value + 3 for value in column] if n == 0 else column for n, column in enumerate(columns)]
    np.testing.assert_array_equal(mutual(stretched), whole)


def test_mutual_ranks_differ_in_single_precision():
    """Products of COCO's ranks with 20 items' half ranks are exact near the top, up to 2^21."""
    products = np.arange(2, 2**22) / 2
    assert (np.diff(np.sqrt(products).astype(np.float32)) > 0).all()
