"""Metrics of group rankings against the reference values, and against numbers computed by hand."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fixture_files import document
from mucs_ray.errors import InputError, RunFailed
from mucs_ray.evaluation import group_metrics as metrics
from mucs_ray.evaluation.group_agreement import agreement, differences, intervals_of_means
from mucs_ray.evaluation.group_metrics import METRICS

CASES: list[dict[str, Any]] = document("guda_u/ranking_cifar10")  # type: ignore[assignment]
NAMES = {
    "ndcg@3": "NDCG@3 (exp)",
    "ndcg@5": "NDCG@5 (exp)",
    "ndcg@10": "NDCG@10 (exp)",
    "ndcg@3_shifted": "NDCG@3 (exp-value)",
    "mrr": "MRR",
    "wpra_top3": "WPRA@3 (strict)",
    "wpra_all": "WPRA (strict)",
    "calib_mse": "calibrated MSE",
    "calib_mae": "calibrated MAE",
    "rbo": "RBO",
    "top1_overlap": "top-1",
    "top3_overlap": "top-3 overlap",
    "top5_overlap": "top-5 overlap",
    "spearman": "Spearman",
    "pearson": "Pearson",
    "kendall": "Kendall tau-b",
}
BY_NAME = {metric.name: metric for metric in METRICS}


def tables(case: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    return np.array(case["gold"]), np.array(case["predicted"])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_all_metrics_of_every_query_are_the_reference_ones(case: dict[str, Any]):
    values = agreement(*tables(case), seed=1).values
    for query, expected in enumerate(case["per_image"]):
        assert expected.keys() == NAMES.keys()
        for theirs, ours in NAMES.items():
            number = math.nan if expected[theirs] is None else expected[theirs]
            assert values[ours][query] == pytest.approx(number, rel=1e-9, abs=1e-9, nan_ok=True), (ours, query)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_means_medians_and_deviations_are_the_reference_ones(case: dict[str, Any]):
    """The reference deviation is of n degrees of freedom, ours of n - 1; it leaves no undefined value out."""
    result = agreement(*tables(case), seed=1)
    summaries = {summary.metric: summary for summary in result.summaries}
    for theirs, ours in NAMES.items():
        expected, found = case["aggregate"], summaries[ours]
        if expected[f"{theirs}_mean"] is None:
            assert found.undefined == sum(image[theirs] is None for image in case["per_image"]) == 1
            continue
        assert found.mean == pytest.approx(expected[f"{theirs}_mean"], rel=1e-9, abs=1e-9)
        assert found.median == pytest.approx(expected[f"{theirs}_median"], rel=1e-9, abs=1e-9)
        factor = math.sqrt(found.num / (found.num - 1))
        assert found.sd == pytest.approx(expected[f"{theirs}_std"] * factor, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("depth", [3, 5])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_the_numbers_of_the_other_script_are_the_reference_ones(case: dict[str, Any], depth: int):
    """It takes NDCG with the scores as gains, and leaves undefined correlations out."""
    expected = case["sklearn_script"][str(depth)]
    names = {
        "ndcg@k": f"NDCG@{depth} (value)",
        "spearman_value": "Spearman",
        "kendall_value": "Kendall tau-b",
        "top1": "top-1",
        "topk_overlap": f"top-{depth} overlap",
    }
    means = {summary.metric: summary.mean for summary in agreement(*tables(case), seed=1).summaries}
    assert {theirs: means[ours] for theirs, ours in names.items()} == pytest.approx(
        {theirs: expected[theirs] for theirs in names}, rel=1e-9
    )


def test_linear_gain_by_hand():
    """Three groups in the order 2, 0, 1 by the reference have the gains 2, 1, 3 (best 3)."""
    gold, predicted = np.array([[2.0, 1.0, 3.0]]), np.array([[3.0, 2.0, 1.0]])
    reached = 2 + 1 / math.log2(3) + 3 / 2
    best = 3 + 2 / math.log2(3) + 1 / 2
    assert metrics.ndcg(gold, predicted, 3, "linear")[0] == pytest.approx(reached / best, rel=1e-15)
    assert metrics.ndcg(gold, predicted, 1, "linear")[0] == pytest.approx(2 / 3)


def test_predicted_ties_by_hand():
    """Pairs (0, 1), (0, 2), (1, 2) weigh 1, 3 and 2; the first is tied, the second right, the third wrong."""
    gold, predicted = np.array([[3.0, 2.0, 0.0]]), np.array([[1.0, 1.0, 0.5]])
    predicted[0, 2], both = 0.5, metrics.wpra
    assert both(gold, predicted, 3, "strict")[0] == pytest.approx(5 / 6)
    assert both(gold, predicted, 3, "skip")[0] == pytest.approx(1.0)
    wrong = np.array([[1.0, 0.2, 0.5]])
    assert both(gold, wrong, 3, "skip")[0] == pytest.approx(4 / 6)
    assert both(gold, wrong, 1, "skip")[0] == pytest.approx(1.0)  # pairs with group 0 only
    assert np.isnan(both(np.ones((1, 3)), predicted, 3, "strict")[0])  # the reference tells no pair apart


def test_tied_scores_share_the_gain_of_all_their_orders():
    """Of two tied groups with the gains 4 and 0, the first place has a gain of 2 on average."""
    found = metrics.ndcg(np.array([[4.0, 0.0, 1.0]]), np.array([[7.0, 7.0, 1.0]]), 1, "value")
    assert found[0] == pytest.approx(2 / 4)


def test_a_large_score_does_not_overflow():
    gold = np.array([[2000.0, 1999.0, -1000.0]])
    assert metrics.ndcg(gold, gold, 3, "exp-value")[0] == 1.0
    assert metrics.ndcg(gold, gold[:, [1, 0, 2]], 1, "exp-value")[0] == pytest.approx(0.5)


@settings(deadline=None)
@given(st.integers(2, 20), st.integers(0, 1000))
def test_the_same_order_is_best_and_the_reversed_one_has_tau_minus_one(k: int, seed: int):
    gold = np.random.default_rng(seed).permutation(k)[None].astype(float)
    values = agreement(gold, 3 * gold + 1, seed=1).values
    for name in ("top-1", "MRR", "NDCG@3 (exp)", "NDCG@3 (linear)", "NDCG@3 (value)", "WPRA (strict)", "Kendall tau-b"):
        assert values[name][0] == pytest.approx(1.0), name
    assert values["RBO"][0] == pytest.approx(1 - 0.9**k) and values["RBO / maximum"][0] == pytest.approx(1)
    assert metrics.correlation(gold, -gold, "kendall")[0] == pytest.approx(-1)
    assert values["calibrated MSE"][0] == pytest.approx(0, abs=1e-18)


def test_one_fit_for_all_queries_by_hand():
    """g = s in one query and g = s + 2 in the other: the best single line leaves residuals of 1."""
    predicted = np.array([[0.0, 1.0], [0.0, 1.0]])
    gold = predicted + np.array([[0.0], [2.0]])
    assert metrics.calibrated_mse(gold, predicted).tolist() == [0, 0]
    assert metrics.calibrated_mse(gold, predicted, one_fit=True).tolist() == [1, 1]
    assert metrics.calibrated_mae(gold, predicted, one_fit=True).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("k", "expected"),
    [
        (10, {"top-1": 0.100, "MRR": 0.293, "NDCG@3 (exp)": 0.294, "NDCG@5 (exp)": 0.386, "NDCG@10 (exp)": 0.588}),
        (16, {"top-1": 0.063, "MRR": 0.211, "NDCG@3 (linear)": 0.558, "NDCG@5 (linear)": 0.587, "RBO": 0.324}),
        (10, {"RBO": 0.303}),
        (16, {"NDCG@10 (linear)": 0.675}),
    ],
)
def test_chance_levels_are_the_published_ones(k: int, expected: dict[str, float]):
    for name, level in expected.items():
        chance = BY_NAME[name].chance
        assert chance is not None and chance(k) == pytest.approx(level, abs=6e-4)


def test_chance_levels_are_what_random_orders_reach():
    stream = np.random.default_rng(1)
    gold, predicted = (stream.standard_normal((1000, 6)) for _ in range(2))
    result = agreement(gold, predicted, seed=1)
    for summary in result.summaries:
        if summary.chance is not None and summary.sd is not None:
            assert abs(summary.mean - summary.chance) < 4 * summary.sd / math.sqrt(1000), summary.metric


def test_a_group_without_a_model_is_absent_and_not_zero():
    """The middle group would be the first in both tables if it had the score 0."""
    gold, predicted = np.array([[-2.0, np.nan, -1.0], [-1.0, np.nan, -2.0]]), np.array([[-2.0, 0.0, -1.0]] * 2)
    result = agreement(gold, predicted, seed=1)
    assert (result.absent, result.num_groups) == ((1,), 2)
    assert result.values["top-1"].tolist() == [1, 0]


def test_tables_that_cannot_be_compared_are_one_line():
    with pytest.raises(InputError, match=r"same queries and groups, found \(1, 3\) and \(1, 2\)"):
        agreement(np.ones((1, 3)), np.ones((1, 2)), seed=1)
    with pytest.raises(InputError, match="1 of 2 groups have a score and a reference"):
        agreement(np.array([[1.0, np.nan]]), np.ones((1, 2)), seed=1)
    for bad in (np.inf, np.nan):  # a group without a model has no score of any query
        with pytest.raises(RunFailed, match="the group score of query idx=1 is not finite"):
            agreement(np.ones((2, 2)), np.array([[1.0, 2.0], [bad, 1.0]]), seed=1)


def interval(values: np.ndarray, seed: int = 1) -> tuple[float, float] | None:
    return intervals_of_means(values[:, None], seed)[0]


def test_the_interval_is_that_of_the_mean():
    values = np.random.default_rng(3).standard_normal(400)
    low, high = interval(values) or (0, 0)
    half_width = 1.96 * values.std() / 20
    assert (high - low) / 2 == pytest.approx(half_width, rel=0.1)
    assert (high + low) / 2 == pytest.approx(values.mean(), abs=half_width / 10)
    assert interval(values) == (low, high) != interval(values, seed=2)
    assert interval(values[:1]) is None
    with_undefined = np.concatenate([values, [np.nan] * 400])
    assert interval(with_undefined) == pytest.approx((low, high), abs=half_width / 5)


def test_paired_differences_see_what_separate_intervals_do_not():
    """The second method is wrong about one more query of ten; queries differ much more than that."""
    stream = np.random.default_rng(5)
    gold = stream.standard_normal((200, 5))
    first = gold + stream.standard_normal((200, 5)) * np.linspace(0.1, 5, 200)[:, None]
    second = first + 0.3 * stream.standard_normal((200, 5))
    one, other = agreement(gold, first, seed=1), agreement(gold, second, seed=1)
    pearson = next(d for d in differences(one, other, seed=1) if d.metric == "Pearson")
    expected = one.values["Pearson"] - other.values["Pearson"]
    assert pearson.mean == pytest.approx(expected.mean()) and pearson.num == 200
    assert pearson.interval is not None
    assert pearson.interval[1] - pearson.interval[0] == pytest.approx(4 * 0.98 * expected.std() / 200**0.5, rel=0.15)
    assert all(d.mean == 0 and d.interval == (0, 0) for d in differences(one, one, seed=1))
    with pytest.raises(InputError, match="different groups"):
        differences(one, agreement(gold[:, :4], first[:, :4], seed=1), seed=1)
    with pytest.raises(InputError, match="the same queries, found 200 and 100"):
        differences(one, agreement(gold[:100], first[:100], seed=1), seed=1)
