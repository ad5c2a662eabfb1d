"""The methods there are: one line each, for `mucs-ray methods`, for checking names, and for building their stages.

A variant is a method under other recipe values; what it shares with the method it varies is computed once. An ensemble
adds up the ranks of other methods. A method of somebody else's is named MODULE:CLASS, or comes from an installed
package's entry point in the group "mucs_ray.methods".
"""

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from mucs_ray.attribution.abu import AbU
from mucs_ray.attribution.base import Attributor
from mucs_ray.attribution.clip import CLIP
from mucs_ray.attribution.condition import Condition
from mucs_ray.attribution.das import DAS
from mucs_ray.attribution.dino import DINO
from mucs_ray.attribution.dtrak import DTRAK
from mucs_ray.attribution.ensemble import WEIGHTS
from mucs_ray.attribution.forward_inf import ForwardINF
from mucs_ray.attribution.mucs import MUCS
from mucs_ray.attribution.pixel import Pixel
from mucs_ray.attribution.random import Random
from mucs_ray.attribution.screen import ScreenedMUCS
from mucs_ray.errors import InputError

ENTRY_POINTS = "mucs_ray.methods"


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One line about a method; its stages are in the folder attribute/NAME."""

    name: str
    label: str
    """In tables and figures."""
    summary: str
    needs: str
    cost: str
    source: str
    attributor: type[Attributor] | None = None
    """None for an ensemble."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Recipe values under which it runs, by dotted key; they go before the recipe's own."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Of an ensemble: its members. Empty if they are learned."""

    @property
    def cost_class(self) -> str:
        """In a word, from the cheapest: none, ranks, pass, gradients (one a training image), unlearning (and losses
        of every training image under every item's model).
        """
        if self.attributor is None:
            return "ranks"
        parts = self.attributor.parts
        if any(part.hook == "adapt" and part.uses_model for part in parts):
            return "gradients" if parts[0].hook == "features" else "unlearning"
        return "pass" if parts else "none"

    def facts(self) -> dict[str, Any]:
        """For --json."""
        shown = {
            name: getattr(self, name) for name in ("name", "label", "summary", "needs", "cost_class", "cost", "source")
        }
        return {**shown, "settings": dict(self.settings), "members": dict(self.weights)}


def method_of(attributor: type[Attributor], *, name: str | None = None, **settings: Any) -> Method:  # noqa: ANN401
    """The line about a class."""
    kept = {key: getattr(attributor, key) for key in ("label", "summary", "needs", "cost", "source")}
    return Method(name=name or attributor.name, attributor=attributor, **kept, **settings)


def variant(
    attributor: type[Attributor],
    name: str,
    summary: str,
    settings: Mapping[str, Any],
    source: str = "",
    *,
    cost: str = "",
) -> Method:
    """A method under other recipe values."""
    return Method(
        name=f"{attributor.name}/{name}",
        label=f"{attributor.label} {name}",
        summary=summary,
        needs=attributor.needs,
        cost=cost or attributor.cost,
        source=source or attributor.source,
        attributor=attributor,
        settings=settings,
    )


def ensemble(name: str, weights: Mapping[str, float], summary: str) -> Method:
    """Ranks of other methods, added up."""
    needs = f"the scores of {', '.join(weights)}" if weights else "finished tests on other seeds, ensemble.learned_from"
    return Method(
        name=f"ensemble/{name}",
        label=f"Ensemble {name}",
        summary=summary,
        needs=needs,
        cost="that of its members",
        source="MUCS, ensembles",
        settings=UNCORRECTED,
        weights=weights,
    )


TABLE_2 = "MUCS, table 2"
PUBLISHED_FORWARD_INF = {"score.sigmas": "training", "score.noise": "independent", "rank.measure": "difference"}
WHOLE_SCHEDULE = {"score.sigmas": "schedule", "score.keep": 1.0}
PUBLISHED_ABU = {**WHOLE_SCHEDULE, "score.noise": "shared", "rank.measure": "difference"}
PER_NOISE = "as published: a backward pass for each noise"
PER_NOISE_COST = "(N + items) x noises backward passes, then one product an item"
LEARNED = "ensemble/learned"
UNCORRECTED = {"rank.correction": "none"}
"""Random lists are the reference as they are; an ensemble's members have been corrected."""
_ALL = (
    method_of(Random, settings=UNCORRECTED),
    method_of(Pixel),
    method_of(Condition),
    method_of(CLIP),
    method_of(DINO),
    method_of(DTRAK),
    variant(DTRAK, "per-noise", PER_NOISE, {"dtrak.gradients": "per_noise"}, cost=PER_NOISE_COST),
    method_of(DAS),
    variant(DAS, "per-noise", PER_NOISE, {"das.gradients": "per_noise"}, cost=PER_NOISE_COST),
    method_of(ForwardINF, settings=PUBLISHED_FORWARD_INF),
    variant(ForwardINF, "skew", "scored as MUCS: what its unlearning alone contributes", {}),
    method_of(AbU, settings=PUBLISHED_ABU),
    variant(AbU, "skew", "scored as MUCS: what its unlearning alone contributes", {}),
    method_of(MUCS),
    variant(MUCS, "lambda=0.1", "ascent of half the weight", {"unlearn.ascent_weight": 0.1}, TABLE_2),
    variant(MUCS, "lambda=0.3", "ascent of 1.5 times the weight", {"unlearn.ascent_weight": 0.3}, TABLE_2),
    variant(
        MUCS,
        "sigma-schedule",
        "unlearning at noise levels of the sampler instead of training",
        {"unlearn.sigmas": "schedule"},
        TABLE_2,
    ),
    variant(
        MUCS,
        "no-null",
        "no bound on the ascent; 109 updates, whatever the loss",
        {"unlearn.clamp": False, "unlearn.fixed_updates": 109},
        TABLE_2,
    ),
    variant(MUCS, "full-block", "unlearn attention as well", {"unlearn.parameters": "block"}, TABLE_2),
    variant(MUCS, "subtraction", "mean loss difference, not the skew", {"rank.measure": "difference"}, TABLE_2),
    variant(MUCS, "independent-noise", "new noise for every loss", {"score.noise": "independent"}, TABLE_2),
    variant(MUCS, "full-schedule", "all noise levels, not the upper 70 %", WHOLE_SCHEDULE, TABLE_2),
    variant(MUCS, "train-sigma", "scoring at the noise levels of training", {"score.sigmas": "training"}, TABLE_2),
    variant(
        ScreenedMUCS,
        "screen",
        "exact scores for what can be in the top-k, far fewer forwards for the rest",
        {"score.noise": "shared", "rank.measure": "skew"},
        "ours",
    ),
    variant(MUCS, "mutual", "MUCS with hubs brought down by mutual ranks", {"rank.correction": "mutual"}, "ours"),
    *(ensemble(name, weights, f"the paper's ensemble {name}") for name, weights in WEIGHTS.items()),
    ensemble("learned", {}, "weights learned from the counterfactual tests of other seeds"),
)
METHODS = {method.name: method for method in _ALL}
REFERENCE = "random"
"""Removing random images: what every counterfactual test compares with."""


def known(names: Iterable[str] = ()) -> dict[str, Method]:
    """All methods that come with the package, those of installed packages, and others by MODULE:CLASS; by name."""
    others = [name for name in names if name not in METHODS]
    return {**METHODS, **installed(), **{name: find(name) for name in others}}  # installed() has no name of METHODS


def find(name: str) -> Method:
    """A method by its name, or MODULE:CLASS. InputError if there is none."""
    if method := METHODS.get(name) or installed().get(name):
        return method
    if ":" in name:
        return imported(name)
    raise InputError(f"unknown method {name!r}; known: {', '.join({**METHODS, **installed()})}, or give MODULE:CLASS")


@cache
def installed() -> dict[str, Method]:
    """From entry points, under the entry points' names; those that cannot be loaded, or are called as one of ours, are
    left out.
    """
    found = {}
    for point in entry_points(group=ENTRY_POINTS):
        try:
            loaded = imported(point.value)
        except InputError:
            continue
        if point.name not in METHODS:
            found[point.name] = replace(loaded, name=point.name)
    return found


@cache
def imported(name: str) -> Method:
    """MODULE:CLASS, from the Python path or the current folder."""
    module, _, attribute = name.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found = getattr(import_module(module), attribute)
    except Exception as error:  # whatever somebody else's module raises
        raise InputError(f"method {name}: {type(error).__name__}: {error}") from None
    return method_of(checked(found, name), name=name)


def checked(found: Any, source: str) -> type[Attributor]:  # noqa: ANN401 - whatever a user named
    """InputError, in one line, unless it is a class that can be used as a method."""
    if not (isinstance(found, type) and issubclass(found, Attributor)):
        raise InputError(f"method {source} is not a subclass of mucs_ray.attribution.base.Attributor")
    lacking = [fact for fact in ("name", "label", "summary") if not isinstance(getattr(found, fact, None), str)]
    if lacking or getattr(found, "__abstractmethods__", None):
        raise InputError(f"method {source} lacks {', '.join([*lacking, *sorted(found.__abstractmethods__)])}")
    return found
