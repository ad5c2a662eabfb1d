"""The numbers that the MUCS paper prints for its three data sets, to be shown beside those of a run (spec 16)."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

COLUMNS = ("ssim", "sscd", "lpips", "clip", "mean")


@dataclass(frozen=True, slots=True, kw_only=True)
class Printed:
    """A mean and its 95 % half-width, both in percent."""

    mean: float
    half_width: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Ablation:
    """One row of Table 2: the AUC by metric, and the change of the mean in percent."""

    auc: Mapping[str, float]
    change: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """The paper's numbers for one data set, as printed, by method (our names) and then by metric or "mean"."""

    recipe: str
    notes: Mapping[str, str]
    """Notes on where the paper contradicts itself, by method."""
    auc: Mapping[str, Mapping[str, float]]
    significant: Mapping[str, tuple[str, ...]]
    """The metrics that have an asterisk, by method."""
    ensembles: Mapping[str, Mapping[str, float]]
    difference: Mapping[str, Mapping[str, Printed]]
    minutes: Mapping[str, str]
    """The minutes that an item takes on one H100, as text, because the paper gives only "<0.1" for some methods."""
    within_overlap: Mapping[str, Printed]
    between_overlap: Mapping[frozenset[str], float]
    """The overlap of two methods, keyed by the pair; only ArtBench10 has this table."""
    ablations: Mapping[str, Ablation]
    """The ablations; only COCO has them."""


@cache
def published(recipe_name: str) -> Published | None:
    """Return the paper's numbers for the recipe of this name (cifar10, artbench10, coco), or None.

    The recipe's settings are not compared with the paper's.
    """
    tables = tomllib.loads(resources.files("mucs_ray.report").joinpath("published.toml").read_text("utf-8"))
    values: Mapping[str, Any] | None = tables.get(recipe_name)
    if values is None:
        return None
    return Published(
        recipe=recipe_name,
        notes=values.get("notes", {}),
        auc={method: _by_metric(row) for method, row in values["auc"].items()},
        significant={method: tuple(metrics) for method, metrics in values["significant"].items()},
        ensembles={name: _by_metric(row) for name, row in values["ensembles"].items()},
        difference={
            method: {metric: _printed(pair) for metric, pair in zip(COLUMNS, row, strict=True)}
            for method, row in values["difference"].items()
        },
        minutes={method: str(minutes) for method, minutes in values["minutes"].items()},
        within_overlap={method: _printed(pair) for method, pair in values["within_overlap"].items()},
        between_overlap={
            frozenset((a, b)): percent
            for a, row in values.get("between_overlap", {}).items()
            for b, percent in row.items()
        },
        ablations={
            name: Ablation(auc=dict(zip(COLUMNS[:4], row["auc"], strict=True)), change=row["change"])
            for name, row in values.get("ablations", {}).items()
        },
    )


def _by_metric(row: list[float]) -> Mapping[str, float]:
    return dict(zip(COLUMNS, row, strict=True))


def _printed(pair: list[float]) -> Printed:
    mean, half_width = pair
    return Printed(mean=mean, half_width=half_width)
