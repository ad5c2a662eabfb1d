"""Ensembles have ranks as computed by hand, an order that is exactly that of R, and weights learned from AUCs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mucs_ray.attribution.ensemble import WEIGHTS, ensemble_scores, learned_weights
from mucs_ray.attribution.ranking import Ranking, ranks
from mucs_ray.errors import InputError

NAME = "rank/item=0"


def score_of(*values: float) -> np.ndarray:
    return np.asarray(values, dtype=np.float32)


def combined(scores: dict[str, np.ndarray], weights: dict[str, float], idx: np.ndarray | None = None) -> np.ndarray:
    size = len(next(iter(scores.values())))
    return ensemble_scores(scores, weights, np.arange(size) if idx is None else idx, seed=1, name=NAME)


def order(scores: np.ndarray, *, name: str = NAME) -> list[int]:
    ranking = Ranking.empty(len(scores), seed=1, name=name)
    return ranking.add(np.arange(len(scores)), scores).idx.tolist()


def test_by_hand():
    """Ranks are 1 2 3 4 and 3 1 2 4: weights 2 and 1 give R = 5 5 8 12, weights 1 and 2 give R = 7 4 7 12."""
    scores = {"a": score_of(9, 8, 7, 6), "b": score_of(0.2, 0.9, 0.3, 0.1)}
    np.testing.assert_array_equal(combined(scores, {"a": 2.0, "b": 1.0}), score_of(1, 1, 1 / 2, 1 / 3))
    np.testing.assert_array_equal(combined(scores, {"a": 1.0, "b": 2.0}), score_of(1 / 2, 1, 1 / 2, 1 / 3))


def test_methods_without_weight_do_not_count():
    scores = {"a": score_of(3, 2, 1), "b": score_of(1, 2, 3)}
    np.testing.assert_array_equal(combined(scores, {"b": 1.0}), score_of(1 / 3, 1 / 2, 1))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from([-0.5, 0.0, 0.25, 1.0]), min_size=1, max_size=30))
def test_the_paper_s_r_is_mucs_itself(scores: list[float]):
    """The list is the same, ties included (spec 18)."""
    of_mucs = score_of(*scores)
    assert order(combined({"mucs": of_mucs}, WEIGHTS["R"])) == order(of_mucs)


def test_the_order_is_that_of_r_with_large_sets_and_odd_weights():
    """R of the size of COCO is exact in whole numbers, which here are Python's; fp32 would merge neighbours."""
    rng = np.random.default_rng(0)
    num = 118_287
    idx, scores = rng.permutation(num), {name: rng.random(num, dtype=np.float32) for name in "abcdef"}
    weights = {"a": 10.0, "b": 7.123, "c": 6.5, "d": 4.999, "e": 0.001, "f": 9.377}
    actual = combined(scores, weights, idx)
    ranked = {name: ranks(each, idx, 1, NAME) for name, each in scores.items()}
    exact = np.sum([round(1000 * weight) * ranked[name] for name, weight in weights.items()], axis=0)
    assert len(np.unique(exact.astype(np.float32))) < len(np.unique(exact)) == len(np.unique(actual))
    by_r = np.argsort(exact, kind="stable")
    assert (np.diff(actual[by_r]) <= 0).all()
    np.testing.assert_array_equal(np.diff(actual[by_r]) == 0, np.diff(exact[by_r]) == 0)
    assert actual.dtype == np.float32


def test_places_are_different_numbers_in_single_precision():
    places = np.arange(1, 2**22, dtype=np.int64)
    assert (np.diff((1 / places).astype(np.float32)) < 0).all()


def test_equal_sums_stay_equal_with_fractions():
    """0.1 + 0.2 is not 0.3 in floating point: ranks (1, 1, 2) and (2, 2, 1) with weights 0.1, 0.2 and 0.3 are equal."""
    scores = {"a": score_of(2, 1), "b": score_of(2, 1), "c": score_of(1, 2)}
    weights = {"a": 0.1, "b": 0.2, "c": 0.3}
    assert 0.1 * 1 + 0.2 * 1 + 0.3 * 2 != 0.1 * 2 + 0.2 * 2 + 0.3 * 1
    np.testing.assert_array_equal(combined(scores, weights), score_of(1, 1))


def test_equal_sums_are_ordered_at_random():
    """Reversed lists make all images equal; which is first then depends on the item."""
    scores = {"a": np.arange(8, dtype=np.float32), "b": -np.arange(8, dtype=np.float32)}
    equal = combined(scores, {"a": 1.0, "b": 1.0})
    assert (equal == 1).all()
    assert len({order(equal, name=f"rank/item={n}")[0] for n in range(50)}) > 4


def test_rows_may_come_in_any_order():
    rng = np.random.default_rng(3)
    scores = {name: rng.integers(0, 4, 40).astype(np.float32) for name in "ab"}
    shuffled = rng.permutation(40)
    whole = combined(scores, {"a": 3.0, "b": 2.0})
    other = combined({name: each[shuffled] for name, each in scores.items()}, {"a": 3.0, "b": 2.0}, shuffled)
    np.testing.assert_array_equal(other, whole[shuffled])


def test_weights_of_the_paper():
    """Row sums and members are those of spec 10: A is everything, C is A without MUCS, D is B without it."""
    assert {name: sum(weights.values()) for name, weights in WEIGHTS.items()} == {
        "R": 10, "A": 38, "B": 23, "C": 28, "D": 13,
    }  # fmt: skip
    without = {"C": "A", "D": "B"}
    for name, whole in without.items():
        assert WEIGHTS[name] == {m: w for m, w in WEIGHTS[whole].items() if m != "mucs"}
    assert WEIGHTS["A"] == {
        "mucs": 10, "das": 7, "dtrak": 6, "dino": 5, "clip": 5, "condition": 3, "forward-inf": 2,
    }  # fmt: skip


def test_learned_weights_by_hand():
    """AUCs are 0.4, 0.2 and 0.1 above one half; at and below it there is no weight."""
    actual = learned_weights({"mucs": 0.9, "das": 0.7, "clip": 0.6, "random": 0.5, "abu": 0.42})
    assert actual == {"mucs": 10.0, "das": 5.0, "clip": 2.5}


def test_a_hopeless_weight_is_no_member():
    assert learned_weights({"mucs": 0.9, "abu": 0.50001}) == {"mucs": 10.0}


@pytest.mark.parametrize("aucs", [{}, {"abu": 0.5}, {"abu": 0.31, "clip": 0.5}])
def test_without_a_method_that_works_there_is_one_clear_line(aucs: dict[str, float]):
    with pytest.raises(InputError, match=r"^no weights can be learned: an AUC above 0.5 is expected, found .*$"):
        learned_weights(aucs)
