"""The analysis pools over seeds and methods, and refuses outcomes that are not comparable (spec 11.2)."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest

from mucs_ray.evaluation import statistics
from mucs_ray.evaluation.analysis import Analysis, Best, Between, Control, Level, Overlap, analyse
from mucs_ray.evaluation.outcome import MethodOutcome, Unrelated

NO_CONTROLS = np.empty(0)


def outcome(
    method: str,
    *similarity: float,
    seed: int = 1,
    metric: str = "ssim",
    controls: Sequence[float] = (),
    top: Sequence[Sequence[int]] | None = None,
    **facts: Any,
) -> MethodOutcome:
    """Return an outcome; by default the items' lists are (0, 1), (10, 11), ..., without overlap."""
    lists = [[10 * item, 10 * item + 1] for item in range(len(similarity))] if top is None else top
    values: dict[str, Any] = {"num_images": 1000, "removed": 40, "seconds_an_item": 1.0} | facts
    return MethodOutcome(
        seed=seed,
        method=method,
        top=np.asarray(lists, dtype=np.int64),
        similarity={metric: np.asarray(similarity)},
        controls={metric: np.asarray(controls, dtype=np.float64)},
        **values,
    )


def with_metrics(base: MethodOutcome, similarity: Mapping[str, Sequence[float]]) -> MethodOutcome:
    return replace(
        base,
        similarity={metric: np.asarray(values) for metric, values in similarity.items()},
        controls=dict.fromkeys(similarity, NO_CONTROLS),
    )


def two_seeds() -> list[MethodOutcome]:
    """Return outcomes out of order; the mucs items of seed 2 are all below random's, those of seed 1 are mixed."""
    return [
        outcome("mucs", 0.1, 0.2, 0.3, seed=2, removed=30, seconds_an_item=3.0),
        outcome("random", 0.5, 0.7, 0.9, seed=1),
        outcome("mucs", 0.6, 0.6, 0.8, seed=1, removed=20),
        outcome("random", 0.4, 0.6, 0.8, seed=2, removed=50),
    ]


def test_items_are_pooled_over_the_seeds():
    """Of the 36 pairs: 18 above the 0.1 to 0.3, 3 and a tie for each 0.6, a tie and one above for the 0.8."""
    actual = analyse(two_seeds(), [])
    mucs = actual.of("mucs")
    assert (actual.seeds, actual.num_items, actual.num_images, actual.top_k) == ((1, 2), 6, 1000, 2)
    assert (mucs.removed, mucs.removed_share, mucs.seconds_an_item) == ((20, 30), 0.025, 2.0)
    ssim = mucs.metrics["ssim"]
    assert (ssim.n, ssim.n_random) == (6, 6)
    assert ssim.auc == pytest.approx((18 + 3.5 + 3.5 + 1.5) / 36)
    assert ssim.u == pytest.approx(36 - 26.5)
    assert ssim.p == statistics.mann_whitney(np.float64([6, 6, 8, 1, 2, 3]), np.float64([5, 7, 9, 4, 6, 8]))[1]
    assert ssim.mean == pytest.approx(2.6 / 6)
    assert ssim.difference == pytest.approx(100 * (2.6 / 6 / 0.65 - 1))


def test_items_are_paired_within_their_seed():
    """Random at 0.5, 0.7, 0.9 and 0.4, 0.6, 0.8: every item but the first is at least 5 % lower, whatever order."""
    ssim = analyse(two_seeds(), []).of("mucs").metrics["ssim"]
    assert ssim.hit_rate == 5 / 6
    in_order = statistics.paired_wilcoxon(np.float64([6, 6, 8, 1, 2, 3]), np.float64([5, 7, 9, 4, 6, 8]))
    assert ssim.wilcoxon_p == pytest.approx(in_order)
    assert analyse(two_seeds()[::-1], []) == analyse(two_seeds(), [])


def test_random_against_itself_is_a_half_and_no_test():
    random = analyse(two_seeds(), []).methods[0]
    assert random.method == "random"
    ssim = random.metrics["ssim"]
    assert (ssim.auc, random.mean_auc) == (0.5, 0.5)
    assert [ssim.u, ssim.p, ssim.wilcoxon_p, ssim.difference, ssim.hit_rate, ssim.auc_interval] == [None] * 6
    assert (random.mean_difference, random.mean_auc_interval, random.controls) == (None, None, {})


def test_methods_come_as_given_with_the_reference_first():
    actual = analyse([outcome(method, 0.5, 0.6) for method in ("dino", "random", "clip")], [])
    assert [method.method for method in actual.methods] == ["random", "dino", "clip"]
    assert [method.method for method in actual.compared] == ["dino", "clip"]
    other = analyse([outcome(method, 0.5, 0.6) for method in ("dino", "random", "clip")], [], reference="clip")
    assert [method.method for method in other.methods] == ["clip", "dino", "random"]


def test_the_interval_is_over_seeds_and_always_the_same():
    """AUC is 5/9 in seed 1 and 1 in seed 2; the presence of another method does not move it."""
    outcomes = two_seeds()
    interval = analyse(outcomes, []).of("mucs").metrics["ssim"].auc_interval
    assert interval == (pytest.approx(5 / 9), 1)
    assert analyse(outcomes, []).of("mucs").mean_auc_interval == interval
    more = [*outcomes, outcome("dino", 0.5, 0.5, 0.5, seed=1), outcome("dino", 0.5, 0.5, 0.5, seed=2)]
    assert analyse(more, []).of("mucs").metrics["ssim"].auc_interval == interval
    one_seed = analyse([outcome for outcome in outcomes if outcome.seed == 1], []).of("mucs")
    assert (one_seed.metrics["ssim"].auc_interval, one_seed.mean_auc_interval) == (None, None)


PAPERS_FOUR = {"ssim": [0.1, 0.2], "sscd": [0.1, 0.9], "lpips": [0.1, 0.9], "clip": [0.6, 0.7]}
"""AUC 1, 0.5, 0.5 and 0 against 0.4 and 0.5."""


def analyse_metrics(similarity: Mapping[str, Sequence[float]], random: Sequence[float] = (0.4, 0.5)) -> Analysis:
    return analyse(
        [
            with_metrics(outcome("random", 0.0, 0.0), dict.fromkeys(similarity, random)),
            with_metrics(outcome("mucs", 0.0, 0.0), similarity),
        ],
        [],
    )


def test_the_papers_mean_is_over_its_four_metrics_only():
    actual = analyse_metrics(PAPERS_FOUR | {"dino": [0.0, 0.0]})
    assert actual.metrics == ("ssim", "sscd", "lpips", "clip", "dino")
    assert (actual.mean_label, actual.of("mucs").mean_auc) == ("μ", pytest.approx(0.5))
    assert actual.of("mucs").mean_difference == pytest.approx(100 * ((0.15 + 0.5 + 0.5 + 0.65) / 4 / 0.45 - 1))
    spread = [1.98 * width / 2 / 0.45 * 100 for width in (0.1, 0.8, 0.8, 0.1)]
    assert actual.of("mucs").mean_difference_half_width == pytest.approx(np.mean(spread))


def test_a_mean_of_fewer_metrics_says_so():
    actual = analyse_metrics({"dino": [0.0, 0.0], "ssim": [0.1, 0.2], "clip": [0.6, 0.7], "mse": [-0.2, -0.1]})
    assert (actual.mean_metrics, actual.mean_label) == (("ssim", "clip"), "mean of SSIM, CLIP")
    assert actual.of("mucs").mean_auc == pytest.approx(0.5)
    none = analyse_metrics({"dino": [0.0, 0.0]})
    assert (none.mean_metrics, none.mean_label, none.of("mucs").mean_auc) == ((), "", None)
    assert none.of("mucs").mean_auc_interval is None


def test_there_is_no_mean_difference_if_one_of_the_four_has_none():
    """SSIM around zero: below random's negative median nothing is a percentage of it."""
    outcomes = [
        with_metrics(outcome("random", 0.0, 0.0), {"ssim": [-0.1, -0.2], "clip": [0.4, 0.5]}),
        with_metrics(outcome("mucs", 0.0, 0.0), {"ssim": [0.1, -0.3], "clip": [0.2, 0.3]}),
    ]
    mucs = analyse(outcomes, []).of("mucs")
    assert (mucs.metrics["ssim"].difference, mucs.metrics["clip"].difference) == (None, pytest.approx(-400 / 9))
    assert (mucs.mean_difference, mucs.mean_difference_half_width) == (None, None)
    assert mucs.mean_auc is not None


def test_distances_have_an_auc_but_no_relative_numbers():
    """Negated: -0.9 is farther away than -0.1."""
    mse = analyse_metrics({"mse": [-0.9, -0.8]}, random=(-0.1, -0.2)).of("mucs").metrics["mse"]
    assert (mse.auc, mse.difference, mse.difference_half_width, mse.hit_rate) == (1, None, None, None)


def test_controls_are_held_against_the_controls_of_random():
    actual = analyse(
        [
            outcome("random", 0.4, 0.5, controls=[0.5, 0.6, 0.7]),
            outcome("mucs", 0.1, 0.2, controls=[0.1, 0.2, 0.3]),
            outcome("dino", 0.1, 0.2),
        ],
        [],
    )
    assert actual.of("mucs").controls == {"ssim": Control(n=3, auc=1, p=pytest.approx(2 / 20))}
    assert (actual.of("dino").controls, actual.of("random").controls) == ({}, {})


def test_overlap_is_pooled_over_the_seeds_and_also_within_a_seed():
    """Both lists of a seed share 1 of 2; across the seeds they are equal, equal, and share 1 twice."""
    top = [[0, 1], [1, 2]]
    outcomes = [outcome(method, 0.5, 0.4, seed=seed, top=top) for method in ("random", "mucs") for seed in (1, 2)]
    mucs = analyse(outcomes, []).of("mucs")
    assert mucs.within_overlap == Overlap(
        mean=pytest.approx((50 + 50 + 100 + 100 + 50 + 50) / 6),
        half_width=pytest.approx(
            1.98 * math.sqrt(2 * (2 * 33.33333333**2 + 4 * 16.66666667**2) / 2 / 5) / math.sqrt(6)
        ),
        pairs=6,
    )
    assert mucs.within_overlap_same_seed == pytest.approx(50)
    one_seed = analyse(outcomes[::2], []).of("mucs")
    assert (one_seed.within_overlap, one_seed.within_overlap_same_seed) == (
        Overlap(mean=50, half_width=None, pairs=1),
        None,
    )


def test_pairs_of_one_seed_count_alike_whatever_the_seeds_size():
    """Three pairs that share nothing, and one that shares everything."""
    tops = {1: [[0, 1], [2, 3], [4, 5]], 2: [[0, 1], [1, 0]]}
    outcomes = [
        outcome(method, *[0.5] * len(top), seed=seed, top=top)
        for method in ("random", "mucs")
        for seed, top in tops.items()
    ]
    assert analyse(outcomes, []).of("mucs").within_overlap_same_seed == pytest.approx(25)


def test_one_item_a_seed_has_pairs_only_across_seeds():
    outcomes = [outcome(method, 0.5, seed=seed) for method in ("random", "mucs") for seed in (1, 2)]
    mucs = analyse(outcomes, []).of("mucs")
    assert mucs.within_overlap == Overlap(mean=100, half_width=None, pairs=1)
    assert mucs.within_overlap_same_seed is None
    assert analyse(outcomes[::2], []).of("mucs").within_overlap is None


def test_methods_overlap_on_the_same_items_of_the_same_seeds():
    outcomes = [
        outcome("random", 0.5, seed=1, top=[[0, 1]]),
        outcome("random", 0.5, seed=2, top=[[2, 3]]),
        outcome("mucs", 0.5, seed=2, top=[[3, 2]]),
        outcome("mucs", 0.5, seed=1, top=[[2, 1]]),
        outcome("dino", 0.5, seed=1, top=[[2, 3]]),
        outcome("dino", 0.5, seed=2, top=[[0, 1]]),
    ]
    assert analyse(outcomes, []).between == (
        Between(a="random", b="mucs", percent=75, n=2),
        Between(a="random", b="dino", percent=0, n=2),
        Between(a="mucs", b="dino", percent=25, n=2),
    )


def test_the_asterisk_compares_the_best_with_the_next_best():
    random = outcome("random", *np.linspace(0.8, 0.9, 10))
    low, middle, nearly = np.linspace(0.1, 0.2, 10), np.linspace(0.5, 0.9, 10), np.linspace(0.12, 0.21, 10)
    best = analyse([random, outcome("dino", *middle), outcome("mucs", *low)], []).best
    assert best == {"ssim": Best(method="mucs", other="dino", p=best["ssim"].p, significant=True)}
    assert best["ssim"].p == statistics.mann_whitney(low, middle)[1]
    middle_too = middle - 0.01
    best = analyse([random, outcome("clip", *middle_too), outcome("dino", *middle)], []).best
    assert (best["ssim"].method, best["ssim"].significant) == ("clip", False)
    assert best["ssim"].p > 0.01
    assert analyse([random, outcome("mucs", *nearly)], []).best == {}


def test_the_level_of_unrelated_images():
    unrelated = [
        Unrelated(seed=1, similarity={"ssim": np.float64([0.1, 0.2])}),
        Unrelated(seed=2, similarity={"ssim": np.float64([0.6])}),
    ]
    assert analyse(two_seeds(), unrelated).unrelated == {"ssim": Level(mean=pytest.approx(0.3), n=3)}
    assert analyse(two_seeds(), []).unrelated == {}
    with pytest.raises(ValueError, match=r"seeds \[3\], but there are only outcomes of \[1, 2\]"):
        analyse(two_seeds(), [replace(unrelated[0], seed=3)])


def test_an_analysis_is_json():
    """float32 similarities and NumPy counts in, plain numbers out, and what is not defined is null."""
    outcomes = [
        with_metrics(
            outcome(method, 0.5, 0.5, seed=seed, removed=np.int64(40), num_images=np.int64(1000)),
            {"ssim": np.float32([0.5, 0.25]), "mse": np.float32([-0.5, -0.25])},
        )
        for seed in (1, 2)
        for method in ("random", "mucs")
    ]
    analysis = analyse(outcomes, [Unrelated(seed=1, similarity={"ssim": np.float32([0.1]), "mse": np.float32([-1])})])
    read = json.loads(json.dumps(asdict(analysis), allow_nan=False))
    assert read["methods"][1]["metrics"]["ssim"]["auc"] == 0.5
    assert read["methods"][1]["metrics"]["mse"]["difference"] is None
    assert read["methods"][1]["removed"] == [40, 40]
    assert read["unrelated"]["mse"] == {"mean": -1.0, "n": 1}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ([outcome("mucs", 0.1, 0.2, seed=2)], r"mucs has outcomes of seeds \[2\], random of \[1\]"),
        (
            [outcome("mucs", 0.1, 0.2), outcome("mucs", 0.1, 0.2)],
            r"mucs has outcomes of seeds \[1, 1\], random of \[1\]",
        ),
        ([outcome("mucs", 0.1, 0.2, 0.3)], "mucs, seed 1: items 3, but random has 2"),
        ([outcome("mucs", 0.1, 0.2, top=[[1], [2]])], "mucs, seed 1: top images 1, but random has 2"),
        ([outcome("mucs", 0.1, 0.2, num_images=7)], "mucs, seed 1: training images 7, but random has 1000"),
        ([outcome("mucs", 0.1, 0.2, metric="clip")], r"mucs, seed 1: metrics \['clip'\], but random has \['ssim'\]"),
        ([outcome("mucs", 0.1, 0.2, top=[[1, 2]])], "mucs, seed 1: items 1, but random has 2"),
        ([outcome("mucs", 0.1, top=[[1, 2], [3, 4]])], "mucs, seed 1: 1 similarities by ssim for 2 items"),
        ([outcome("mucs", 0.1, math.nan)], "mucs, seed 1: a similarity by ssim is not finite"),
    ],
)
def test_what_cannot_be_compared_is_named(changed: list[MethodOutcome], message: str):
    with pytest.raises(ValueError, match=message):
        analyse([outcome("random", 0.5, 0.6), *changed], [])


def test_nothing_to_compare_with():
    with pytest.raises(ValueError, match="no outcomes of 'random'"):
        analyse([outcome("mucs", 0.1, 0.2)], [])
    with pytest.raises(ValueError, match="random has two outcomes of one seed"):
        analyse([outcome("random", 0.1, 0.2), outcome("random", 0.1, 0.2)], [])
