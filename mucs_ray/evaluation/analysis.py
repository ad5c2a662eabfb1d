"""All statistics of the counterfactual test over seeds and methods, as plain numbers (spec 11.2).

Items are pooled over the seeds, and every method is compared with random removal of the same seeds and items.
`dataclasses.asdict` of an `Analysis` is JSON: it holds no NaN, and None where a number is not defined.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

from mucs_ray.evaluation import statistics
from mucs_ray.evaluation.config import Mode
from mucs_ray.evaluation.outcome import MethodOutcome, Unrelated

PAPER_METRICS = ("ssim", "sscd", "lpips", "clip")
LOSS_METRICS = ("skew", "loss")
"""What stands in place of similarities of a user's picture: minus the skew of its losses, and minus its loss after."""
SIGNIFICANT = 0.01
BOOTSTRAP_SEED = 112
"""The seed is fixed, and the same seeds are drawn for every method and metric: equal outcomes give equal reports."""
Kind = Literal["similarity", "controls"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One method by one metric, compared with random removal.

    For random removal itself the AUC is 0.5, and the results of the tests are None.
    """

    n: int
    n_random: int
    mean: float
    """The mean of the similarities themselves."""
    auc: float
    auc_interval: tuple[float, float] | None
    """The 95 % interval from redrawing whole seeds; None for one seed."""
    u: float | None
    p: float | None
    """The one-sided Mann-Whitney p that this method's similarities are the lower ones; items count as independent."""
    wilcoxon_p: float | None
    difference: float | None
    """The normalised difference in percent; negative = changed more. It is None for distances too."""
    difference_half_width: float | None
    hit_rate: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """The AUC of generated images that were not attributed: 0.5 = they changed as after random removal. `p` is
    two-sided.
    """

    n: int
    auc: float
    p: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """The percentage of a top-k list that is in another item's list, over all pairs of items."""

    mean: float
    half_width: float | None
    pairs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodAnalysis:
    """The results of one method over all seeds."""

    method: str
    removed: tuple[int, ...]
    """The number of training images left out in each seed, in the order of `Analysis.seeds`."""
    removed_share: float
    """The share of the training set that was left out, mean over the seeds, in [0, 1]."""
    seconds_an_item: float
    metrics: dict[str, Comparison]
    controls: dict[str, Control]
    """The controls by metric, without metrics that have none; empty for random removal itself."""
    mean_auc: float | None
    """The plain mean over `Analysis.mean_metrics`; None if there are none."""
    mean_auc_interval: tuple[float, float] | None
    mean_difference: float | None
    mean_difference_half_width: float | None
    """The mean of the half-widths, as in the paper."""
    within_overlap: Overlap | None
    """The overlap of pairs pooled over all seeds, as in the paper's code; None for a single item."""
    within_overlap_same_seed: float | None
    """The mean over the pairs within one seed; None for one seed, where it is the same number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Between:
    """The percentage of the top-k list that two methods share for the same item, mean over the n items."""

    a: str
    b: str
    percent: float
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """The method with the highest AUC by one metric; `significant` (the asterisk) means p < 0.01 against the next best.

    p is a one-sided Mann-Whitney test, not corrected for the choice of the best.
    """

    method: str
    other: str
    p: float
    significant: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """The mean similarity of different generated images, over n pairs."""

    mean: float
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysis:
    """The result of the counterfactual test in numbers."""

    seeds: tuple[int, ...]
    num_images: int
    top_k: int
    num_items: int
    """The number of items over all seeds."""
    reference: str
    """The method with which the others are compared."""
    mode: Mode
    """How images were removed."""
    metrics: tuple[str, ...]
    mean_metrics: tuple[str, ...]
    """Those of the paper's four metrics that were measured."""
    mean_label: str
    """The name of the mean: "μ" only if all four were measured, else e.g. "mean of SSIM, LPIPS"; empty if none was."""
    methods: tuple[MethodAnalysis, ...]
    """The reference comes first, then the others in the order given."""
    between: tuple[Between, ...]
    """The overlap of every pair of methods, the reference included."""
    best: dict[str, Best]
    """The best method by metric; empty with fewer than two methods besides the reference."""
    unrelated: dict[str, Level]
    """The reference level by metric, without metrics that have no pairs."""

    def of(self, method: str) -> MethodAnalysis:
        """Return the numbers of one method; KeyError if it was not analysed."""
        return {analysed.method: analysed for analysed in self.methods}[method]

    @property
    def by_loss(self) -> bool:
        """Whether nothing but losses of pictures was compared."""
        return set(self.metrics) <= {*LOSS_METRICS}

    @property
    def compared(self) -> tuple[MethodAnalysis, ...]:
        """The methods besides the reference."""
        return tuple(method for method in self.methods if method.method != self.reference)


def analyse(
    outcomes: Sequence[MethodOutcome], unrelated: Sequence[Unrelated], *, reference: str = "random"
) -> Analysis:
    """Compute all statistics; ValueError if methods differ in seeds, items, metrics, top-k or training set."""
    by_method = _by_method(outcomes, reference)
    random = by_method[reference]
    seeds = tuple(int(outcome.seed) for outcome in random)
    strangers = {level.seed for level in unrelated} - set(seeds)
    if strangers:
        raise ValueError(f"unrelated images of seeds {sorted(strangers)}, but there are only outcomes of {list(seeds)}")
    metrics = tuple(random[0].similarity)
    mean_metrics = tuple(metric for metric in PAPER_METRICS if metric in metrics)
    return Analysis(
        seeds=seeds,
        num_images=int(random[0].num_images),
        top_k=random[0].top.shape[1],
        num_items=sum(len(outcome.top) for outcome in random),
        reference=reference,
        mode=random[0].mode,
        metrics=metrics,
        mean_metrics=mean_metrics,
        mean_label=_mean_label(mean_metrics),
        methods=tuple(_method(of_method, random, mean_metrics) for of_method in by_method.values()),
        between=tuple(_between(a, b) for a, b in combinations(by_method.values(), 2)),
        best=_best(by_method, metrics, reference),
        unrelated=_levels(unrelated, metrics),
    )


def _by_method(outcomes: Sequence[MethodOutcome], reference: str) -> dict[str, list[MethodOutcome]]:
    """Group the outcomes by method, the reference first, each by ascending seed; check that they are comparable."""
    methods = [reference, *(outcome.method for outcome in outcomes if outcome.method != reference)]
    by_method = {
        method: sorted((outcome for outcome in outcomes if outcome.method == method), key=lambda outcome: outcome.seed)
        for method in dict.fromkeys(methods)
    }
    if not by_method[reference]:
        raise ValueError(f"no outcomes of {reference!r}: every method is compared with it; retrain and evaluate it too")
    seeds = [outcome.seed for outcome in by_method[reference]]
    for method, several in by_method.items():
        if [outcome.seed for outcome in several] != seeds:
            theirs = [outcome.seed for outcome in several]
            raise ValueError(f"{method} has outcomes of seeds {theirs}, {reference} of {seeds}: expected the same ones")
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"{method} has two outcomes of one seed: {seeds}")
        for outcome, random in zip(several, by_method[reference], strict=True):
            _check(outcome, random, by_method[reference][0])
    return by_method


def _check(outcome: MethodOutcome, random: MethodOutcome, first: MethodOutcome) -> None:
    """Check that an outcome is comparable. `random` is of the same seed; `first` stands for all seeds."""
    who = f"{outcome.method}, seed {outcome.seed}"
    facts = {
        "items": (len(outcome.top), len(random.top)),
        "top images": (outcome.top.shape[1], first.top.shape[1]),
        "training images": (outcome.num_images, first.num_images),
        "metrics": (sorted(outcome.similarity), sorted(first.similarity)),
    }
    for quantity, (value, expected) in facts.items():
        if value != expected:
            raise ValueError(f"{who}: {quantity} {value}, but {random.method} has {expected}")
    for metric, values in outcome.similarity.items():
        if len(values) != len(outcome.top):
            raise ValueError(f"{who}: {len(values)} similarities by {metric} for {len(outcome.top)} items")
        if not np.isfinite(values).all():
            raise ValueError(f"{who}: a similarity by {metric} is not finite")


def _method(
    outcomes: Sequence[MethodOutcome], random: Sequence[MethodOutcome], mean_metrics: Sequence[str]
) -> MethodAnalysis:
    itself = outcomes[0].method == random[0].method
    metrics = {metric: _comparison(outcomes, random, metric, itself) for metric in random[0].similarity}
    averaged = [metrics[metric] for metric in mean_metrics]
    mean_auc, interval = None, None
    if averaged:
        mean_auc = float(np.mean([comparison.auc for comparison in averaged]))
        interval = None if itself else _interval(outcomes, random, mean_metrics)
    overlap = statistics.within_overlap(np.concatenate([outcome.top for outcome in outcomes]))
    return MethodAnalysis(
        method=outcomes[0].method,
        removed=tuple(int(outcome.removed) for outcome in outcomes),
        removed_share=float(np.mean([outcome.removed / outcome.num_images for outcome in outcomes])),
        seconds_an_item=float(np.mean([outcome.seconds_an_item for outcome in outcomes])),
        metrics=metrics,
        controls={} if itself else _controls(outcomes, random),
        mean_auc=mean_auc,
        mean_auc_interval=interval,
        mean_difference=_mean([comparison.difference for comparison in averaged]),
        mean_difference_half_width=_mean([comparison.difference_half_width for comparison in averaged]),
        within_overlap=overlap and Overlap(mean=overlap.mean, half_width=overlap.half_width, pairs=overlap.num),
        within_overlap_same_seed=_same_seed_overlap(outcomes),
    )


def _comparison(
    outcomes: Sequence[MethodOutcome], random: Sequence[MethodOutcome], metric: str, itself: bool
) -> Comparison:
    similarity, against = _pooled(outcomes, metric), _pooled(random, metric)
    u, p = statistics.mann_whitney(similarity, against)
    is_share = not itself and metric not in LOSS_METRICS  # a loss has no 1 at which nothing has changed
    difference = statistics.normalized_difference(similarity, against) if is_share else None
    return Comparison(
        n=len(similarity),
        n_random=len(against),
        mean=float(similarity.mean()),
        auc=statistics.auc(similarity, against),
        auc_interval=None if itself else _interval(outcomes, random, [metric]),
        u=None if itself else u,
        p=None if itself else p,
        wilcoxon_p=None if itself else statistics.paired_wilcoxon(similarity, against),
        difference=difference and difference.mean,
        difference_half_width=difference and difference.half_width,
        hit_rate=statistics.hit_rate(similarity, against) if is_share else None,
    )


def _interval(
    outcomes: Sequence[MethodOutcome], random: Sequence[MethodOutcome], metrics: Sequence[str]
) -> tuple[float, float] | None:
    """Return the interval of the mean AUC over the metrics; the items of a seed stay together, with all metrics."""

    def mean_auc(ours: np.ndarray, theirs: np.ndarray) -> float:
        return float(np.mean([statistics.auc(a, b) for a, b in zip(ours.T, theirs.T, strict=True)]))

    ours, theirs = (
        [np.stack([outcome.similarity[metric] for metric in metrics], axis=1) for outcome in several]
        for several in (outcomes, random)
    )
    return statistics.cluster_bootstrap(ours, theirs, mean_auc, rng=np.random.default_rng(BOOTSTRAP_SEED))


def _controls(outcomes: Sequence[MethodOutcome], random: Sequence[MethodOutcome]) -> dict[str, Control]:
    controls = {}
    for metric in random[0].similarity:
        ours, theirs = (_pooled(several, metric, "controls") for several in (outcomes, random))
        if len(ours) and len(theirs):
            _, p = statistics.mann_whitney(ours, theirs, "two-sided")
            controls[metric] = Control(n=len(ours), auc=statistics.auc(ours, theirs), p=p)
    return controls


def _same_seed_overlap(outcomes: Sequence[MethodOutcome]) -> float | None:
    if len(outcomes) < 2:
        return None
    overlaps = [overlap for outcome in outcomes if (overlap := statistics.within_overlap(outcome.top))]
    pairs = sum(overlap.num for overlap in overlaps)
    return sum(overlap.mean * overlap.num for overlap in overlaps) / pairs if pairs else None


def _between(a: Sequence[MethodOutcome], b: Sequence[MethodOutcome]) -> Between:
    top_a, top_b = (np.concatenate([outcome.top for outcome in several]) for several in (a, b))
    percent = statistics.between_overlap(top_a, top_b)
    return Between(a=a[0].method, b=b[0].method, percent=percent, n=len(top_a))


def _best(by_method: Mapping[str, Sequence[MethodOutcome]], metrics: Sequence[str], reference: str) -> dict[str, Best]:
    compared = [method for method in by_method if method != reference]
    if len(compared) < 2:
        return {}
    best = {}
    for metric in metrics:
        pooled = {method: _pooled(by_method[method], metric) for method in by_method}
        auc = {method: statistics.auc(pooled[method], pooled[reference]) for method in compared}
        method, other = sorted(compared, key=lambda method: -auc[method])[:2]
        _, p = statistics.mann_whitney(pooled[method], pooled[other])
        best[metric] = Best(method=method, other=other, p=p, significant=p < SIGNIFICANT)
    return best


def _levels(unrelated: Sequence[Unrelated], metrics: Sequence[str]) -> dict[str, Level]:
    levels = {}
    for metric in metrics:
        values = np.concatenate([np.empty(0), *(level.similarity.get(metric, ()) for level in unrelated)])
        if not np.isfinite(values).all():
            raise ValueError(f"a similarity of unrelated images by {metric} is not finite")
        if len(values):
            levels[metric] = Level(mean=float(values.mean()), n=len(values))
    return levels


def _pooled(outcomes: Sequence[MethodOutcome], metric: str, kind: Kind = "similarity") -> statistics.Sample:
    """Pool over all seeds, in float64, so that a mean does not depend on the number of values."""
    parts = [getattr(outcome, kind).get(metric, ()) for outcome in outcomes]
    return np.concatenate([np.empty(0), *parts])


def _mean_label(metrics: Sequence[str]) -> str:
    if tuple(metrics) == PAPER_METRICS:
        return "μ"
    return f"mean of {', '.join(metrics).upper()}" if metrics else ""


def _mean(values: Sequence[float | None]) -> float | None:
    """Return the mean; None if any value is not defined, or there are none."""
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined and len(defined) == len(values) else None
