"""The report's section on the linear datamodeling score (LDS): a sentence, and the tables of all methods."""

from collections.abc import Mapping

from mucs_ray.evaluation.lds import LOSS, Lds, Score, SubsetScores
from mucs_ray.report.document import Cell, LdsSection, Table
from mucs_ray.report.wording import MINUS, label, listed, metric_name, note, signed

KINDS = {
    "pooled": "subsets of either kind, ranked together",
    "uniform": "subsets of single images",
    "blocks": "subsets of whole groups of look-alikes",
}
CEILING = "a second training"
"""The row of the table with what another model of the same subsets predicts."""


def lds_section(scores: Lds, labels: Mapping[str, str]) -> LdsSection:
    """Lay out the section; `labels` are the names of the methods in tables."""
    names = {method.method: label(method.method, labels) for method in scores.kinds[0].methods}
    candidates = (main_table(scores, names), difference_table(scores, names), kinds_table(scores, names))
    return LdsSection(headline=headline(scores, names), tables=tuple(table for table in candidates if table.rows))


def headline(scores: Lds, names: Mapping[str, str]) -> str:
    """Say in a sentence which method predicts best, by the first f that any subset changes."""
    of_all = scores.kinds[0]
    name = next((name for name in scores.names if of_all.unchanged[name] < scores.items), None)
    if name is None:
        return f"No training on a part of the images changed any of the {scores.items} generated images."
    ranked = sorted(of_all.methods, key=lambda method: method.scores[name].mean, reverse=True)
    best, *others = ranked
    task = f"what training on a part of the images does to {measured(name)}"
    number = f"{correlation(best.scores[name].mean)} ({interval(best.scores[name])})"
    sentence = f"{names[best.method]} predicts best {task}: LDS {number}"
    if best.scores[name].low <= 0:
        sentence = f"No method is shown to predict {task} better than chance; {names[best.method]} has LDS {number}"
    if others:
        sentence += f"; next is {names[others[0].method]} with {correlation(others[0].scores[name].mean)}"
    if name in of_all.ceiling:
        sentence += f"; {CEILING} of the same subsets has {correlation(of_all.ceiling[name])}"
    return f"{sentence}."


def main_table(scores: Lds, names: Mapping[str, str]) -> Table:
    """Lay out the LDS of each method by each f over all subsets, and what a second training has."""
    of_all = scores.kinds[0]
    shown = [name for name in scores.names if of_all.unchanged[name] < scores.items]
    best = {name: max(method.scores[name].mean for method in of_all.methods) for name in shown}
    rows = [
        (
            Cell(text=names[method.method]),
            *(score_cell(method.scores[name], strong=method.scores[name].mean == best[name]) for name in shown),
        )
        for method in of_all.methods
    ]
    if of_all.ceiling:
        texts = (correlation(of_all.ceiling[name]) if name in of_all.ceiling else "n/a" for name in shown)
        rows.append((Cell(text=CEILING), *(Cell(text=text) for text in texts)))
    return Table(
        key="lds",
        title="Do the scores predict what a model makes that was trained on a part of the images? (LDS)",
        note=note(
            f"The rank correlation, over {of_all.subsets} subsets of the training images, of the sum of a method's"
            " scores over the subset and what the model trained on it makes of the generated image: its similarity to"
            " the original one, or minus the loss of the original one; mean over"
            f" {scores.items} images. Subsets of single images and of whole groups of look-alikes are ranked apart."
            " 0 = no better than chance, higher is better. Small print: the 95 % interval when subsets and images are"
            " drawn again.",
            left_out(of_all),
            f"{CEILING.capitalize()}: the same correlation with another model of the same {of_all.repeats} subsets"
            " in place of the sum, that differs in its seed; a method can exceed it, up to about its square root."
            if of_all.ceiling
            else "",
        ),
        columns=("Method", *map(column, shown)),
        rows=tuple(rows),
    )


def difference_table(scores: Lds, names: Mapping[str, str]) -> Table:
    """Lay out by how much the LDS of each other method differs from that of the method that is compared with."""
    of_all = scores.kinds[0]
    shown = [name for name in scores.names if of_all.unchanged[name] < scores.items]
    return Table(
        key="lds-difference",
        title=f"LDS less that of {names[scores.versus]}",
        note=note(
            "The subsets and images that are drawn again are the same for both: an interval without 0 is a difference.",
            "It does not allow for the choice of the best of several methods.",
        ),
        columns=("Method", *map(column, shown)),
        rows=tuple(
            (Cell(text=names[method.method]), *(score_cell(method.differences[name]) for name in shown))
            for method in of_all.methods
            if shown and method.method != scores.versus
        ),
    )


def kinds_table(scores: Lds, names: Mapping[str, str]) -> Table:
    """Lay out the LDS over either kind of subsets, by the first f and by the loss."""
    kinds = scores.kinds[1:]
    columns = [
        (kind, name)
        for kind in kinds
        for name in dict.fromkeys((scores.names[0], LOSS))
        if kind.unchanged[name] < scores.items
    ]
    by_kind = {kind.kind: {method.method: method.scores for method in kind.methods} for kind in kinds}
    return Table(
        key="lds-kinds",
        title="LDS by the kind of subset",
        note=note(*(f"{kind.kind.capitalize()}: {kind.subsets} {KINDS[kind.kind]}." for kind in kinds)),
        columns=("Method", *(f"{kind.kind}, {column(name)}" for kind, name in columns)),
        rows=tuple(
            (Cell(text=text), *(score_cell(by_kind[kind.kind][method][name]) for kind, name in columns))
            for method, text in names.items()
            if columns
        ),
    )


def left_out(of_kind: SubsetScores) -> str:
    """Say how many images are left out because no subset changed them; "" if there are none."""
    counts = [f"{count} by {column(name)}" for name, count in of_kind.unchanged.items() if count]
    return f"Left out because no subset changed them: {listed(counts)}." if counts else ""


def measured(name: str) -> str:
    """Return in words what is predicted."""
    return "the loss of the generated images" if name == LOSS else f"the generated images (by {metric_name(name)})"


def column(name: str) -> str:
    """Return the title of the column of an f."""
    return f"{MINUS}loss" if name == LOSS else metric_name(name)


def score_cell(score: Score, *, strong: bool = False) -> Cell:
    """Lay out a number with its interval in small print."""
    return Cell(text=correlation(score.mean), note=interval(score), strong=strong)


def interval(score: Score) -> str:
    """Write ".12 to .27"."""
    return f"{correlation(score.low)} to {correlation(score.high)}"


def correlation(value: float) -> str:
    """Write a correlation as ".213" or "1.000", with a true minus sign."""
    text = signed(value, 3)
    return text.replace("0.", ".", 1) if abs(value) < 0.9995 else text
