"""Recipes: everything that changes a number, as frozen dataclasses filled from TOML and `--set section.key=value`.

What belongs to one method stands under [method.NAME], checked by the method's own class (mucs_ray.attribution.card).
What [model] holds depends on `model.kind` and is checked by the class of that kind (mucs_ray.models.adapters); it may
leave open what is then read off the data set's card, such as the size of its images.
"""

import tomllib
from collections.abc import Collection, Iterable, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import resources
from typing import Annotated, Any

from annotated_types import Ge, Gt

from mucs_ray import storage
from mucs_ray.attribution.card import MethodCard
from mucs_ray.attribution.config import EnsembleConfig, RankConfig, ScoreConfig
from mucs_ray.attribution.registry import METHODS, installed, known
from mucs_ray.config.engine import EngineConfig
from mucs_ray.config.values import METHOD, checked, method_settings, refuse_old_sections, refuse_unknown_keys
from mucs_ray.data.table import Card
from mucs_ray.errors import InputError
from mucs_ray.evaluation.config import EvaluateConfig, RemoveConfig
from mucs_ray.models.adapters import find, kind_of
from mucs_ray.models.dit_config import DiTConfig
from mucs_ray.models.spec import ModelSpec
from mucs_ray.training.config import TrainConfig

Values = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateConfig:
    """Which images are generated and how (spec 6)."""

    items: Annotated[int, Gt(0)] = 20
    """Targets: generated images that are attributed."""
    controls: Annotated[int, Ge(0)] = 20
    """Generated images that are not attributed, to see collateral damage."""
    steps: Annotated[int, Gt(0)] = 32
    guidance: float = 1.0
    items_per_forward: Annotated[int, Gt(0)] = 1
    """Images in one forward. At 1, in fp32, an image is bitwise independent of the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One run from data to report."""

    name: str
    data: str
    """URL of the prepared data set."""
    seed: int = 1
    weights: str | None = None
    """Weights to attribute with instead of training: a file saved by the official code, or ours."""
    model: ModelSpec = field(default_factory=DiTConfig)
    """Of the class that goes with its kind."""
    train: TrainConfig = field(default_factory=TrainConfig)
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    method: dict[str, Any] = field(default_factory=lambda: method_settings({}, METHODS.values()))
    """The settings that are a method's own, by the section of its card."""
    ensemble: EnsembleConfig = field(default_factory=EnsembleConfig)
    rank: RankConfig = field(default_factory=RankConfig)
    remove: RemoveConfig = field(default_factory=RemoveConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)

    @property
    def trains(self) -> bool:
        """Whether the run trains its model; else it attributes with weights that are given."""
        return self.weights is None and self.model.trains

    def to_dict(self) -> Values:
        """Plain values, for recipe.json and fingerprints."""
        return {**asdict(self), "model": self.model.to_dict()}


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    folder = resources.files("mucs_ray.recipes")
    return sorted(file.name.removesuffix(".toml") for file in folder.iterdir() if file.name.endswith(".toml"))


def read_recipe(name_or_file: str) -> Values:
    """The raw values of a packaged recipe, or of a TOML file at any URL."""
    if name_or_file in recipe_names():
        text = resources.files("mucs_ray.recipes").joinpath(f"{name_or_file}.toml").read_text()
    elif name_or_file.endswith(".toml"):
        try:
            text = storage.read_bytes(name_or_file).decode()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError, UnicodeDecodeError):
            raise InputError(f"no recipe file at {name_or_file}") from None
    else:
        raise InputError(f"no recipe {name_or_file!r}; known: {', '.join(recipe_names())}, or give a .toml file")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"recipe {name_or_file} is not TOML: {error}") from None


def parse_setting(setting: str) -> tuple[list[str], Any]:
    """ "a.b=1" as (["a", "b"], 1); the value is TOML, or else a plain string."""
    path, equals, text = setting.partition("=")
    if not equals or not path:
        raise InputError(f"--set {setting!r}: expected section.key=value, e.g. --set score.noises=50")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    return path.strip().split("."), value


def with_settings(values: Values, settings: Iterable[str]) -> Values:
    """A copy of raw recipe values with `--set` settings applied."""
    changed = deepcopy(values)
    for setting in settings:
        path, value = parse_setting(setting)
        section = changed
        for key in path[:-1]:
            section = section.setdefault(key, {})
            if not isinstance(section, dict):
                raise InputError(f"--set {setting!r}: {key!r} is not a section of the recipe")
        section[path[-1]] = value
    return changed


def with_values(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """A copy of a recipe with other values under dotted keys, e.g. {"score.keep": 1.0, "method.mucs.clamp": False}."""
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        if section.startswith(METHOD):
            own = section.removeprefix(METHOD)
            recipe = replace(recipe, method={**recipe.method, own: replace(recipe.method[own], **{name: value})})
        else:
            recipe = replace(recipe, **{section: replace(getattr(recipe, section), **{name: value})})
    return recipe


def for_method(recipe: Recipe, card: MethodCard) -> Recipe:
    """The recipe under which a method runs: with the values of its card, and defaults where it says nothing."""
    if card.section not in recipe.method and fields(card.config_class):
        recipe = replace(recipe, method={**recipe.method, card.section: card.config_class()})
    return with_values(recipe, card.settings)


def from_card(values: Values, card: Card) -> Values:
    """Raw values with what the recipe left open read off the data set's card."""
    section = values.get("model", {})
    if not isinstance(section, Mapping):
        return values  # `build` says what is wrong
    spec_class = find(kind_of(section)).spec_class
    return {**values, "model": spec_class.opened(section, size=card.size, condition_dim=card.condition_dim)}


def build(values: Values, methods: Collection[str] = ()) -> Recipe:
    """A checked recipe. InputError, naming the key, for unknown keys, wrong types and values out of range.

    `methods`: names of methods that are not the package's, whose settings the recipe may have.
    """
    refuse_old_sections(values)
    shared = {key: value for key, value in values.items() if key not in ("method", "model")}
    refuse_unknown_keys(shared, Recipe)
    shared["model"] = model_spec(values.get("model", {}))
    own = values.get("method", {})
    named = [*methods, *(name for name in installed() if isinstance(own, Mapping) and name in own)]
    return replace(checked(Recipe, shared), method=method_settings(own, known(named).values()))


def model_spec(values: object) -> ModelSpec:
    """The values under [model], checked by the class of their kind. InputError, naming the key, if they are wrong."""
    if not isinstance(values, Mapping):
        raise InputError(f"recipe key model: expected a section [model]; found {values!r}")
    spec_class = find(kind_of(values)).spec_class
    own = {key: value for key, value in values.items() if key != "kind"}
    refuse_unknown_keys(own, spec_class, prefix="model.")
    return checked(spec_class, own, prefix="model.")


def check_fits(recipe: Recipe, card: Card) -> None:
    """InputError if the model does not fit the data set, or more items are asked for than there are conditions."""
    recipe.model.check_fits(size=card.size, condition_dim=card.condition_dim, data=recipe.data)
    asked, there = recipe.generate.items + recipe.generate.controls, card.num_images("test")
    if asked > there:
        raise InputError(
            f"{asked} images to generate (items + controls) but the test split lends only {there} conditions"
        )
    recipe.model.check()
