"""The result of the counterfactual test in words: one sentence, and what a reader must know to judge it."""

from collections.abc import Mapping

from mucs_ray.evaluation.analysis import Analysis, Comparison, MethodAnalysis
from mucs_ray.report.wording import NBSP, count, label, metric_name, percent, probability, seeds

CLEAR = 0.05
MUCH_LESS = 0.8
"""A share of the number of images that random removal left out. The paper's DINO (26 against 33 %) is just below it,
its MUCS (31 %) is above.
"""
FEW_ITEMS = 5
FEW_SEEDS = 6
"""The paper's number of seeds; an interval from fewer seeds rests on too few different draws."""

WORDS = {
    False: ("changed the generated images", "change the generated images", "they even changed less"),
    True: ("raised the loss of the pictures", "raise the loss of the pictures", "it even rose less"),
}
"""What is said of a change: in the past, in the infinitive, and that it was smaller; by whether losses were compared.
"""

MODES = {
    "union": "",
    "matched": "Matched removal: equally many images were removed for every method, from its ranked lists.",
    "per-item": "Each image was tested by its own retraining, which left out only the top images of that image.",
}


def headline(analysis: Analysis, *, method_labels: Mapping[str, str]) -> str:
    """Describe the method with the highest AUC in one sentence, by the first metric; it says so if nothing differs.

    A "clear" difference has a one-sided p of at most 0.05, which an AUC of 0.5 or less never has. The sentence holds
    plain spaces, because it is printed on the terminal too.
    """
    return _sentence(analysis, method_labels).replace(NBSP, " ")


def _sentence(analysis: Analysis, method_labels: Mapping[str, str]) -> str:
    random = analysis.of(analysis.reference)
    if not analysis.compared:
        return f"Only {label(random.method, method_labels)} was evaluated: there is no method to compare with it."
    metric = headline_metric(analysis)
    best = max(analysis.compared, key=lambda method: (method.mean_auc or 0.0, method.metrics[metric].auc))
    comparison = best.metrics[metric]
    among = f" (the best of {len(analysis.compared)} methods)" if len(analysis.compared) > 1 else ""
    name = label(best.method, method_labels)
    per_item = " for each image" if analysis.mode == "per-item" else ""
    removed = f"Removing the {count(best.removed)} training images that {name}{among} ranks highest{per_item}"
    against = f"removing {count(random.removed)} random ones"
    numbers = f"AUC {comparison.auc:.2f} by {metric_name(metric)} ({_evidence(analysis, comparison)})"
    changed, change, less_changed = WORDS[analysis.by_loss]
    if (comparison.p or 0.0) <= CLEAR:
        return f"{removed} {changed} more than {against}: {numbers}."
    if comparison.auc > 0.5:
        return f"{removed} made no clear difference compared with {against}: {numbers}."
    enough = comparison.n >= FEW_ITEMS  # with fewer, the p of the other side is not 1 - p
    less = less_changed if enough and (comparison.p or 0.0) >= 1 - CLEAR else "no clear difference"
    return f"{removed} did not {change} more than {against}: {less}, {numbers}."


def headline_metric(analysis: Analysis) -> str:
    """Return the first of the paper's metrics that was measured, never the one with the best number."""
    return (*analysis.mean_metrics, *analysis.metrics)[0]


def _evidence(analysis: Analysis, comparison: Comparison) -> str:
    parts = [probability(comparison.p, leading_zero=True)] if comparison.p is not None else []
    if comparison.auc_interval:
        low, high = comparison.auc_interval
        parts.append(f"95{NBSP}% interval {low:.2f} to {high:.2f}")
    return ", ".join([*parts, f"n{NBSP}={NBSP}{comparison.n}", seeds(len(analysis.seeds))])


def remarks(analysis: Analysis, *, method_labels: Mapping[str, str]) -> tuple[str, ...]:
    """Return remarks on few seeds, several methods, and methods that removed much less than random did (spec 11.3)."""
    sentences = [MODES[analysis.mode], _seeds_remark(len(analysis.seeds))]
    if len(analysis.compared) > 1:
        tests = len(analysis.compared) * len(analysis.metrics)
        sentences.append(f"The p-values of {tests} tests are given as they are, not corrected for their number.")
    sentences += [_overlap_remark(analysis, method, method_labels) for method in analysis.compared]
    return tuple(remark for remark in sentences if remark)


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
    """Explain that a method whose lists share images removes a smaller union, which alone changes images less."""
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
