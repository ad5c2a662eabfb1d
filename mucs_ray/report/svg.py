"""The plots of one answer as inline SVG; colours and type come from the page's style sheet."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from mucs_ray.report.document import Histogram, Unlearning

WIDTH, HEIGHT = 400, 236
LEFT, TOP, BOTTOM = 44, 36, 194
LABEL_GAP, LABEL_WIDTH = 15, 122
EMPTY_LOG_COUNT = math.log10(0.5)
"""The foot of the log axis, which is below 1 so that a bar of one image can be seen."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A map from data ranges to the plot area."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    right: float
    left: float = LEFT
    top: float = TOP
    bottom: float = BOTTOM

    def x(self, value: float) -> float:
        """Return the horizontal position of a value; the middle if the range is a single value."""
        low, high = self.x_range
        share = (value - low) / (high - low) if high > low else 0.5
        return round(self.left + share * (self.right - self.left), 2)

    def y(self, value: float) -> float:
        """Return the vertical position of a value; larger values lie higher, which is a smaller y."""
        low, high = self.y_range
        share = (value - low) / (high - low) if high > low else 0.5
        return round(self.bottom - share * (self.bottom - self.top), 2)


def unlearning_curve(unlearning: Unlearning, *, title: str) -> str:
    """Draw the loss of the generated image rising to the target line, with the training loss as the quieter line."""
    item, train = unlearning.item_loss, unlearning.train_loss
    updates = max(len(item), len(train), 1)
    top = max(*item, *train, unlearning.target, 0.0) or 1.0
    low = min(*item, *train, 0.0, 0.0)
    frame = Frame(x_range=(1, updates), y_range=(low, low + (top - low) * 1.14), right=WIDTH - LABEL_WIDTH)
    end = "hit" if unlearning.outcome == "bound hit" else "reached"
    target_y = frame.y(unlearning.target)
    parts = [
        *_y_axis(frame, [(value, text) for value, text in round_ticks(low, top, 4)], "loss"),
        *_x_axis(frame, round_ticks(1, updates, 5, whole=True), "update"),
        tag("line", x1=LEFT, x2=frame.right, y1=target_y, y2=target_y, class_="target"),
        tag("text", f"target {unlearning.target:.3g}", x=LEFT + 6, y=target_y - 6, class_="quiet"),
        _line(frame, train, "train"),
        _line(frame, item, "item"),
    ]
    ends = [frame.y(series[-1]) for series in (item, train) if series]
    labels = [("generated image", "accent")] * bool(item) + [("training batches", "quiet")] * bool(train)
    for position, (text, style) in zip(_spread(ends), labels, strict=True):
        parts.append(tag("text", text, x=frame.right + 9, y=round(position + 4, 2), class_=style))
    if item:
        parts.append(tag("circle", cx=frame.x(len(item)), cy=frame.y(item[-1]), r=3.5, class_=f"end {end}"))
    return drawing(title, parts)


def score_histogram(histogram: Histogram, *, top_k: int, title: str) -> str:
    """Draw the counts on a log axis; everything right of the k-th score is coloured. Equal edges make one bar."""
    edges, counts = histogram.edges, histogram.counts
    low, high = min(*edges, histogram.top_k_score), max(*edges, histogram.top_k_score)
    constant = high <= low
    if constant:
        margin = max(abs(low), 1.0) / 10
        edges, counts = (low - margin, low + margin), (sum(counts),)
        low, high = low - 10 * margin, high + 10 * margin
    log_top = max(1.0, math.log10(max(*counts, 1, 1)))
    frame = Frame(x_range=(low, high), y_range=(EMPTY_LOG_COUNT, log_top + 0.05), right=WIDTH - 8)
    y_ticks = [(float(power), _count(10**power)) for power in range(int(log_top) + 1)]
    middle = (low + high) / 2
    x_ticks = [(middle, f"{middle:.4g}")] if constant else round_ticks(low, high, 5)
    marker = frame.x(histogram.top_k_score)
    parts = [*_y_axis(frame, y_ticks, "training images, log scale")]
    for left, right, count in zip(edges[:-1], edges[1:], counts, strict=True):
        if count:
            scores = f"{middle:.4g}" if constant else f"{left:.4g} to {right:.4g}"
            parts.append(_bar(frame, (left, right), count, marker, scores))
    rightmost = marker > (LEFT + frame.right) / 2
    parts += [
        *_x_axis(frame, x_ticks, "score (higher = more influential)"),
        tag("line", x1=marker, x2=marker, y1=TOP - 14, y2=BOTTOM, class_="marker"),
        tag(
            "text",
            f"top {top_k:,}: from {histogram.top_k_score:.3g}".replace("-", "\u2212"),
            x=marker - 6 if rightmost else marker + 6,
            y=TOP - 6,
            class_="accent",
            text_anchor="end" if rightmost else "start",
        ),
    ]
    return drawing(title, parts)


def _bar(frame: Frame, span: tuple[float, float], count: int, marker: float, scores: str) -> str:
    """Draw one bin, split where the k-th score cuts it."""
    x0, x1, y = frame.x(span[0]), frame.x(span[1]), frame.y(math.log10(count))
    x1 = max(x1 - 0.75, x0 + 0.75)
    rects = [
        tag("rect", x=start, y=y, width=round(stop - start, 2), height=round(BOTTOM - y, 2), class_=style)
        for start, stop, style in ((x0, min(x1, marker), "rest"), (max(x0, marker), x1, "tail"))
        if stop > start
    ]
    images = "1 image" if count == 1 else f"{count:,} images"
    return f"<g>{tag('title', f'{images}, score {scores}')}{''.join(rects)}</g>"


def _line(frame: Frame, values: Sequence[float], style: str) -> str:
    points = " ".join(f"{frame.x(update):g},{frame.y(value):g}" for update, value in enumerate(values, start=1))
    return tag("polyline", points=points, class_=style)


def _y_axis(frame: Frame, ticks: Sequence[tuple[float, str]], label: str) -> list[str]:
    parts = [tag("text", label, x=0, y=11, class_="axis")]
    for value, text in ticks:
        y = frame.y(value)
        parts.append(tag("line", x1=LEFT, x2=frame.right, y1=y, y2=y, class_="grid"))
        parts.append(tag("text", text, x=LEFT - 8, y=round(y + 4, 2), class_="tick", text_anchor="end"))
    return parts


def _x_axis(frame: Frame, ticks: Sequence[tuple[float, str]], label: str) -> list[str]:
    parts = [tag("line", x1=LEFT, x2=frame.right, y1=BOTTOM, y2=BOTTOM, class_="base")]
    for value, text in ticks:
        parts.append(tag("line", x1=frame.x(value), x2=frame.x(value), y1=BOTTOM, y2=BOTTOM + 4, class_="base"))
        parts.append(tag("text", text, x=frame.x(value), y=BOTTOM + 18, class_="tick", text_anchor="middle"))
    middle = (LEFT + frame.right) / 2
    return [*parts, tag("text", label, x=middle, y=HEIGHT - 4, class_="axis", text_anchor="middle")]


def round_ticks(low: float, high: float, about: int, *, whole: bool = False) -> list[tuple[float, str]]:
    """Return round numbers within [low, high], roughly `about` of them, with one number of decimals."""
    if high <= low:
        return [(low, f"{low:.4g}")]
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.8)
    step = max(1.0, step) if whole else step
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    values = [round(index * step, decimals) for index in range(first, last + 1)]
    if whole and values[0] != low and values[0] - low >= step / 2:
        values.insert(0, low)
    return [(value, f"{value:,.{decimals}f}".replace("-", "\u2212")) for value in values]


def _count(value: int) -> str:
    for size, suffix in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if value >= size:
            return f"{value // size}{suffix}"
    return str(value)


def _spread(positions: Sequence[float]) -> list[float]:
    """Move the positions apart, inside the plot area, if two labels at them would touch."""
    if len(positions) < 2 or abs(positions[0] - positions[1]) >= LABEL_GAP:
        return list(positions)
    middle = min(max(sum(positions) / 2, TOP + LABEL_GAP / 2), BOTTOM - LABEL_GAP / 2)
    above, below = middle - LABEL_GAP / 2, middle + LABEL_GAP / 2
    return [above, below] if positions[0] <= positions[1] else [below, above]


def drawing(title: str, parts: Sequence[str], *, width: int = WIDTH, height: int = HEIGHT) -> str:
    """Draw one figure whose `title` is read aloud and shown on hovering."""
    head = f'<svg class="plot" role="img" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
    return f"{head}{tag('title', title)}{''.join(parts)}</svg>"


def tag(name: str, text: str = "", /, **attributes: object) -> str:
    """Write one element. Text and attribute values are escaped, `class_` is class, and `_` in names becomes `-`."""
    pairs = "".join(f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"' for key, value in attributes.items())
    return f"<{name}{pairs}>{escape(text)}</{name}>" if text else f"<{name}{pairs}/>"
