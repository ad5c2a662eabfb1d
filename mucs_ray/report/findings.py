"""What the counterfactual test found, in words: one sentence, and what a reader must know to judge it."""

from collections.abc import Mapping

from mucs_ray.evaluation.analysis import Analysis, Comparison, MethodAnalysis
from mucs_ray.report.wording import NBSP, count, label, metric_name, percent, probability, seeds

CLEAR = 0.05
MUCH_LESS = 0.8
"""Of random's removed share: the paper's DINO (26 against 33 %) is just below, its MUCS (31 %) is above."""
FEW_ITEMS = 5
FEW_SEEDS = 6
"""The paper's number; an interval from fewer seeds rests on too few different draws."""

MODES = {
    "union": "",
    "matched": "Matched removal: from every method's ranked lists as many images were removed.",
    "per-item": "Each image was tested by a retraining of its own, without its own top images only.",
}


def headline(analysis: Analysis, *, method_labels: Mapping[str, str]) -> str:
    """One sentence on the method with the highest AUC, by the first metric; it says so if there is no difference.

    "Clear" means a one-sided p of at most 0.05, which an AUC of 0.5 or less never has. The spaces are plain ones: it
    is also for the terminal.
    """
    return _sentence(analysis, method_labels).replace(NBSP, " ")


def _sentence(analysis: Analysis, method_labels: Mapping[str, str]) -> str:
    random = analysis.of(analysis.reference)
    if not analysis.compared:
        return f"Only {label(random.method, method_labels)} was evaluated: there is no method to hold against it."
    metric = headline_metric(analysis)
    best = max(analysis.compared, key=lambda method: (method.mean_auc or 0.0, method.metrics[metric].auc))
    found = best.metrics[metric]
    among = f" (the best of {len(analysis.compared)} methods)" if len(analysis.compared) > 1 else ""
    name = label(best.method, method_labels)
    each = " for each of them" if analysis.mode == "per-item" else ""
    removed = f"Removing the {count(best.removed)} training images that {name}{among} ranks highest{each}"
    against = f"removing {count(random.removed)} random ones"
    numbers = f"AUC {found.auc:.2f} by {metric_name(metric)} ({_evidence(analysis, found)})"
    if (found.p or 0.0) <= CLEAR:
        return f"{removed} changed the generated images more than {against}: {numbers}."
    if found.auc > 0.5:
        return f"{removed} made no clear difference compared with {against}: {numbers}."
    enough = found.n >= FEW_ITEMS  # with fewer, the p of the other side is not 1 - p
    less = "they even changed less" if enough and (found.p or 0.0) >= 1 - CLEAR else "no clear difference"
    return f"{removed} did not change the generated images more than {against}: {less}, {numbers}."


def headline_metric(analysis: Analysis) -> str:
    """The first of the paper's metrics that is there, never the one with the best number."""
    return (*analysis.mean_metrics, *analysis.metrics)[0]


def _evidence(analysis: Analysis, found: Comparison) -> str:
    parts = [probability(found.p, leading_zero=True)] if found.p is not None else []
    if found.auc_interval:
        low, high = found.auc_interval
        parts.append(f"95{NBSP}% interval {low:.2f} to {high:.2f}")
    return ", ".join([*parts, f"n{NBSP}={NBSP}{found.n}", seeds(len(analysis.seeds))])


def remarks(analysis: Analysis, *, method_labels: Mapping[str, str]) -> tuple[str, ...]:
    """Few seeds, several methods, and methods that removed much less than random did (spec 11.3)."""
    found = [MODES[analysis.mode], _seeds_remark(len(analysis.seeds))]
    if len(analysis.compared) > 1:
        tests = len(analysis.compared) * len(analysis.metrics)
        found.append(f"The p-values of {tests} tests are given as they are, not corrected for their number.")
    found += [_overlap_remark(analysis, method, method_labels) for method in analysis.compared]
    return tuple(remark for remark in found if remark)


def _seeds_remark(num: int) -> str:
    if num == 1:
        return (
            "One seed: p tells only whether the result holds for other images, not whether it holds for another "
            "training run; no interval over seeds can be given."
        )
    if num < FEW_SEEDS:
        return f"Only {num} seeds: the intervals over seeds are rough; the paper has {FEW_SEEDS}."
    return ""


def _overlap_remark(analysis: Analysis, method: MethodAnalysis, method_labels: Mapping[str, str]) -> str:
    """A method whose lists share images removes a smaller union, which alone makes a smaller change."""
    random = analysis.of(analysis.reference)
    if method.removed_share >= MUCH_LESS * random.removed_share:
        return ""
    name = label(method.method, method_labels)
    removed = f"{name} removed {count(method.removed)} training images, random removal {count(random.removed)}"
    overlap, chance = method.within_overlap, 100 * analysis.top_k / analysis.num_images
    because = ""
    if overlap is not None and overlap.mean > chance:
        because = (
            f", because its lists for different images overlap ({percent(overlap.mean)}, by chance {percent(chance)})"
        )
    return f"{removed}{because}. Fewer images removed change less, whichever they are, and that holds its AUC down."
