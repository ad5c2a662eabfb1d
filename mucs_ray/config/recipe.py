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
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt

from mucs_ray import storage
from mucs_ray.attribution.card import MethodCard
from mucs_ray.attribution.config import EnsembleConfig, RankConfig, ScoreConfig
from mucs_ray.attribution.forgetting.config import GroupsConfig
from mucs_ray.attribution.registry import METHODS, available_methods, installed_methods
from mucs_ray.config.engine import EngineConfig
from mucs_ray.config.values import METHOD, checked, method_settings, refuse_old_sections, refuse_unknown_keys
from mucs_ray.data.table import Card
from mucs_ray.errors import InputError
from mucs_ray.evaluation.config import EvaluateConfig, LdsConfig, RemoveConfig
from mucs_ray.models.adapters import default_spec, find, kind_of
from mucs_ray.models.finetuned_spec import FinetuneConfig, finetuned
from mucs_ray.models.spec import ModelSpec
from mucs_ray.training.config import TrainConfig

Values = dict[str, Any]
FEW_IMAGES = 500
"""A fine-tune on fewer images has a counterfactual test of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateConfig:
    """The number of generated images and how they are generated (spec 6)."""

    items: Annotated[int, Gt(0)] = 20
    """The number of targets, which are the generated images that are attributed."""
    controls: Annotated[int, Ge(0)] = 20
    """The number of generated images that are not attributed, to detect collateral damage."""
    conditions: Literal["test", "train"] = "test"
    """The split whose images lend their conditions; "train" is for data sets without test images."""
    sampler: Literal["auto", "heun", "ddim", "ancestral", "euler"] = "auto"
    """heun; ddim or ancestral where the network predicts on a table of steps; euler for the official networks on a
    continuous one. "auto": the first that is usual for the model's process (mucs_ray/diffusion/samplers.py)."""
    steps: Annotated[int, Gt(0)] = 32
    clip: Literal["auto", "on", "off"] = "auto"
    """Keep the denoised image within the range of pixels in every step. A network that predicts noise needs it unless
    it is well trained, for at the noisiest levels its errors are multiplied by sigma. "auto": for ancestral, and for
    ddim from a very high noise."""
    compat: bool = False
    """Leave out euler's last step, as the official code does; some noise stays in the images."""
    guidance: float = 1.0
    items_per_forward: Annotated[int, Gt(0)] = 1
    """The number of images in one forward. At 1, in fp32, an image is bitwise independent of the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """All settings of one run, from the data to the report."""

    name: str
    data: str
    """The URL of the prepared data set."""
    seed: int = 1
    weights: str | None = None
    """A file of weights, saved by the official code or by mucs-ray, to be attributed with instead of training."""
    model: ModelSpec = field(default_factory=default_spec)
    """The model's settings, of the class that belongs to their kind."""
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    method: dict[str, Any] = field(default_factory=lambda: method_settings({}, METHODS.values()))
    """The settings that belong to methods, by the section of the method's card."""
    ensemble: EnsembleConfig = field(default_factory=EnsembleConfig)
    rank: RankConfig = field(default_factory=RankConfig)
    remove: RemoveConfig = field(default_factory=RemoveConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    lds: LdsConfig = field(default_factory=LdsConfig)
    groups: GroupsConfig = field(default_factory=GroupsConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)

    @property
    def trains(self) -> bool:
        """Whether the run trains its model, or else attributes with given weights."""
        return self.weights is None and self.model.trains

    @property
    def finetunes(self) -> bool:
        """Whether trainings start from the weights of a base."""
        return self.finetune.kind != "none"

    def to_dict(self) -> Values:
        """Return plain values, for recipe.json and fingerprints."""
        return {**asdict(self), "model": self.model.own.to_dict()}


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with the package."""
    folder = resources.files("mucs_ray.recipes")
    return sorted(file.name.removesuffix(".toml") for file in folder.iterdir() if file.name.endswith(".toml"))


def read_recipe(name_or_file: str) -> Values:
    """Read the raw values of a packaged recipe, or of a TOML file at any URL."""
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
    """Parse "a.b=1" as (["a", "b"], 1); the value is TOML, or else a plain string."""
    path, equals, text = setting.partition("=")
    if not equals or not path:
        raise InputError(f"--set {setting!r}: expected section.key=value, e.g. --set score.noises=50")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    return path.strip().split("."), value


def with_settings(values: Values, settings: Iterable[str]) -> Values:
    """Return a copy of raw recipe values with `--set` settings applied."""
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
    """Return a copy of a recipe with other values under dotted keys.

    An example is {"score.keep": 1.0, "method.mucs.clamp": False}.
    """
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        if section.startswith(METHOD):
            own = section.removeprefix(METHOD)
            recipe = replace(recipe, method={**recipe.method, own: replace(recipe.method[own], **{name: value})})
        else:
            recipe = replace(recipe, **{section: replace(getattr(recipe, section), **{name: value})})
    return recipe


def for_method(recipe: Recipe, card: MethodCard) -> Recipe:
    """Return the recipe for a method, with the values of its card, and defaults where the recipe says nothing."""
    if card.section not in recipe.method and fields(card.config_class):
        recipe = replace(recipe, method={**recipe.method, card.section: card.config_class()})
    return with_values(recipe, card.settings)


def from_card(values: Values, card: Card) -> Values:
    """Fill values that a recipe left open from the data set's card."""
    section = values.get("model", {})
    if not isinstance(section, Mapping):
        return values  # `build` reports what is wrong
    spec_class = find(kind_of(section)).spec_class
    values = with_few_images(values, card.num_images("train"))
    return {**values, "model": spec_class.opened(section, size=card.size, condition_dim=card.condition_dim)}


def with_few_images(values: Values, num_images: int) -> Values:
    """Fill what the test of a fine-tune on few images removes, where the recipe leaves it open (spec/models 5).

    2 % of 30 images would be nothing; so each item has its own retraining, without a tenth of the images.
    """
    sections = [values.get(name, {}) for name in ("finetune", "rank", "remove")]
    if num_images >= FEW_IMAGES or not all(isinstance(section, Mapping) for section in sections):
        return values
    finetune, rank, remove = sections
    if finetune.get("kind", "none") == "none":
        return values
    lengths = {} if rank.keys() & {"top", "top_percent"} else {"top": max(1, round(0.1 * num_images))}
    return {**values, "rank": {**rank, **lengths}, "remove": {"mode": "per-item", **remove}}


def build(values: Values, methods: Collection[str] = ()) -> Recipe:
    """Build a checked recipe. InputError, naming the key, for unknown keys, wrong types and values out of range.

    `methods` names further methods, from outside the package, whose settings the recipe may have.
    """
    refuse_old_sections(values)
    shared = {key: value for key, value in values.items() if key not in ("method", "model")}
    refuse_unknown_keys(shared, Recipe)
    shared["model"] = model_spec(values.get("model", {}))
    own = values.get("method", {})
    named = [*methods, *(name for name in installed_methods() if isinstance(own, Mapping) and name in own)]
    recipe = checked(Recipe, shared)
    model = finetuned(recipe.model, recipe.finetune, weights=recipe.weights)
    return replace(recipe, model=model, method=method_settings(own, available_methods(named).values()))


def model_spec(values: object) -> ModelSpec:
    """Check the values under [model] by the class of their kind. InputError, naming the key, if they are wrong."""
    if not isinstance(values, Mapping):
        raise InputError(f"recipe key model: expected a section [model]; found {values!r}")
    spec_class = find(kind_of(values)).spec_class
    own = spec_class.written_out({key: value for key, value in values.items() if key != "kind"})
    refuse_unknown_keys(own, spec_class, prefix="model.")
    return checked(spec_class, own, prefix="model.")


def check_fits(recipe: Recipe, card: Card, *, generates: bool = True) -> None:
    """Raise InputError if the model does not fit the data set, or there are fewer conditions than items to generate, or
    fewer training images than a batch takes.
    """
    recipe.model.check_fits(size=card.size, condition_dim=card.condition_dim, data=recipe.data)
    split = recipe.generate.conditions
    num_items, num_conditions = recipe.generate.items + recipe.generate.controls, card.num_images(split)
    if generates and num_items > num_conditions:
        raise InputError(
            f"{num_items} images to generate (items + controls), but the {split} split has only {num_conditions}"
            " conditions; set generate.items or generate.controls lower"
            + (", or generate.conditions=train to take those of training images" if split == "test" else "")
        )
    if recipe.weights is None and recipe.model.trains and not card.num_images("test"):
        raise InputError(
            f"{recipe.data} has no test images, on which a training is validated; give weights that were trained"
            " elsewhere, or prepare it again with a test split"
        )
    mucs = recipe.method.get("mucs")
    if mucs is not None and mucs.bound == "drawn" and (not recipe.model.trains or recipe.finetunes):
        model = "a fine-tune starts from a base" if recipe.finetunes else f"model.kind {recipe.model.kind} has none"
        raise InputError(f'method.mucs.bound is drawn from untrained weights, and {model}; set it to "linear"')
    num_images = card.num_images("train")
    if recipe.weights is None and recipe.model.trains and num_images < recipe.train.batch_size:
        raise InputError(
            f"{num_images} training images are fewer than one batch of {recipe.train.batch_size};"
            " set train.batch_size lower, or give weights that were trained elsewhere"
        )
    recipe.model.check()
