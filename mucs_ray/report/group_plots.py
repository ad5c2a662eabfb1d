"""The plots of groups as inline SVG: shares as bars with intervals, and the scores of all images as shades."""

from collections.abc import Sequence
from math import ceil

from mucs_ray.report.document import ScoreMatrix, ShareBar
from mucs_ray.report.svg import drawing, tag
from mucs_ray.report.wording import whole_percent

BAR_WIDTH, BAR_LEFT, BAR_RIGHT, ROW = 336, 104, 224, 22
"""Of the plot of shares: its width, the ends of the axis, and the height of a group."""
CHARACTERS = 15
"""The number of characters of a group's name that are shown; the whole name is shown on hovering."""
MATRIX_WIDTH, MATRIX_HEIGHT, MATRIX_LEFT = 360, 420, 26
LARGEST_CELL = 30
SLANT = 45
ROW_LABEL_PX, COLUMN_LABEL_PX = 12, 18
"""The least height of a row, and width of a column, of which every label can be read."""


def share_bars(bars: Sequence[ShareBar], *, title: str) -> str:
    """Draw a bar for each group from 0 to its share, and across its end a line from the low to the high end."""
    parts = []
    for number, bar in enumerate(bars):
        top, middle = number * ROW, number * ROW + ROW / 2
        low, end, high = (BAR_LEFT + value * (BAR_RIGHT - BAR_LEFT) for value in (bar.low, bar.share, bar.high))
        told = f"{whole_percent(bar.share)} ({100 * bar.low:.0f} to {100 * bar.high:.0f})"
        shapes = [
            tag("title", f"{bar.group}: {told}"),
            tag("text", short(bar.group), x=BAR_LEFT - 8, y=middle + 4, class_="tick", text_anchor="end"),
            tag("rect", x=BAR_LEFT, y=top + 5, width=BAR_RIGHT - BAR_LEFT, height=ROW - 10, class_="track"),
            tag("rect", x=BAR_LEFT, y=top + 5, width=round(end - BAR_LEFT, 2), height=ROW - 10, class_="tail"),
            tag("line", x1=round(low, 2), x2=round(high, 2), y1=middle, y2=middle, class_="whisker"),
            *(
                tag("line", x1=round(x, 2), x2=round(x, 2), y1=middle - 3, y2=middle + 3, class_="whisker")
                for x in (low, high)
            ),
            tag("text", told, x=BAR_RIGHT + 8, y=middle + 4, class_="tick"),
        ]
        parts.append(f"<g>{''.join(shapes)}</g>")
    return drawing(title, parts, width=BAR_WIDTH, height=max(1, len(bars)) * ROW)


def score_shades(matrix: ScoreMatrix, *, title: str) -> str:
    """Draw a cell for each image (row) and group (column), the darker the larger the score is in its row.

    Scores below 0 have another colour; a group without a score has an empty frame.
    """
    num_groups, num_images = len(matrix.groups), len(matrix.scores)
    side = min(LARGEST_CELL, max(5, MATRIX_WIDTH // max(1, num_groups)))
    height = min(side, max(5, MATRIX_HEIGHT // max(1, num_images)))
    longest = max((len(short(name)) for name in matrix.groups), default=0)
    head = 12 + ceil(longest * 5)  # of a label that stands aslant
    parts = []
    every = ceil(COLUMN_LABEL_PX / side)
    for column, name in enumerate(matrix.groups[::every]):
        x = MATRIX_LEFT + (column * every + 0.5) * side
        turned = f"rotate(-{SLANT} {x} {head - 6})"
        label = tag("text", short(name), x=x, y=head - 6, class_="tick", transform=turned)
        parts.append(f"<g>{tag('title', name)}{label}</g>")
    every = ceil(ROW_LABEL_PX / height)
    for row, scores in enumerate(matrix.scores):
        y = head + row * height
        if row % every == 0:
            parts.append(
                tag("text", str(row), x=MATRIX_LEFT - 6, y=y + height / 2 + 4, class_="tick", text_anchor="end")
            )
        largest = max((abs(score) for score in scores if score is not None), default=0.0) or 1.0
        for column, (name, score) in enumerate(zip(matrix.groups, scores, strict=True)):
            place = {"x": MATRIX_LEFT + column * side, "y": y, "width": side - 1, "height": height - 1}
            told = "no score" if score is None else f"{score:.4g}".replace("-", "\u2212")
            words = tag("title", f"image {row}, {name}: {told}")
            shade = {"class_": "absent"} if score is None else shaded(score / largest)
            parts.append(f"<g>{words}{tag('rect', **place, **shade)}</g>")
    width = MATRIX_LEFT + num_groups * side + round(longest * 5)
    return drawing(title, parts, width=width, height=head + num_images * height)


def shaded(relative: float) -> dict[str, object]:
    """Return the colour and opacity of a score in units of the largest of its row."""
    return {"class_": "above" if relative >= 0 else "below", "fill_opacity": f"{abs(relative):.2f}"}


def short(name: str) -> str:
    """Return the beginning of a name."""
    return name if len(name) <= CHARACTERS else f"{name[: CHARACTERS - 1]}…"
