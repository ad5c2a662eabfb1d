"""Checks of a recipe's raw values against its dataclasses: unknown and moved keys, and wrong types."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from mucs_ray.attribution.card import MethodCard
from mucs_ray.errors import InputError

METHOD = "method."
"""The prefix of a method's section in dotted keys."""
MOVED = {
    "unlearn": "mucs",
    "screen": "mucs/screen",
    "forward_inf": "forward-inf",
    "abu": "abu",
    "dtrak": "dtrak",
    "das": "das",
}
"""Sections of earlier recipes, and the methods whose sections these are now."""
NULL_LOSS, BOUND = "null_loss", "bound"
"""The earlier and the present name of what bounds the ascent of MUCS."""
BOUNDS = {"analytic": "zero-output"}
"""What method.mucs.null_loss could be, where method.mucs.bound has another word for it."""


def checked(section: type, values: object, *, prefix: str = "") -> Any:  # noqa: ANN401 - an instance of `section`
    """Fill a dataclass. InputError, naming the key, for wrong types and values out of range."""
    try:
        return TypeAdapter(section).validate_python(values)
    except ValidationError as error:
        first, *further = error.errors()
        where = ".".join(str(part) for part in first["loc"] if isinstance(part, str) and part.isidentifier())
        depth = 1 if prefix else 2  # a key of one section, or of the sections of a recipe
        messages = [
            detail["msg"].lower() for detail in (first, *further) if detail["loc"][:depth] == first["loc"][:depth]
        ]
        key = f"{prefix}{where}".removesuffix(".")
        raise InputError(f"recipe key {key}: {', or '.join(messages)}; found {first['input']!r}") from None


def refuse_unknown_keys(values: Mapping[str, Any], section: type, *, prefix: str = "") -> None:
    """Raise InputError for an unknown key, with the nearest known one."""
    known = [field.name for field in fields(section)]
    types = get_type_hints(section)
    for key, value in values.items():
        if key not in known:
            raise InputError(unknown_key(key, known, prefix))
        if is_dataclass(types[key]) and isinstance(value, Mapping):
            refuse_unknown_keys(value, types[key], prefix=f"{prefix}{key}.")


def unknown_key(key: str, known: Sequence[str], prefix: str) -> str:
    """Return a line on an unknown key, with the nearest known one."""
    near = get_close_matches(key, known, n=1)
    hint = f"did you mean {prefix}{near[0]}?" if near else f"known: {', '.join(sorted(known))}"
    return f"unknown recipe key {prefix}{key}; {hint}"


def method_settings(values: object, cards: Iterable[MethodCard]) -> dict[str, Any]:
    """Return the settings of each method that has any, by its section.

    Raw values are checked, and defaults fill the rest.
    """
    if not isinstance(values, Mapping):
        raise InputError(f"recipe key method: expected sections such as [method.mucs]; found {values!r}")
    classes = config_classes(cards)
    for section, raw in values.items():
        if section not in classes:
            own = "the settings of your own method become known with --method MODULE:CLASS"
            raise InputError(f"{unknown_key(section, list(classes), METHOD)}; {own}")
        if isinstance(raw, Mapping):
            if section == "mucs" and NULL_LOSS in raw:
                renamed = f"recipe key {METHOD}mucs.{NULL_LOSS} is now {METHOD}mucs.{BOUND}"
                raise InputError(f'{renamed}, and its value "analytic" is now "zero-output"')
            refuse_unknown_keys(raw, classes[section], prefix=f"{METHOD}{section}.")
    return {
        section: checked(config_class, values.get(section, {}), prefix=f"{METHOD}{section}.")
        for section, config_class in classes.items()
    }


def config_classes(cards: Iterable[MethodCard]) -> dict[str, type[Any]]:
    """Return the dataclass of each section. InputError if two methods claim one section with different settings."""
    owners: dict[str, MethodCard] = {}
    for card in cards:
        owner = owners.setdefault(card.section, card)
        if owner.config_class is not card.config_class:
            names = f"{owner.name} and {card.name}"
            raise InputError(f"{names} both have settings of their own under [{METHOD}{card.section}]; rename one")
    return {section: card.config_class for section, card in owners.items() if fields(card.config_class)}


def refuse_old_sections(values: Mapping[str, Any]) -> None:
    """Raise InputError, with the present key, for sections from before methods had sections of their own."""
    for old, new in MOVED.items():
        if old in values:
            inner = values[old] if isinstance(values[old], Mapping) else {}
            old_key, new_key = (".".join([section, *list(inner)[:1]]) for section in (old, f"{METHOD}{new}"))
            new_key = f"{METHOD}mucs.{BOUND}" if new_key == f"{METHOD}mucs.{NULL_LOSS}" else new_key
            raise InputError(f"recipe key {old_key} is now {new_key}")


def with_new_sections(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the raw values of an older run under the present keys.

    Such a run was begun before methods had sections of their own, or when keys of theirs had other names.
    """
    rest = {key: value for key, value in values.items() if key not in MOVED}
    own = {new: values[old] for old, new in MOVED.items() if old in values} | rest.get("method", {})
    mucs = own.get("mucs", {})
    if NULL_LOSS in mucs:
        bound = BOUNDS.get(mucs[NULL_LOSS], mucs[NULL_LOSS])
        own["mucs"] = {BOUND: bound, **{key: value for key, value in mucs.items() if key != NULL_LOSS}}
    return {**rest, "method": own}
