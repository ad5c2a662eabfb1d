"""Renders a report as one self-contained HTML page without JavaScript."""

import base64
import io
import math
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from mucs_ray.report.document import ItemSection, Picture, Report, Unlearning
from mucs_ray.report.svg import score_histogram, unlearning_curve

PIXELATED_BELOW = 128
MAX_THUMBNAIL = 128
NBSP = "\u00a0"


def render(report: Report) -> str:
    """The whole page as one string; all texts of the report count as foreign and are escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    decimals = _score_decimals(report)
    environment.filters["png"] = png_data_uri
    environment.filters["thumbnail"] = _thumbnail
    environment.filters["score"] = lambda score: _signed(f"{score:.{decimals}f}")
    environment.filters["number"] = lambda number: f"{number:,}"
    return environment.get_template("template.html.j2").render(
        report=report,
        unlearns=any(item.unlearning is not None for item in report.items),
        curve=_curve,
        histogram=_histogram,
        outcome=_outcome,
        columns=_columns,
        bar=_bar_percent,
        sharp=lambda image: "sharp" if max(image.shape[1:]) < PIXELATED_BELOW else "smooth",
    )


def png_data_uri(image: Picture) -> str:
    """The picture at its own size as a lossless PNG data URI."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(np.moveaxis(image, 0, -1))).save(buffer, format="png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _thumbnail(image: Picture) -> Picture:
    """The picture itself, or for large pictures a copy small enough to be in the page twice."""
    if max(image.shape[1:]) <= MAX_THUMBNAIL:
        return image
    small = Image.fromarray(np.ascontiguousarray(np.moveaxis(image, 0, -1)))
    small.thumbnail((MAX_THUMBNAIL, MAX_THUMBNAIL))
    return np.moveaxis(np.asarray(small), -1, 0)


def _curve(item: ItemSection) -> str:
    if item.unlearning is None:
        return ""
    subject = f"{item.number}: {item.label}" if item.label else str(item.number)
    return unlearning_curve(item.unlearning, title=f"Loss while unlearning generated image {subject}")


def _histogram(item: ItemSection, report: Report) -> str:
    subject = f"{item.number}: {item.label}" if item.label else str(item.number)
    title = f"Scores of all training images for generated image {subject}"
    return score_histogram(item.histogram, top_k=report.top_k, title=title)


def _outcome(unlearning: Unlearning) -> str:
    """One sentence on how the unlearning ended."""
    after = f"{unlearning.steps:,} update{'' if unlearning.steps == 1 else 's'}, {_duration(unlearning.seconds)}"
    target = _percent(unlearning.target, unlearning.null_loss)
    if unlearning.outcome == "reached":
        return f"Reached {target} of the null loss after {after}."
    last = unlearning.item_loss[-1] if unlearning.item_loss else 0.0
    return (
        f"Stopped by the bound after {after}, at {_percent(last, unlearning.null_loss)} of the null loss "
        f"instead of {target}. Read this ranking with care."
    )


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.3g}{NBSP}%" if whole else f"{part:.3g}"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f}{NBSP}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}{NBSP}h {minutes}{NBSP}min" if hours else f"{minutes}{NBSP}min {rest}{NBSP}s"


def _signed(number: str) -> str:
    """A true minus sign, and none before a zero."""
    return number.replace("-", "\u2212") if number.strip("-0.") else number.lstrip("-")


def _score_decimals(report: Report) -> int:
    """Four significant digits for the highest score of the item with the smallest ones; 4 to 6 decimals."""
    highest = [max(abs(ranked.score) for ranked in item.ranked) for item in report.items if item.ranked]
    smallest = min((score for score in highest if score > 0), default=1.0)
    return min(max(3 - math.floor(math.log10(smallest)), 4), 6)


def _columns(item: ItemSection) -> int:
    """Full rows where possible: eight small columns for 8 or 16 pictures, else six."""
    return 8 if item.ranked and len(item.ranked) % 8 == 0 else 6


def _bar_percent(score: float, item: ItemSection) -> str:
    """The length of the bar under a picture, relative to the highest score."""
    highest = max(ranked.score for ranked in item.ranked)
    return f"{100 * min(max(score / highest, 0.0), 1.0):.1f}" if highest > 0 else "0"
