"""The densities of one metric, estimated from similarities and drawn as inline SVG (spec 11.2, plots).

Random removal is a grey hill, and every method is a line in front of it. Colours come from the page's style sheet: `c1`
to `c6`, then the same colours dashed, then dotted.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Float
from scipy import stats

from mucs_ray.evaluation.outcome import MethodOutcome
from mucs_ray.report.document import Curve, Density
from mucs_ray.report.svg import Frame, drawing, round_ticks, tag
from mucs_ray.report.wording import label, metric_name

BANDWIDTH = 0.25
"""The bandwidth as a multiple of a curve's own standard deviation, as in the paper's plots."""
NUM_POINTS = 200
FLAT = 0.01
"""Values whose standard deviation is a smaller share of the pool's than this count as one value."""
WIDTH, HEIGHT = 340, 206
LEFT, RIGHT, TOP, BOTTOM = 8, 332, 6, 148
MEAN_STRIP = (BOTTOM + 5, BOTTOM + 15)
"""The means stand in a strip of their own, between the base line and the numbers."""
NUM_COLOURS, DASHES = 6, ("", " dashed", " dotted")
FILLED_UP_TO = 3
"""The largest number of methods whose hills are tinted; the tints of more methods would only mix."""


def densities(
    outcomes: Sequence[MethodOutcome], *, method_labels: Mapping[str, str], reference: str = "random"
) -> tuple[Density, ...]:
    """Estimate, for each metric, the curves of all methods over one range; items are pooled over the seeds.

    The reference comes first. The range extends one standard deviation of the pool beyond its values at each end, so
    that the curves end near zero.
    """
    figures = []
    for metric in outcomes[0].similarity if outcomes else ():
        samples = _samples(outcomes, metric, reference)
        pool = np.concatenate(list(samples.values()))
        spread = float(pool.std()) or FLAT * max(abs(float(pool[0])), 1.0)
        x = np.linspace(pool.min() - spread, pool.max() + spread, NUM_POINTS)
        curves = (
            Curve(
                label=label(method, method_labels),
                x=tuple(x.tolist()),
                y=tuple(_density(values, x, spread).tolist()),
                mean=float(values.mean()),
                reference=method == reference,
            )
            for method, values in samples.items()
        )
        figures.append(Density(metric=metric_name(metric), curves=tuple(curves)))
    return tuple(figures)


def _samples(outcomes: Sequence[MethodOutcome], metric: str, reference: str) -> dict[str, Float[np.ndarray, " n"]]:
    parts: dict[str, list[np.ndarray]] = {}
    for outcome in sorted(outcomes, key=lambda outcome: outcome.method != reference):
        parts.setdefault(outcome.method, []).append(np.asarray(outcome.similarity[metric], dtype=np.float64))
    return {method: np.concatenate(several) for method, several in parts.items()}


def _density(values: Float[np.ndarray, " n"], x: Float[np.ndarray, " x"], spread: float) -> Float[np.ndarray, " x"]:
    """Estimate a density. Values that are all (nearly) equal have no bandwidth of their own and get that of the pool.

    So a single item, or a method that changed all images alike, is a bump that does not dwarf the other curves.
    """
    if values.std() <= FLAT * spread:
        return stats.norm.pdf(x, loc=values.mean(), scale=BANDWIDTH * spread)
    return stats.gaussian_kde(values, bw_method=BANDWIDTH)(x)


def curve_styles(densities: Iterable[Density]) -> dict[str, str]:
    """Return the style classes of each label, in order of appearance; they are the same in all figures.

    References come first.
    """
    curves = [curve for density in densities for curve in density.curves]
    styles = {curve.label: "reference" for curve in curves if curve.reference}
    methods = dict.fromkeys(curve.label for curve in curves if curve.label not in styles)
    for index, name in enumerate(methods):
        colour, dash = index % NUM_COLOURS, index // NUM_COLOURS % len(DASHES)
        styles[name] = f"c{colour + 1}{DASHES[dash]}"
    return styles


def density_plot(density: Density, styles: Mapping[str, str]) -> str:
    """Draw all curves on one axis; the highest density of all of them touches the top."""
    values = [value for curve in density.curves for value in (*curve.x, curve.mean)]
    highest = max((height for curve in density.curves for height in curve.y), default=0.0)
    frame = Frame(
        x_range=(min(values, default=0.0), max(values, default=1.0)),
        y_range=(0.0, highest or 1.0),
        right=RIGHT,
        left=LEFT,
        top=TOP,
        bottom=BOTTOM,
    )
    methods = [curve for curve in density.curves if not curve.reference]
    tint = " tinted" if len(methods) <= FILLED_UP_TO else ""
    back_to_front = [curve for curve in density.curves if curve.reference] + methods[::-1]
    parts = [_hill(frame, curve, f"curve {styles[curve.label]}{tint}") for curve in back_to_front]
    parts += [*_axis(frame), *(_mean(frame, curve, styles[curve.label]) for curve in back_to_front)]
    means = ", ".join(f"{curve.label} {_number(curve.mean)}" for curve in density.curves)
    return drawing(f"{density.metric}: means {means}", parts, width=WIDTH, height=HEIGHT)


def swatch(style: str) -> str:
    """Draw the line of a legend entry."""
    line = tag("line", x1=1, x2=25, y1=6, y2=6, class_=f"curve {style}")
    return f'<svg class="plot swatch" viewBox="0 0 26 12" width="26" height="12" aria-hidden="true">{line}</svg>'


def _hill(frame: Frame, curve: Curve, style: str) -> str:
    """Draw the curve and the area under it; the style sheet decides what is filled."""
    points = [(frame.x(x), frame.y(y)) for x, y in zip(curve.x, curve.y, strict=True)]
    if not points:
        return ""
    line = " ".join(f"{x:g},{y:g}" for x, y in points)
    area = f"{points[0][0]:g},{BOTTOM} {line} {points[-1][0]:g},{BOTTOM}"
    shapes = tag("polygon", points=area) + tag("polyline", points=line)
    return f'<g class="{style}">{_title(curve)}{shapes}</g>'


def _mean(frame: Frame, curve: Curve, style: str) -> str:
    x = frame.x(curve.mean)
    line = tag("line", x1=x, x2=x, y1=MEAN_STRIP[0], y2=MEAN_STRIP[1])
    return f'<g class="mean {style}">{_title(curve)}{line}</g>'


def _title(curve: Curve) -> str:
    return tag("title", f"{curve.label}: mean {_number(curve.mean)}")


def _axis(frame: Frame) -> list[str]:
    parts = [tag("line", x1=LEFT, x2=RIGHT, y1=BOTTOM, y2=BOTTOM, class_="base")]
    for value, text in round_ticks(*frame.x_range, 5):
        x = frame.x(value)
        parts.append(tag("line", x1=x, x2=x, y1=BOTTOM, y2=BOTTOM + 4, class_="base"))
        parts.append(tag("text", text, x=x, y=BOTTOM + 31, class_="tick", text_anchor="middle"))
    label = "similarity (further left = changed more)"
    middle = (LEFT + RIGHT) / 2
    return [*parts, tag("text", label, x=middle, y=HEIGHT - 4, class_="axis", text_anchor="middle")]


def _number(value: float) -> str:
    return f"{value:.3g}".replace("-", "\u2212")
