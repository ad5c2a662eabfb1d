"""The statistics of the counterfactual test, by hand, by enumeration and by their laws (spec 11.2)."""

import math
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mucs_ray.evaluation.statistics import (
    Estimate,
    auc,
    between_overlap,
    cluster_bootstrap,
    hit_rate,
    mann_whitney,
    normalized_difference,
    paired_wilcoxon,
    within_overlap,
)

samples = st.lists(st.integers(-20, 20), min_size=1, max_size=12).map(np.asarray)
"""Few values, so that there are ties."""


def numbers(*values: float) -> np.ndarray:
    return np.asarray(values, dtype=np.float64)


# --- AUC and Mann-Whitney -------------------------------------------------------------------------------------------


def test_auc_by_hand_with_a_tie():
    """Of the 12 pairs: 4 above the 1, 2 and a tie for the 3, 1 above the 5."""
    assert auc(numbers(1, 3, 5), numbers(2, 3, 4, 6)) == 7.5 / 12


def test_auc_is_one_if_removal_always_changed_the_image_more():
    assert auc(numbers(0.1, 0.2), numbers(0.3, 0.9, 0.5)) == 1
    assert auc(numbers(0.3, 0.9), numbers(0.1, 0.2, 0.0)) == 0


def test_u_by_hand():
    """The other side of the same 12 pairs: 0 below the 1, 1 and a tie for the 3, 3 for the 5."""
    assert mann_whitney(numbers(1, 3, 5), numbers(2, 3, 4, 6))[0] == 4.5


@pytest.mark.parametrize("similarity", list(combinations(range(1, 8), 3)))
def test_p_is_the_share_of_all_splits_that_are_as_extreme(similarity: tuple[int, ...]):
    """3 of 7 different values are A's: 35 equally likely splits if A does nothing."""

    def u(ours: tuple[int, ...]) -> int:
        return sum(a > b for a in ours for b in set(range(1, 8)) - set(ours))

    all_u = np.asarray([u(ours) for ours in combinations(range(1, 8), 3)])
    others = numbers(*(set(range(1, 8)) - set(similarity)))
    less = np.mean(all_u <= u(similarity))
    more = np.mean(all_u >= u(similarity))
    assert mann_whitney(numbers(*similarity), others) == (u(similarity), pytest.approx(less))
    two_sided = mann_whitney(numbers(*similarity), others, "two-sided")[1]
    assert two_sided == pytest.approx(min(1, 2 * min(less, more)))


def test_p_of_equal_values_is_one():
    assert mann_whitney(np.ones(50), np.ones(40)) == (1000, 1)
    assert mann_whitney(np.ones(50), np.ones(40), "two-sided") == (1000, 1)


@given(samples, samples)
def test_auc_is_one_minus_u_over_all_pairs(a: np.ndarray, b: np.ndarray):
    assert auc(a, b) == pytest.approx(1 - mann_whitney(a, b)[0] / (len(a) * len(b)), abs=1e-12)


@given(samples, samples)
def test_auc_of_swapped_samples_is_the_rest_to_one(a: np.ndarray, b: np.ndarray):
    assert auc(a, b) + auc(b, a) == pytest.approx(1, abs=1e-12)
    assert auc(a, a) == pytest.approx(0.5, abs=1e-12)
    assert 0 <= auc(a, b) <= 1


@given(samples, samples)
def test_auc_knows_only_the_order(a: np.ndarray, b: np.ndarray):
    """Any increasing transform leaves it; a decreasing one, which a distance is, turns it round."""
    assert auc(np.exp(a / 10), np.exp(b / 10)) == auc(a, b)
    assert auc(3.0 * a**3 - 7, 3.0 * b**3 - 7) == auc(a, b)
    assert auc(-a, -b) == pytest.approx(1 - auc(a, b), abs=1e-12)


# --- size of the change ---------------------------------------------------------------------------------------------


def test_normalized_difference_by_hand():
    """Against the median 0.5: -40, 0 and -20 %; their sample standard deviation is 20."""
    actual = normalized_difference(numbers(0.3, 0.5, 0.4), numbers(0.5, 0.4, 0.8))
    assert actual == (pytest.approx(-20), pytest.approx(1.98 * 20 / math.sqrt(3)), 3)


def test_the_median_has_a_floor():
    assert normalized_difference(numbers(0.02), numbers(0.001, 0.002, 0.5)) == (pytest.approx(100), None, 1)


@pytest.mark.parametrize(
    ("similarity", "random"),
    [
        ((-0.2, -0.3), (-0.1, -0.2)),
        ((-0.2, -0.3), (0.0, 0.0)),
        ((0.1, 0.3), (-0.1, -0.2)),
    ],
    ids=["distances", "distances with a median of zero", "negative median"],
)
def test_no_relative_numbers_for_distances(similarity: tuple[float, ...], random: tuple[float, ...]):
    assert normalized_difference(numbers(*similarity), numbers(*random)) is None
    assert hit_rate(numbers(*similarity), numbers(*random)) is None


def test_hit_rate_by_hand():
    """0.94 of 1 and 0.2 of 0.4 are hits, exactly 0.95 and no change are not."""
    assert hit_rate(numbers(0.94, 0.95, 0.5, 0.2), numbers(1, 1, 0.5, 0.4)) == 0.5


def test_hit_rate_is_not_defined_if_one_random_value_is_negative():
    assert hit_rate(numbers(0.5, 0.5), numbers(-0.1, 0.9)) is None
    assert hit_rate(numbers(-0.5, 0.5), numbers(0.1, 0.9)) == 1


@pytest.mark.parametrize("signs", list(product((-1, 1), repeat=4)))
def test_wilcoxon_is_the_share_of_all_signs_that_are_as_extreme(signs: tuple[int, ...]):
    """Differences 1 to 4 with any sign, and a zero that counts for nothing: 16 equally likely cases."""
    ranks = numbers(1, 2, 3, 4)
    positive = [ranks[np.asarray(case) > 0].sum() for case in product((-1, 1), repeat=4)]
    random = numbers(10, 20, 30, 40, 50)
    similarity = random + np.append(ranks * signs, 0)
    expected = np.mean(np.asarray(positive) <= ranks[np.asarray(signs) > 0].sum())
    assert paired_wilcoxon(similarity, random) == pytest.approx(expected)


def test_wilcoxon_without_any_difference():
    assert paired_wilcoxon(numbers(0.5, 0.2), numbers(0.5, 0.2)) == 1


# --- overlap --------------------------------------------------------------------------------------------------------


def test_within_overlap_by_hand():
    """The pairs share 2, 1 and 1 of 4: 50, 25 and 25 %, with a standard deviation of 25 / sqrt(3)."""
    top = np.asarray([[0, 1, 2, 3], [5, 4, 3, 2], [3, 7, 8, 9]])
    assert within_overlap(top) == (pytest.approx(100 / 3), pytest.approx(16.5), 3)


def test_within_overlap_of_one_pair_and_of_one_item():
    assert within_overlap(np.asarray([[7, 8], [9, 7]])) == (50, None, 1)
    assert within_overlap(np.asarray([[7, 8]])) is None


def test_random_lists_overlap_by_k_over_n():
    """k = 50 of 1,000; the standard error of the mean of 780 pairs is 0.11 %."""
    rng = np.random.default_rng(3)
    actual = within_overlap(np.stack([rng.permutation(1000)[:50] for _ in range(40)]))
    assert actual is not None
    assert actual.num == 780
    assert actual.mean == pytest.approx(5, abs=0.45)
    other = np.stack([rng.permutation(1000)[:50] for _ in range(40)])
    assert between_overlap(other, other[::-1]) == pytest.approx(5, abs=2)


def test_between_overlap_by_hand():
    """Only lists of the same item are compared: they share 1 of 3, then 3 of 3 in another order."""
    assert between_overlap(np.asarray([[0, 1, 2], [3, 4, 5]]), np.asarray([[5, 2, 4], [5, 3, 4]])) == pytest.approx(
        100 * (1 / 3 + 1) / 2
    )


lists = st.integers(1, 5).flatmap(
    lambda k: st.lists(st.permutations(range(8)).map(lambda order: order[:k]), min_size=2, max_size=6).map(np.asarray)
)


@given(lists)
def test_overlaps_agree_with_sets(top: np.ndarray):
    shares = [100 * len({*a} & {*b}) / len(a) for a, b in combinations(top.tolist(), 2)]
    actual = within_overlap(top)
    assert actual is not None
    assert actual.mean == pytest.approx(np.mean(shares))
    assert 0 <= actual.mean <= 100 + 1e-9
    assert between_overlap(top, top) == pytest.approx(100)
    by_item = [100 * len({*a} & {*b}) / len(a) for a, b in zip(top.tolist(), top[::-1].tolist(), strict=True)]
    assert between_overlap(top, top[::-1]) == pytest.approx(np.mean(by_item))


def test_lists_that_are_not_lists_of_different_images():
    with pytest.raises(ValueError, match="the list of one item contains an image twice"):
        within_overlap(np.asarray([[1, 1], [2, 3]]))
    with pytest.raises(ValueError, match=r"shapes \(2, 3\) and \(2, 2\)"):
        between_overlap(np.asarray([[1, 2, 3], [4, 5, 6]]), np.asarray([[1, 2], [3, 4]]))
    with pytest.raises(ValueError, match=r"top: .* found shape \(2, 0\)"):
        within_overlap(np.empty((2, 0), dtype=np.int64))
    with pytest.raises(ValueError, match="expected lists of idx of training images"):
        within_overlap(np.asarray([[1, -1], [2, 3]]))


# --- bootstrap over seeds -------------------------------------------------------------------------------------------


def difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(a.mean() - b.mean())


def test_equal_seeds_give_no_width():
    """However different the items within a seed are: it is the seeds that are redrawn."""
    ours, theirs = numbers(0.0, 0.5, 1.0), numbers(0.25, 0.6, 3.0)
    actual = cluster_bootstrap([ours] * 4, [theirs] * 4, auc, rng=np.random.default_rng(0))
    assert actual == (pytest.approx(auc(ours, theirs)), pytest.approx(auc(ours, theirs)))


def test_the_same_seeds_are_drawn_for_both():
    """Each seed differs by exactly 1 from its random removal, whatever its own level is."""
    levels = [0.0, 100.0, 1000.0]
    ours, theirs = [numbers(level, level + 2) for level in levels], [numbers(level - 1, level + 1) for level in levels]
    actual = cluster_bootstrap(ours, theirs, difference, rng=np.random.default_rng(0))
    assert actual == (pytest.approx(1), pytest.approx(1))


def test_two_seeds_by_hand():
    """Means 0, 1/2 and 1 with probabilities 1/4, 1/2 and 1/4: the interval holds all of them."""
    actual = cluster_bootstrap(
        [numbers(0, 0), numbers(1, 1)], [numbers(0)] * 2, difference, rng=np.random.default_rng(0)
    )
    assert actual == (0, 1)


def test_bootstrap_is_a_plain_loop_over_the_same_draws():
    rng = np.random.default_rng(5)
    ours, theirs = ([rng.normal(size=3 + s) + s for s in range(5)] for _ in range(2))
    draws = np.random.default_rng(9).integers(5, size=(300, 5))
    values = [
        difference(np.concatenate([ours[s] for s in draw]), np.concatenate([theirs[s] for s in draw])) for draw in draws
    ]
    actual = cluster_bootstrap(ours, theirs, difference, 300, rng=np.random.default_rng(9))
    assert actual == (pytest.approx(np.percentile(values, 2.5)), pytest.approx(np.percentile(values, 97.5)))
    assert actual[0] < difference(np.concatenate(ours), np.concatenate(theirs)) < actual[1]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_bootstrap_belongs_to_its_generator(seed: int):
    groups = [numbers(s, s * s, 1) for s in range(6)], [numbers(5, s) for s in range(6)]
    once, again = (cluster_bootstrap(*groups, difference, 50, rng=np.random.default_rng(seed)) for _ in range(2))
    assert once == again


def test_bootstrap_needs_two_seeds_and_the_same_ones():
    rng = np.random.default_rng(0)
    assert cluster_bootstrap([numbers(1, 2)], [numbers(3)], auc, rng=rng) is None
    with pytest.raises(ValueError, match="groups_a has 2 seeds, groups_b has 1"):
        cluster_bootstrap([numbers(1), numbers(2)], [numbers(3)], auc, rng=rng)


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("statistic", [auc, normalized_difference, hit_rate, paired_wilcoxon])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_named(statistic, value: float):
    with pytest.raises(ValueError, match="similarity: item 1 is"):
        statistic(numbers(0.5, value), numbers(0.5, 0.5))
    with pytest.raises(ValueError, match="random: item 0 is"):
        statistic(numbers(0.5, 0.5), numbers(value, 0.5))


@pytest.mark.parametrize("statistic", [auc, normalized_difference, hit_rate, paired_wilcoxon])
def test_nothing_to_compare_with(statistic):
    with pytest.raises(ValueError, match=r"random: .* found shape \(0,\)"):
        statistic(numbers(0.5), numbers())


def test_mann_whitney_names_what_is_wrong():
    with pytest.raises(ValueError, match="other: item 0 is nan"):
        mann_whitney(numbers(0.5), numbers(math.nan))
    with pytest.raises(ValueError, match="similarity: expected a list of numbers"):
        mann_whitney(numbers(), numbers(0.5))


@pytest.mark.parametrize("statistic", [hit_rate, paired_wilcoxon])
def test_pairs_need_the_same_items(statistic):
    with pytest.raises(ValueError, match="similarity has 2 items, random has 3"):
        statistic(numbers(1, 2), numbers(1, 2, 3))


def test_estimates_are_plain_numbers():
    """Estimates go into JSON as they are."""
    actual = normalized_difference(np.float32([0.3, 0.5]), np.float32([0.5, 0.5]))
    assert isinstance(actual, Estimate)
    assert [type(value) for value in actual] == [float, float, int]
