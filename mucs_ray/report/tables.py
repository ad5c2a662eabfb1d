"""The main tables of the counterfactual test, laid out as the paper's Tables 1 and 5; side_tables.py has the others."""

from collections.abc import Callable, Mapping, Sequence

from mucs_ray.evaluation.analysis import PAPER_METRICS, Analysis, MethodAnalysis
from mucs_ray.report import side_tables
from mucs_ray.report.density import densities
from mucs_ray.report.document import Cell, Table
from mucs_ray.report.findings import headline, headline_metric, remarks
from mucs_ray.report.published import Printed, Published
from mucs_ray.report.wording import (
    count,
    counted,
    from_paper,
    interval,
    label,
    listed,
    metric_name,
    note,
    percent,
    plus_minus,
    probability,
    share,
    small_print,
)

__all__ = ["densities", "headline", "remarks", "tables"]


def tables(
    analysis: Analysis,
    *,
    beside: Sequence[Analysis] = (),
    published: Published | None = None,
    method_labels: Mapping[str, str],
) -> tuple[Table, ...]:
    """Lay out the tables: AUC, difference, overlaps, cost, controls and levels; a table without content is left out.

    The first table also has the AUC of the same methods in other modes of removal, which are `beside` this one.
    `published` holds the paper's numbers, for runs of its own recipes.
    """
    names = {method.method: label(method.method, method_labels) for method in analysis.methods}
    candidates = (
        _auc(analysis, names, published, beside),
        _difference(analysis, names, published),
        side_tables.within(analysis, names, published),
        side_tables.between(analysis, names, published),
        side_tables.cost(analysis, names, published),
        side_tables.controls(analysis, names),
        side_tables.levels(analysis, names),
    )
    return tuple(table for table in candidates if table is not None)


def _auc(
    analysis: Analysis, names: Mapping[str, str], published: Published | None, beside: Sequence[Analysis]
) -> Table | None:
    """Lay out one row for each method, random first."""
    if not analysis.compared:
        return None
    means = [analysis.mean_label] if _has_mean(analysis) else []
    rows = tuple(
        (
            Cell(text=names[method.method]),
            Cell(text=count(method.removed), note=percent(100 * method.removed_share)),
            *(_auc_cell(analysis, method, metric, published) for metric in analysis.metrics),
            *(_mean_auc_cell(analysis, method, published) for _ in means),
            *(cell for other in beside for cell in _beside_cells(other, method.method)),
        )
        for method in analysis.methods
    )
    return Table(
        key="auc",
        title=f"Did the {'loss rise' if analysis.by_loss else 'images change'} more than after random removal? (AUC)",
        note=_auc_note(analysis, names, published),
        columns=(
            "Method",
            "Removed",
            *map(metric_name, analysis.metrics),
            *means,
            *(title for other in beside for title in (f"removed, {other.mode}", f"{_one_auc(other)[0]}, {other.mode}")),
        ),
        rows=rows,
    )


def _beside_cells(analysis: Analysis, method: str) -> tuple[Cell, Cell]:
    """Return the number removed and one AUC of a method in another mode; empty cells if it was not tested in that."""
    of_method = {tested.method: tested for tested in analysis.methods}.get(method)
    if of_method is None:
        return Cell(text=""), Cell(text="")
    _, auc_of = _one_auc(analysis)
    return Cell(text=count(of_method.removed)), Cell(text=share(auc_of(of_method)))


def _one_auc(analysis: Analysis) -> tuple[str, Callable[[MethodAnalysis], float]]:
    """Return the name of the AUC that stands for all metrics, and a function that reads it: the mean, or the first."""
    if _has_mean(analysis):
        return analysis.mean_label, lambda method: method.mean_auc or 0.0
    metric = headline_metric(analysis)
    return metric_name(metric), lambda method: method.metrics[metric].auc


def _auc_cell(analysis: Analysis, method: MethodAnalysis, metric: str, published: Published | None) -> Cell:
    comparison, best = method.metrics[metric], analysis.best.get(metric)
    asterisk = "*" if best and best.significant and best.method == method.method else ""
    return Cell(
        text=share(comparison.auc) + asterisk,
        strong=comparison.auc == max(other.metrics[metric].auc for other in analysis.methods),
        note=small_print(
            interval(comparison.auc_interval),
            "" if comparison.p is None else probability(comparison.p),
            _paper_auc(method.method, metric, published),
        ),
    )


def _mean_auc_cell(analysis: Analysis, method: MethodAnalysis, published: Published | None) -> Cell:
    mean = method.mean_auc or 0.0
    return Cell(
        text=share(mean),
        strong=mean == max(other.mean_auc or 0.0 for other in analysis.methods),
        note=small_print(
            interval(method.mean_auc_interval),
            _paper_auc(method.method, "mean", published if _as_in_the_paper(analysis) else None),
        ),
    )


def _paper_auc(method: str, metric: str, published: Published | None) -> str:
    if published is None or method not in published.auc or metric not in published.auc[method]:
        return ""
    asterisk = "*" if metric in published.significant.get(method, ()) else ""
    return from_paper(share(published.auc[method][metric]) + asterisk)


def _auc_note(analysis: Analysis, names: Mapping[str, str], published: Published | None) -> str:
    random, several = names[analysis.reference], len(analysis.seeds) > 1
    what = (
        "the loss of a picture rises more by a method's removal than that of a picture by random removal"
        if analysis.by_loss
        else "an image is less like itself after a method's removal than an image is after random removal"
    )
    return note(
        f"AUC: how often {what}. "
        f"Higher is better; .500, that of {random} by definition, is no effect, 1 is total separation.",
        counted(analysis),
        f"p: one-sided Mann-Whitney test against {random}.",
        "The range: 95 % interval, redrawing whole seeds." if several else "",
        f"Removed: training images left out{', mean over the seeds' if several else ''}.",
        f"The paper's μ is over {listed(list(map(metric_name, PAPER_METRICS)))}."
        if _has_mean(analysis) and not _as_in_the_paper(analysis)
        else "",
        "Bold: best of the column. Asterisk: p < .01 against the next best method."
        if analysis.best
        else "Bold: best of the column. No asterisks: they compare methods, and there is one besides random removal.",
        *(published.notes.get(method.method, "") for method in analysis.methods if published),
    )


def _difference(analysis: Analysis, names: Mapping[str, str], published: Published | None) -> Table | None:
    """Leave out random, with which the others are compared, and distances, for which it is not defined."""
    metrics = [
        metric
        for metric in analysis.metrics
        if any(method.metrics[metric].difference is not None for method in analysis.compared)
    ]
    if not metrics:
        return None
    means = [analysis.mean_label] if _has_mean(analysis) else []
    return Table(
        key="difference",
        title="By how much did the similarity fall? (%)",
        note=note(
            "Each image's similarity relative to the median after random removal, minus 1; mean over the images ± 1.98 "
            "standard errors. Further below zero is better: changed more.",
            counted(analysis),
            "Distances have no such percentage." if len(metrics) < len(analysis.metrics) else "",
        ),
        columns=("Method", *map(metric_name, metrics), *means),
        rows=tuple(
            (
                Cell(text=names[method.method]),
                *(_difference_cell(analysis, method, metric, published) for metric in metrics),
                *(_difference_cell(analysis, method, "mean", published) for _ in means),
            )
            for method in analysis.compared
        ),
    )


def _difference_cell(analysis: Analysis, method: MethodAnalysis, metric: str, published: Published | None) -> Cell:
    mean, half_width = _fall(method, metric)
    if mean is None:
        return Cell(text="n/a")
    falls = [fall for other in analysis.compared if (fall := _fall(other, metric)[0]) is not None]
    paper: Printed | None = None
    if published and (metric != "mean" or _as_in_the_paper(analysis)):
        paper = published.difference.get(method.method, {}).get(metric)
    return Cell(
        text=plus_minus(mean, half_width),
        strong=len(falls) > 1 and mean == min(falls),
        note=from_paper(paper and plus_minus(paper.mean, paper.half_width)),
    )


def _fall(method: MethodAnalysis, metric: str) -> tuple[float | None, float | None]:
    if metric == "mean":
        return method.mean_difference, method.mean_difference_half_width
    return method.metrics[metric].difference, method.metrics[metric].difference_half_width


def _has_mean(analysis: Analysis) -> bool:
    return len(analysis.mean_metrics) > 1


def _as_in_the_paper(analysis: Analysis) -> bool:
    return analysis.mean_metrics == PAPER_METRICS
