"""How similar the regenerated images still are: one density a metric, one curve a method (spec 11.2, plots)."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from scipy import stats

from mucs_ray.evaluation.outcome import Outcome
from mucs_ray.report.document import Curve, Density
from mucs_ray.report.wording import label, metric_name

BANDWIDTH = 0.25
"""Of a curve's own standard deviation, as in the paper's plots."""
NUM_POINTS = 200
FLAT = 0.01
"""Below this share of the pool's standard deviation a method's values count as one value."""


def densities(
    outcomes: Sequence[Outcome], *, method_labels: Mapping[str, str], reference: str = "random"
) -> tuple[Density, ...]:
    """For each metric the curves of all methods over one range, items pooled over the seeds, the reference first.

    The range is one standard deviation of the pool wider than its values at each end: the curves end near zero.
    """
    found = []
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
        found.append(Density(metric=metric_name(metric), curves=tuple(curves)))
    return tuple(found)


def _samples(outcomes: Sequence[Outcome], metric: str, reference: str) -> dict[str, Float[np.ndarray, " n"]]:
    parts: dict[str, list[np.ndarray]] = {}
    for outcome in sorted(outcomes, key=lambda outcome: outcome.method != reference):
        parts.setdefault(outcome.method, []).append(np.asarray(outcome.similarity[metric], dtype=np.float64))
    return {method: np.concatenate(several) for method, several in parts.items()}


def _density(values: Float[np.ndarray, " n"], x: Float[np.ndarray, " x"], spread: float) -> Float[np.ndarray, " x"]:
    """Values that are all (nearly) equal have no bandwidth of their own: they get that of the pool.

    So a single item, or a method that changed all images alike, is a bump at its place that does not dwarf the others.
    """
    if values.std() <= FLAT * spread:
        return stats.norm.pdf(x, loc=values.mean(), scale=BANDWIDTH * spread)
    return stats.gaussian_kde(values, bw_method=BANDWIDTH)(x)
