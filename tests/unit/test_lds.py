"""The linear datamodeling score by hand-computed numbers, and what must not change it."""

import dataclasses
import json
from collections.abc import Sized

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from mucs_ray.evaluation.lds import LOSS, Measured, bootstrap, item_scores, lds, mean_over_items, subset_scores
from mucs_ray.evaluation.subsets import chosen


def one(subsets: Sized) -> np.ndarray:
    """Return one stratum for all subsets."""
    return np.zeros(len(subsets), dtype=np.int64)


def measured(predicted: np.ndarray, seen: np.ndarray, /, **others: object) -> Measured:
    values: dict[str, object] = {"predicted": {"mucs": predicted}, "seen": {"mse": seen}, "strata": one(seen),
                                 "repeated": {}, "repeated_strata": one(()), **others}  # fmt: skip
    return Measured(kind="all", **values)  # pyright: ignore[reportArgumentType]


def test_a_score_by_hand():
    """Ranks 1 2 3 4 against 1 3 2 4: 1 - 6 (0 + 1 + 1 + 0) / (4 x 15) = 0.8; with a tie 1.5 1.5 3 4: sqrt(0.9)."""
    predicted = np.asarray([[1.0, 5.0, 1.0], [2.0, 6.0, 1.0], [3.0, 7.0, 1.0], [4.0, 9.0, 1.0]])
    seen = np.asarray([[0.1, 2.0, 1.0], [0.3, 2.0, 2.0], [0.2, 3.0, 3.0], [0.9, 4.0, 4.0]])
    np.testing.assert_allclose(item_scores(predicted, seen, one(seen)), [0.8, 4.5 / np.sqrt(5 * 4.5), 0.0])


def test_an_item_that_nothing_changes_is_left_out_and_counted():
    predicted = np.asarray([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0], [4.0, 4.0]])
    seen = np.asarray([[1.0, 7.0], [3.0, 7.0], [2.0, 7.0], [4.0, 7.0]])
    np.testing.assert_array_equal(np.isnan(item_scores(predicted, seen, one(seen))), [False, True])
    found = subset_scores(measured(predicted, seen), versus="mucs", seed=1, num_draws=20)
    assert found.unchanged == {"mse": 1} and found.methods[0].scores["mse"].mean == pytest.approx(0.8)
    none = subset_scores(measured(predicted, np.ones((4, 2))), versus="mucs", seed=1, num_draws=20)
    assert none.unchanged == {"mse": 2} and none.methods[0].scores == {}


def test_weights_count_items_that_have_a_score():
    scores = np.asarray([0.5, np.nan, -0.1])
    assert mean_over_items(scores) == pytest.approx(0.2)
    assert mean_over_items(scores, np.asarray([2.0, 5.0, 1.0])) == pytest.approx(0.3)
    assert np.isnan(mean_over_items(np.asarray([np.nan])))


numbers = st.integers(0, 2**32 - 1).map(np.random.default_rng)


@given(rng=numbers, num=st.integers(4, 12))
@settings(deadline=None)
def test_a_score_is_scipys(rng: np.random.Generator, num: int):
    predicted, seen = rng.integers(0, 6, (num, 1)).astype(float), rng.standard_normal((num, 1))
    expected = spearmanr(predicted, seen).statistic if len(set(predicted[:, 0])) > 1 else 0.0
    np.testing.assert_allclose(item_scores(predicted, seen, one(seen)), [expected], atol=1e-12)


@given(rng=numbers)
@settings(deadline=None)
def test_laws_of_a_score(rng: np.random.Generator):
    predicted, seen = rng.standard_normal((9, 3)), rng.standard_normal((9, 3))
    strata = np.asarray([0, 1, 0, 1, 0, 1, 0, 1, 0])
    scores = item_scores(predicted, seen, strata)
    np.testing.assert_allclose(item_scores(predicted, np.exp(seen), strata), scores)  # only the order of f counts
    np.testing.assert_allclose(item_scores(3 * predicted + 5, seen, strata), scores)
    np.testing.assert_allclose(item_scores(-predicted, seen, strata), -scores)
    order = rng.permutation(9)
    np.testing.assert_allclose(item_scores(predicted[order], seen[order], strata[order]), scores)
    np.testing.assert_allclose(item_scores(predicted, seen + 7 * strata[:, None], strata), scores)  # what a kind shares


def test_strata_by_hand():
    """Within each stratum of two the order is right in one and wrong in the other: their products cancel out."""
    strata, predicted = np.asarray([0, 0, 1, 1]), np.asarray([[1.0], [2], [9], [8]])
    assert item_scores(predicted, np.asarray([[5.0], [6], [1], [2]]), strata) == pytest.approx(0.0)
    assert item_scores(predicted, np.asarray([[5.0], [6], [2], [1]]), strata) == pytest.approx(1.0)


@given(rng=numbers, constant=st.floats(-3, 3))
@settings(deadline=None, max_examples=20)
def test_a_linear_model_is_predicted_whatever_is_added_to_its_scores(rng: np.random.Generator, constant: float):
    """Subsets have equal sizes, so that a constant adds the same to every sum."""
    idx, block = np.arange(40), np.repeat(np.arange(8), 5)
    kept = [list(chosen(number, idx, block, size=20, seed=3)) for number in range(8)]
    scores = rng.integers(-1000, 1000, (40, 2)).astype(float)
    truth = np.stack([scores[rows].sum(axis=0) for rows in kept])
    predicted = np.stack([(scores[rows] + round(constant)).sum(axis=0) for rows in kept])
    np.testing.assert_allclose(item_scores(predicted, truth, one(truth)), 1.0)


def test_draws_are_the_same_for_all_methods_and_repeatable():
    rng = np.random.default_rng(2)
    seen = {"mse": rng.standard_normal((12, 5)), LOSS: rng.standard_normal((12, 5))}
    predicted = {"a": seen["mse"] + rng.standard_normal((12, 5)), "b": rng.standard_normal((12, 5))}
    draws = bootstrap(predicted, seen, one(seen[LOSS]), rng=np.random.default_rng(1), num_draws=120)
    alone = bootstrap({"b": predicted["b"]}, seen, one(seen[LOSS]), rng=np.random.default_rng(1), num_draws=120)
    assert all(len(values) == 120 for values in draws.values())
    np.testing.assert_array_equal(draws["b", "mse"], alone["b", "mse"])


def test_the_interval_of_an_equal_method_is_a_point_and_of_a_better_one_above_zero():
    rng = np.random.default_rng(4)
    truth = rng.standard_normal((32, 20))
    noisy = truth + 0.5 * rng.standard_normal((32, 20))
    predicted = {"same": noisy, "mucs": noisy, "random": rng.standard_normal((32, 20))}
    found = subset_scores(measured(noisy, truth, predicted=predicted), versus="mucs", seed=1, num_draws=300)
    same, ours, random = found.methods
    assert dataclasses.astuple(same.differences["mse"]) == (0, 0, 0) and ours.differences == {}
    assert ours.scores["mse"].low < ours.scores["mse"].mean < ours.scores["mse"].high
    assert random.differences["mse"].high < -0.5 and random.scores["mse"].low < 0.1


def test_the_ceiling_by_hand_and_the_best_method():
    first, again = np.asarray([[1.0], [2], [3], [4]]), np.asarray([[1.0], [3], [2], [4]])
    worse = np.asarray([[4.0], [3], [2], [1]])
    repeated = {"mse": (first, again), LOSS: (first, first)}
    every = measured(
        first,
        first,
        predicted={"bad": worse, "good": again},
        seen={"mse": first, LOSS: first},
        repeated=repeated,
        repeated_strata=one(first),
    )
    found = lds([every], versus="", seed=1, num_draws=10)
    (of_all,) = found.kinds
    assert of_all.ceiling == pytest.approx({"mse": 0.8, LOSS: 1.0}) and of_all.repeats == 4
    assert found.versus == "good" and found.names == ["mse", LOSS] and found.items == 1
    assert of_all.methods[0].differences["mse"].mean == pytest.approx(-1.8)
    assert json.loads(json.dumps(dataclasses.asdict(found), allow_nan=False))["versus"] == "good"
    few = measured(first, first, repeated={"mse": (first[:3], again[:3])}, repeated_strata=one(first[:3]))
    assert lds([few], versus="mucs", seed=1, num_draws=10).kinds[0].ceiling == {}
