"""The registry knows the methods by their cards, to list them, to check names, and to build their stages.

A variant is a method under other recipe values; what it shares with the method it varies is computed once. An ensemble
adds up the ranks of other methods. A third-party method is named MODULE:CLASS, or comes from an installed package's
entry point in the group "mucs_ray.methods"; it is imported only when it is named, or when all are listed.
"""

import sys
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from mucs_ray.attribution.card import MethodCard
from mucs_ray.attribution.cards import abu, control, cosine, das, dtrak, forward_inf, kfac, linear, mucs, random, screen
from mucs_ray.attribution.cards.gradients import PER_NOISE_COST, PER_NOISE_SUMMARY
from mucs_ray.attribution.ensemble import WEIGHTS
from mucs_ray.errors import InputError

if TYPE_CHECKING:
    from mucs_ray.attribution.base import Attributor

ENTRY_POINTS = "mucs_ray.methods"


def variant(
    card: MethodCard, name: str, summary: str, settings: Mapping[str, Any], source: str = "", *, cost: str = ""
) -> MethodCard:
    """Return the card of a method under other recipe values; a name has one slash at most."""
    return replace(
        card,
        name=f"{card.name}{'-' if '/' in card.name else '/'}{name}",
        label=f"{card.label} {name}",
        summary=summary,
        cost=cost or card.cost,
        source=source or card.source,
        settings=settings,
    )


def ensemble(name: str, weights: Mapping[str, float], summary: str) -> MethodCard:
    """Return the card of an ensemble, which adds up the ranks of other methods."""
    needs = f"the scores of {', '.join(weights)}" if weights else "finished tests on other seeds, ensemble.learned_from"
    return MethodCard(
        name=f"ensemble/{name}",
        label=f"Ensemble {name}",
        summary=summary,
        needs=needs,
        cost="that of its members",
        source="MUCS, ensembles",
        stages=(),
        settings={"rank.correction": "none"},  # the members' ranks have been corrected
        weights=weights,
    )


TABLE_2 = "MUCS, table 2"
SCORED_AS_MUCS = "scored as MUCS: what its unlearning alone contributes"
WHITENED = "scores less what the items' scores have in common"
LEARNED = "ensemble/learned"
REFERENCE = "random"
"""Every counterfactual test compares with this method, which removes random images."""
_ALL = (
    random.CARD,
    cosine.PIXEL,
    cosine.CONDITION,
    cosine.CLIP,
    cosine.DINO,
    dtrak.CARD,
    variant(dtrak.CARD, "per-noise", PER_NOISE_SUMMARY, {"method.dtrak.gradients": "per_noise"}, cost=PER_NOISE_COST),
    das.CARD,
    variant(das.CARD, "per-noise", PER_NOISE_SUMMARY, {"method.das.gradients": "per_noise"}, cost=PER_NOISE_COST),
    kfac.CARD,
    forward_inf.CARD,
    variant(forward_inf.CARD, "skew", SCORED_AS_MUCS, {}),
    abu.CARD,
    variant(abu.CARD, "skew", SCORED_AS_MUCS, {}),
    mucs.CARD,
    variant(mucs.CARD, "lambda=0.1", "ascent of half the weight", {"method.mucs.ascent_weight": 0.1}, TABLE_2),
    variant(mucs.CARD, "lambda=0.3", "ascent of 1.5 times the weight", {"method.mucs.ascent_weight": 0.3}, TABLE_2),
    variant(
        mucs.CARD,
        "sigma-schedule",
        "unlearning at noise levels of the sampler instead of training",
        {"method.mucs.sigmas": "schedule"},
        TABLE_2,
    ),
    variant(
        mucs.CARD,
        "no-null",
        "no bound on the ascent; 109 updates, whatever the loss",
        {"method.mucs.clamp": False, "method.mucs.fixed_updates": 109},
        TABLE_2,
    ),
    variant(mucs.CARD, "full-block", "unlearn attention as well", {"method.mucs.parameters": "block"}, TABLE_2),
    variant(mucs.CARD, "subtraction", "mean loss difference, not the skew", {"rank.measure": "difference"}, TABLE_2),
    variant(mucs.CARD, "independent-noise", "new noise for every loss", {"score.noise": "independent"}, TABLE_2),
    variant(
        mucs.CARD,
        "full-schedule",
        "all noise levels, not the upper 70 %",
        {"score.sigmas": "schedule", "score.keep": 1.0},
        TABLE_2,
    ),
    variant(mucs.CARD, "train-sigma", "scoring at the noise levels of training", {"score.sigmas": "training"}, TABLE_2),
    screen.CARD,
    linear.CARD,
    variant(linear.CARD, "half", "half as much whitening", {"method.mucs/linear.power": 0.5}),
    variant(linear.CARD, "plain", "no whitening", {"method.mucs/linear.power": 0.0}),
    variant(mucs.CARD, "mutual", "MUCS with hubs brought down by mutual ranks", {"rank.correction": "mutual"}, "ours"),
    variant(
        mucs.CARD,
        "level-bound",
        "a bound on the ascent at each noise level, not one for all",
        {"method.mucs.bound": "by-level"},
        "ours",
    ),
    variant(
        mucs.CARD,
        "matched-filter",
        "each noise counts by the square of the item's own skew there",
        {"score.noise": "shared", "score.sigmas": "both", "score.weights": "squared", "rank.measure": "skew"},
        "ours",
    ),
    variant(
        replace(mucs.CARD, needs_condition=True),
        "matched-retention",
        "half of the training images beside the item have its condition",
        {"method.mucs.retention": 0.5},
        "ours",
    ),
    variant(
        mucs.CARD,
        "trajectory",
        "half of the item's draws are the noisy images that its own sampler visited",
        {"method.mucs.trajectory": 0.5},
        "ours",
    ),
    control.CARD,
    variant(
        mucs.CARD,
        "antithetic",
        "losses against a model that was changed the other way",
        {"method.mucs.antithetic": True},
        "ours",
        cost="N x noises x (2 items + 1) forwards, one pass over the data",
    ),
    variant(mucs.CARD, "whitened", WHITENED, {"rank.correction": "whitened"}, "ours"),
    variant(das.CARD, "whitened", WHITENED, {"rank.correction": "whitened"}, "ours"),
    *(ensemble(name, weights, f"the paper's ensemble {name}") for name, weights in WEIGHTS.items()),
    ensemble("learned", {}, "weights learned from the counterfactual tests of other seeds"),
)
METHODS = {method.name: method for method in _ALL}


def available_methods(names: Iterable[str] = ()) -> dict[str, MethodCard]:
    """Return the methods that come with the package, and the named third-party ones, by name."""
    return METHODS | {name: find_method(name) for name in names if name not in METHODS}


def all_methods() -> dict[str, MethodCard]:
    """Return all methods by name; installed ones that cannot be imported are left out."""
    methods = dict(METHODS)
    for name in installed_methods():
        try:
            methods[name] = find_method(name)
        except InputError:
            continue
    return methods


def find_method(name: str) -> MethodCard:
    """Return a method by its name or MODULE:CLASS. It raises InputError if there is none."""
    if name in METHODS:
        return METHODS[name]
    if name in installed_methods():
        return replace(import_method(installed_methods()[name]), name=name)
    if ":" in name:
        return import_method(name)
    raise InputError(
        f"unknown method {name!r}; known: {', '.join({**METHODS, **installed_methods()})}, or give MODULE:CLASS"
    )


@cache
def installed_methods() -> dict[str, str]:
    """Return MODULE:CLASS by the name of the entry point. Nothing is imported, and none replaces a method of the
    package.
    """
    return {point.name: point.value for point in entry_points(group=ENTRY_POINTS) if point.name not in METHODS}


@cache
def import_method(name: str) -> MethodCard:
    """Return the card of MODULE:CLASS, from the Python path or the current folder."""
    module, _, attribute = name.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        attributor = getattr(import_module(module), attribute)
    except Exception as error:  # third-party code may raise anything
        raise InputError(f"method {name}: {type(error).__name__}: {error}") from None
    return replace(checked_method_class(attributor, name).card, name=name, implementation=name)


def checked_method_class(candidate: Any, source: str) -> "type[Attributor]":  # noqa: ANN401 - whatever a user named
    """Return the class if it can be used as a method, else raise InputError."""
    from mucs_ray.attribution.base import Attributor  # a method has loaded this module already

    if not (isinstance(candidate, type) and issubclass(candidate, Attributor)):
        raise InputError(f"method {source} is not a subclass of mucs_ray.attribution.base.Attributor")
    lacking = [] if isinstance(getattr(candidate, "card", None), MethodCard) else ["card"]
    if lacking or candidate.__abstractmethods__:
        raise InputError(f"method {source} lacks {', '.join([*lacking, *sorted(candidate.__abstractmethods__)])}")
    if "." in candidate.card.section or not has_defaults(candidate.card.config_class):
        raise InputError(
            f"method {source}: expected a name without dots, and a dataclass with defaults as `config_class`"
        )
    if any(stage.over == "groups" for stage in candidate.card.stages):
        raise InputError(f"method {source} has a stage over groups, which are not there yet; use items")
    return candidate


def has_defaults(config_class: type) -> bool:
    """Return True if this is a dataclass that can be made without values."""
    if not is_dataclass(config_class):
        return False
    return all(not (field.default is MISSING and field.default_factory is MISSING) for field in fields(config_class))
