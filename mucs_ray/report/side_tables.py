"""The tables beside the main ones: overlaps, cost, controls and levels (the paper's Tables 6, 7, 8, and more)."""

from collections.abc import Mapping

from mucs_ray.evaluation.analysis import Analysis, MethodAnalysis
from mucs_ray.report.document import Cell, Table
from mucs_ray.report.published import Published
from mucs_ray.report.wording import (
    NBSP,
    counted,
    from_paper,
    metric_name,
    note,
    percent,
    plus_minus,
    probability,
    share,
    signed,
    time_an_item,
)


def within(analysis: Analysis, names: Mapping[str, str], published: Published | None) -> Table | None:
    """Lay out Table 7: the overlap of one method's lists for different images."""
    several = any(method.within_overlap_same_seed is not None for method in analysis.methods)
    rows = []
    for method in analysis.methods:
        overlap = method.within_overlap
        if overlap is None:
            return None
        paper = published.within_overlap.get(method.method) if published else None
        printed = from_paper(paper and plus_minus(paper.mean, paper.half_width))
        row = [Cell(text=names[method.method]), Cell(text=plus_minus(overlap.mean, overlap.half_width), note=printed)]
        if several:
            same = method.within_overlap_same_seed
            row.append(Cell(text="n/a" if same is None else signed(same)))
        rows.append(tuple(row))
    return Table(
        key="overlap-within",
        title="Do different images get the same training images? (%)",
        note=note(
            f"The share of one image's top {analysis.top_k:,} that is in another's, mean over all pairs ± 1.98 "
            "standard errors, pairs counted as independent. Lower is better: more specific to the image; lists drawn "
            f"at random have {percent(100 * analysis.top_k / analysis.num_images)}.",
            counted(analysis),
            "All pairs includes images of different seeds, as in the paper." if several else "",
            _no_between(analysis),
        ),
        columns=("Method", "All pairs", *["Same seed"] * several),
        rows=tuple(rows),
    )


def _no_between(analysis: Analysis) -> str:
    if len(analysis.compared) > 1:
        return ""
    num = "one method" if analysis.compared else "no method"
    return f"No table of overlaps between methods: there is {num} besides random removal."


def between(analysis: Analysis, names: Mapping[str, str], published: Published | None) -> Table | None:
    """Lay out Table 8, a triangle: the overlap of two methods' lists for the same image."""
    methods = [method.method for method in analysis.compared]
    if len(methods) < 2:
        return None
    percents = {frozenset((pair.a, pair.b)): pair.percent for pair in analysis.between}
    rows = []
    for at, a in enumerate(methods[:-1]):
        row = [Cell(text=names[a])] + [Cell(text="")] * at
        for b in methods[at + 1 :]:
            paper = published.between_overlap.get(frozenset((a, b))) if published else None
            printed = from_paper(None if paper is None else signed(paper))
            row.append(Cell(text=signed(percents[frozenset((a, b))]), note=printed))
        rows.append(tuple(row))
    with_random = [percents[frozenset((analysis.reference, method))] for method in methods]
    return Table(
        key="overlap-between",
        title="Do methods agree on the training images? (%)",
        note=note(
            f"The share of the top {analysis.top_k:,} that two methods have in common for the same image, mean over "
            "the images. Neither direction is better; a higher share is more agreement. "
            f"{names[analysis.reference]} has {percent(min(with_random))} to {percent(max(with_random))} with them.",
            counted(analysis),
        ),
        columns=("Method", *(names[method] for method in methods[1:])),
        rows=tuple(rows),
    )


def cost(analysis: Analysis, names: Mapping[str, str], published: Published | None) -> Table:
    """Lay out Table 6: the time that an answer takes."""

    def cell(method: MethodAnalysis) -> Cell:
        paper = published.minutes.get(method.method) if published else None
        return Cell(text=time_an_item(method.seconds_an_item), note=from_paper(paper and f"{paper}{NBSP}min"))

    return Table(
        key="cost",
        title="What does an answer cost?",
        note=note(
            "Wall time of the attribution over its images, without the retraining that tests it. Lower is better.",
            counted(analysis),
            "The paper's times were measured on one H100." if published else "",
        ),
        columns=("Method", "Time an image"),
        rows=tuple((Cell(text=names[method.method]), cell(method)) for method in analysis.methods),
    )


def controls(analysis: Analysis, names: Mapping[str, str]) -> Table | None:
    """Lay out the AUC of images that were not attributed; None if there are none."""
    metrics = [metric for metric in analysis.metrics if any(metric in method.controls for method in analysis.compared)]
    if not metrics:
        return None

    def cell(method: MethodAnalysis, metric: str) -> Cell:
        control = method.controls.get(metric)
        return Cell(text=share(control.auc), note=probability(control.p)) if control else Cell(text="n/a")

    num = max(control.n for method in analysis.compared for control in method.controls.values())
    return Table(
        key="controls",
        title="Did other images change too? (AUC of controls)",
        note=note(
            "AUC of generated images that were not attributed. Nearer to .500 is better: they changed as after random "
            "removal; above .500, the method's images matter to other images too. p: two-sided Mann-Whitney test.",
            counted(analysis, num, "controls"),
        ),
        columns=("Method", *map(metric_name, metrics)),
        rows=tuple(
            (Cell(text=names[method.method]), *(cell(method, metric) for metric in metrics))
            for method in analysis.compared
        ),
    )


def levels(analysis: Analysis, names: Mapping[str, str]) -> Table | None:
    """Lay out the mean similarities, which lie between 1 and that of unrelated images; None without the latter."""
    if not analysis.unrelated:
        return None
    unrelated_levels = [analysis.unrelated.get(metric) for metric in analysis.metrics]
    pairs = max(level.n for level in analysis.unrelated.values())
    unrelated = (
        Cell(text="Unrelated images"),
        *(Cell(text=signed(level.mean, 3) if level else "n/a") for level in unrelated_levels),
    )
    rows = (
        (
            Cell(text=names[method.method]),
            *(Cell(text=signed(method.metrics[metric].mean, 3)) for metric in analysis.metrics),
        )
        for method in analysis.methods
    )
    return Table(
        key="reference-level",
        title="How similar are the images still?",
        note=note(
            "Mean similarity of an image before and after retraining. Lower is more change; an image that has changed "
            f"altogether is at the level of unrelated images ({pairs:,} pairs of different generated images). "
            "Distances are negated.",
            counted(analysis),
        ),
        columns=("Method", *map(metric_name, analysis.metrics)),
        rows=(unrelated, *rows),
    )
