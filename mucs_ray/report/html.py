"""The report as one self-contained HTML page without JavaScript."""

import math
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mucs_ray.report.density import curve_styles, density_plot, swatch
from mucs_ray.report.document import (
    NOTE_SEPARATOR,
    Answer,
    Grid,
    GridCell,
    GridRow,
    ItemSection,
    Report,
    ScoreMatrix,
    SharedImage,
    Table,
    Unlearning,
)
from mucs_ray.report.group_plots import score_shades, share_bars
from mucs_ray.report.pictures import Gallery, sharpness, thumbnail
from mucs_ray.report.svg import score_histogram, unlearning_curve

NBSP = "\u00a0"
GRID_COLUMNS = 10
"""The largest number of pictures side by side, where a page or a sheet of paper is wide enough."""
NUMBER = re.compile(r"[\s(]*[<>≤≥≈~±+\-\u2212]*\s*\.?\d")
HALF_PAGE_CHARACTERS = 74
"""The number of characters that fit into a table beside another one, at the type size of the style sheet."""
BETWEEN_COLUMNS_CHARACTERS = 6
GAPS = ("", "-", "–", "—", "n/a")
MARKS = "*†‡"


def render(report: Report) -> str:
    """Render the whole page as one string; all texts of the report count as foreign and are escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["thumbnail"] = thumbnail
    environment.filters["sharpness"] = sharpness
    environment.filters["number"] = lambda number: f"{number:,}"
    return environment.get_template("template.html.j2").render(
        report=report,
        gallery=Gallery(),
        several=len(report.methods) > 1 or any(len(item.answers) > 1 for item in report.items),
        unlearns=any(answer.unlearning is not None for item in report.items for answer in item.answers),
        stopped=lambda item: any(_stopped(answer) for answer in item.answers),
        score=_score_writers(report.items),
        curve=_curve,
        histogram=_histogram,
        outcome=_outcome,
        columns=_columns,
        bar=_bar_percent,
        curve_styles=curve_styles,
        density_plot=density_plot,
        swatch=swatch,
        share_bars=_share_bars,
        score_shades=_score_shades,
        bands=_bands,
        numeric=_numeric_columns,
        wide=_is_wide,
        marks=_marks,
        parts=lambda note: note.split(NOTE_SEPARATOR) if note else (),
    )


def _stopped(answer: Answer) -> bool:
    return answer.unlearning is not None and answer.unlearning.outcome == "bound hit"


def _subject(item: ItemSection, answer: Answer) -> str:
    subject = f"{item.number}: {item.label}" if item.label else str(item.number)
    return f"{subject} ({answer.method})" if len(item.answers) > 1 else subject


def _curve(item: ItemSection, answer: Answer) -> str:
    if answer.unlearning is None:
        return ""
    return unlearning_curve(answer.unlearning, title=f"Loss while unlearning generated image {_subject(item, answer)}")


def _histogram(item: ItemSection, answer: Answer, report: Report) -> str:
    title = f"Scores of all training images for generated image {_subject(item, answer)}"
    return score_histogram(answer.histogram, top_k=report.top_k, title=title)


def _share_bars(image: SharedImage) -> str:
    return share_bars(image.bars, title=f"Shares of groups in generated image {image.number}")


def _score_shades(matrix: ScoreMatrix) -> str:
    return score_shades(matrix, title=f"Scores of all groups by {matrix.title}")


def _outcome(unlearning: Unlearning) -> str:
    """Describe in one sentence how the unlearning ended."""
    after = f"{unlearning.steps:,} update{'' if unlearning.steps == 1 else 's'}, {_duration(unlearning.seconds)}"
    target = _percent(unlearning.target, unlearning.null_loss)
    if unlearning.outcome == "reached":
        return f"Reached {target} of the null loss after {after}."
    last = _percent(unlearning.item_loss[-1] if unlearning.item_loss else 0.0, unlearning.null_loss)
    if unlearning.outcome == "fixed":
        return f"Unlearned for the recipe's number of updates, {after}: {last} of the null loss."
    return (
        f"Stopped by the bound after {after}, at {last} of the null loss instead of {target}. Read this ranking with"
        " care."
    )


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.3g}{NBSP}%" if whole else f"{part:.3g}"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f}{NBSP}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}{NBSP}h {minutes}{NBSP}min" if hours else f"{minutes}{NBSP}min {rest}{NBSP}s"


def _score_writers(items: Iterable[ItemSection]) -> dict[str, Callable[[float], str]]:
    """Return, by method, how its scores are written: the scales of two methods may have nothing in common."""
    highest: dict[str, list[float]] = {}
    for answer in (answer for item in items for answer in item.answers):
        of_method = highest.setdefault(answer.method, [])
        if answer.ranked:
            of_method.append(max(abs(ranked.score) for ranked in answer.ranked))
    return {method: _score_writer(scores) for method, scores in highest.items()}


def _score_writer(highest: Iterable[float]) -> Callable[[float], str]:
    """Choose the decimals: four digits for the highest score of the item with the smallest ones; 4 to 6 near 1."""
    magnitudes = [math.floor(math.log10(score)) for score in highest if score > 0] or [0]
    if min(magnitudes) < -5 or max(magnitudes) > 5:
        return lambda score: f"{score:.2e}".replace("-", "\u2212")
    fewest = min(max(4 - max(magnitudes), 0), 4)
    decimals = min(max(3 - min(magnitudes), fewest), 6)
    return lambda score: _signed(f"{score:.{decimals}f}")


def _signed(number: str) -> str:
    """Write a true minus sign, and none before a zero."""
    return number.replace("-", "\u2212") if number.strip("-0.") else number.lstrip("-")


def _columns(answer: Answer) -> int:
    """Choose full rows where possible: eight small columns for 8 or 16 pictures, else six."""
    return 8 if answer.ranked and len(answer.ranked) % 8 == 0 else 6


def _bar_percent(score: float, answer: Answer) -> str:
    """Return the length of the bar under a picture, in percent of the highest score."""
    highest = max(ranked.score for ranked in answer.ranked)
    return f"{100 * min(max(score / highest, 0.0), 1.0):.1f}" if highest > 0 else "0"


def _bands(grid: Grid) -> Iterator[tuple[int, list[tuple[GridRow, list[GridCell | None]]]]]:
    """Cut the grid into bands of equally many columns and yield (number of the first image, rows) for each.

    None fills the last band, and rows that are too short, so that an image never leaves its column.
    """
    num_images = max((len(row.cells) for row in grid.rows), default=0)
    num_bands = math.ceil(num_images / GRID_COLUMNS)
    width = math.ceil(num_images / num_bands) if num_bands else 0
    for first in range(0, num_images, width or 1):
        filled = [(row, [*row.cells[first : first + width], *[None] * width][:width]) for row in grid.rows]
        yield first + 1, filled


def _numeric_columns(table: Table) -> list[bool]:
    """Tell which columns hold numbers, and perhaps gaps; the first one, which heads the rows, never does."""
    columns = [[row[at].text for row in table.rows if row[at].text not in GAPS] for at in range(len(table.columns))]
    return [at > 0 and bool(texts) and all(map(NUMBER.match, texts)) for at, texts in enumerate(columns)]


def _is_wide(table: Table) -> bool:
    """Return True if a table needs the whole width of the page."""
    rows = [[(cell.text, *cell.note.split(NOTE_SEPARATOR)) for cell in row] for row in table.rows]
    entries = [[head, *(text for row in rows for text in row[at])] for at, head in enumerate(table.columns)]
    longest = [max(map(len, column)) for column in entries]
    return sum(longest) + BETWEEN_COLUMNS_CHARACTERS * (len(longest) - 1) > HALF_PAGE_CHARACTERS


def _marks(text: str) -> tuple[str, str]:
    """Separate a number from its marks of significance, which must not move it out of its column."""
    number = text.rstrip(MARKS)
    return number, text[len(number) :]
