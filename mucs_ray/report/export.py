"""The numbers of the report for other programs, as CSV in long format and as LaTeX tables.

The JSON form is `asdict` of the analysis.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mucs_ray.evaluation.analysis import Analysis, Comparison, MethodAnalysis
from mucs_ray.report.document import NOTE_SEPARATOR, Cell, Table

COLUMNS = ("method", "metric", "statistic", "value", "low", "high", "n", "seeds", "removed", "mode")
UNRELATED = "(unrelated images)"
"""This stands in place of a method's name; no method can have it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One number. `low` and `high` bound a 95 % interval, and `n` counts the values behind the number."""

    metric: str = ""
    statistic: str
    value: float | None
    low: float | None = None
    high: float | None = None
    n: int


def to_csv(analyses: Sequence[Analysis]) -> str:
    """Write one line for each number of each mode of removal, at full precision; an undefined number is left out.

    The interval from `low` to `high` is over seeds for an AUC, over items for a difference, and over pairs for an
    overlap. Shares are in [0, 1]; differences and overlaps are in percent. `removed` is the mean over the seeds.
    """
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    for analysis in analyses:
        rows.writerows(_rows(analysis))
    return text.getvalue()


def _rows(analysis: Analysis) -> Iterator[tuple[object, ...]]:
    num_seeds = len(analysis.seeds)
    for method in analysis.methods:
        removed = sum(method.removed) / num_seeds
        for line in _lines(analysis, method):
            if line.value is not None:
                numbers = (line.value, line.low, line.high, line.n, num_seeds, removed)
                yield method.method, line.metric, line.statistic, *numbers, analysis.mode
    for metric, level in analysis.unrelated.items():
        yield UNRELATED, metric, "similarity", level.mean, None, None, level.n, num_seeds, None, analysis.mode


def _lines(analysis: Analysis, method: MethodAnalysis) -> Iterator[Line]:
    for metric, comparison in method.metrics.items():
        yield from _comparison(metric, comparison)
    for metric, control in method.controls.items():
        yield Line(metric=metric, statistic="control_auc", value=control.auc, n=control.n)
        yield Line(metric=metric, statistic="control_p", value=control.p, n=control.n)
    n, overlap = analysis.num_items, method.within_overlap
    low, high = method.mean_auc_interval or (None, None)
    yield Line(statistic="mean_auc", value=method.mean_auc, low=low, high=high, n=n)
    yield _plus_minus("", "mean_difference", method.mean_difference, method.mean_difference_half_width, n)
    yield Line(statistic="removed_share", value=method.removed_share, n=len(analysis.seeds))
    yield Line(statistic="seconds_an_item", value=method.seconds_an_item, n=n)
    if overlap is not None:
        yield _plus_minus("", "overlap_within", overlap.mean, overlap.half_width, overlap.pairs)
    yield Line(statistic="overlap_within_same_seed", value=method.within_overlap_same_seed, n=n)
    for pair in analysis.between:
        if pair.a == method.method:
            yield Line(statistic=f"overlap_with_{pair.b}", value=pair.percent, n=pair.n)


def _comparison(metric: str, comparison: Comparison) -> Iterator[Line]:
    low, high = comparison.auc_interval or (None, None)
    yield Line(metric=metric, statistic="auc", value=comparison.auc, low=low, high=high, n=comparison.n)
    yield _plus_minus(metric, "difference", comparison.difference, comparison.difference_half_width, comparison.n)
    values = {"similarity": comparison.mean, "u": comparison.u, "p": comparison.p, "wilcoxon_p": comparison.wilcoxon_p}
    for statistic, value in (values | {"hit_rate": comparison.hit_rate}).items():
        yield Line(metric=metric, statistic=statistic, value=value, n=comparison.n)


def _plus_minus(metric: str, statistic: str, mean: float | None, half_width: float | None, n: int) -> Line:
    if mean is None or half_width is None:
        return Line(metric=metric, statistic=statistic, value=mean, n=n)
    return Line(metric=metric, statistic=statistic, value=mean, low=mean - half_width, high=mean + half_width, n=n)


_SIGNS = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "{": r"\{",
        "}": r"\}",
        "$": r"\$",
        "&": r"\&",
        "#": r"\#",
        "%": r"\%",
        "_": r"\_",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": "$<$",
        ">": "$>$",
        "|": r"\textbar{}",
        "[": "{[}",  # else it is the optional argument of the \\ before it
        "]": "{]}",
        "\u00a0": "~",
        "\u2212": "$-$",
        "±": r"$\pm$",
        "μ": r"$\mu$",
        "·": r"$\cdot$",
        "–": "--",
        "≤": r"$\leq$",
        "≥": r"$\geq$",
    }
)


def to_latex(tables: Sequence[Table]) -> str:
    r"""Write one `table` environment for each table, to be read with \\input; a cell's notes stand under its number."""
    head = "% Written by mucs-ray; needs \\usepackage{booktabs}.\n"
    return head + "".join(f"\n{_environment(table)}" for table in tables)


def _environment(table: Table) -> str:
    rows = "".join(f"    {' & '.join(map(_cell, row))} \\\\\n" for row in table.rows)
    return (
        "\\begin{table}[htbp]\n"
        "  \\centering\n"
        f"  \\caption{{{_escaped(table.title)} {_escaped(table.note)}}}\n"
        f"  \\label{{tab:{table.key}}}\n"
        f"  \\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}\n"
        "    \\toprule\n"
        f"    {' & '.join(map(_escaped, table.columns))} \\\\\n"
        "    \\midrule\n"
        f"{rows}"
        "    \\bottomrule\n"
        "  \\end{tabular}\n"
        "\\end{table}\n"
    )


def _cell(cell: Cell) -> str:
    text = f"\\textbf{{{_escaped(cell.text)}}}" if cell.strong else _escaped(cell.text)
    if not cell.note:
        return text
    small = (f"\\scriptsize {_escaped(part)}" for part in cell.note.split(NOTE_SEPARATOR))
    lines = " \\\\ ".join((text, *small))
    return f"\\shortstack[r]{{{lines}}}"


def _escaped(text: str) -> str:
    return text.translate(_SIGNS)
