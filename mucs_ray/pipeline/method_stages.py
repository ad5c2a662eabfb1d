"""The stages of each method's attribution, and what they read: what variants share is one stage, done once.

attribute/METHOD/STAGE    a hook of the method (mucs_ray.attribution.base), in the order of its card
attribute/METHOD          scores.parquet and topk.csv
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from json import dumps
from typing import TYPE_CHECKING, Any

from mucs_ray import storage
from mucs_ray.attribution.card import MethodCard, MethodStage, load_class
from mucs_ray.attribution.ensemble import learned_weights
from mucs_ray.attribution.registry import available_methods
from mucs_ray.config.recipe import Recipe, for_method
from mucs_ray.data.table import Card
from mucs_ray.errors import InputError, MachineError
from mucs_ray.evaluation.metrics import ReadyMetric, ready_metrics

if TYPE_CHECKING:
    from mucs_ray.attribution.base import Attributor

TARGETS = "targets"
GENERATED = {TARGETS: "generate"}
"""What attributions read of the generated images: those to be attributed, without the controls."""
ENCODERS = ("clip", "dino")
"""Pretrained networks that methods compare images with, by the names that the metrics have too."""


def recipe_slice(recipe: Recipe, *keys: str, without: Sequence[str] = ()) -> dict[str, Any]:
    """The part of a recipe that a stage reads: its values under sections or dotted keys, flat, as they look in JSON."""
    shared = recipe.to_dict()
    own = shared.pop("method")
    sections = shared | {f"method.{name}": values for name, values in own.items()}
    flat: dict[str, Any] = {}
    for key, value in sections.items():
        entries = {f"{key}.{inner}": each for inner, each in value.items()} if isinstance(value, dict) else {key: value}
        flat |= {name: list(each) if isinstance(each, tuple) else each for name, each in entries.items()}
    chosen = {name: value for name, value in flat.items() if name in keys or name.rpartition(".")[0] in keys}
    return {name: value for name, value in chosen.items() if name not in without}


@dataclass(frozen=True, kw_only=True)
class StageSpec:
    """What a stage of an attribution does and reads: a stage on the method's card, or the ranking."""

    method: MethodCard
    recipe: Recipe
    """With the method's settings."""
    method_stage: MethodStage | None
    """None for the ranking."""
    name: str
    """Folder of the stage in the run directory."""
    reads: dict[str, Any]
    inputs: tuple[str, ...]

    @property
    def hook(self) -> str:
        """The hook that the stage runs; "" for the ranking."""
        return self.method_stage.hook if self.method_stage else ""

    @property
    def streams(self) -> bool:
        """Whether it goes over the training set unit by unit, with a part for each, and so can share a pass."""
        return self.hook in ("features", "sample", "score")

    def load(self) -> "type[Attributor]":
        """The class whose hook this is: the method's own, or that of the method whose stage it takes over."""
        return load_class((self.method_stage.owner if self.method_stage else "") or self.method.implementation)


Shared = dict[tuple[Any, ...], str]
"""The stage that does something, by what it does and reads: so variants share what is the same."""


def method_stages(
    recipe: Recipe, method: MethodCard, chosen: Sequence[str], encoder: str | None, shared: Shared
) -> Iterator[StageSpec]:
    """The stages of a method's attribution, but for those that another method has already; the last one ranks.

    `chosen`: which of the trained weights are used; `encoder`: digest of the pretrained network's weights.
    """
    recipe, folder = for_method(recipe, method), f"attribute/{method.name}"
    ranked = recipe_slice(recipe, "rank", "seed")
    earlier: list[str] = []
    read: set[str] = set()
    for stage in method.stages:
        values = recipe_slice(recipe, *stage.reads, *(chosen if stage.uses_model else ()))
        values = {key: value for key, value in values.items() if key not in read} | {"seed": recipe.seed}
        if method.encoder:
            values[f"encoder.{method.encoder}"] = encoder
        read |= values.keys()
        inputs = ("data", *(("pretrain",) * stage.uses_model), *((TARGETS,) * stage.uses_items), *earlier)
        key = (stage.owner or method.implementation, replace(stage, owner=""), dumps(values, sort_keys=True), inputs)
        if key not in shared:
            name = shared[key] = f"{folder}/{stage.name}"
            yield StageSpec(method=method, recipe=recipe, method_stage=stage, name=name, reads=values, inputs=inputs)
        earlier.append(shared[key])
    if method.is_ensemble:
        ranked["ensemble.weights"] = dict(method.weights)
        earlier = [f"attribute/{member}" for member in method.weights]
    inputs = tuple(earlier if method.is_ensemble else earlier[-1:]) or ("data", TARGETS)
    yield StageSpec(method=method, recipe=recipe, method_stage=None, name=folder, reads=ranked, inputs=inputs)


def all_method_stages(
    recipe: Recipe, methods: Iterable[MethodCard], chosen: Sequence[str], encoders: Mapping[str, ReadyMetric]
) -> dict[str, StageSpec]:
    """The stages of all methods by name; members of ensembles come before the ensembles."""
    shared: Shared = {}
    specs = {}
    for method in sorted(methods, key=lambda method: method.is_ensemble):
        encoder = encoders.get(method.encoder or "")
        for spec in method_stages(recipe, method, chosen, encoder.digest if encoder else None, shared):
            specs[spec.name] = spec
    return specs


def known_methods(
    names: Collection[str], learn: Callable[[Collection[str]], Mapping[str, float]]
) -> dict[str, MethodCard]:
    """All methods that there are, by name.

    An ensemble that is asked for and has no weights gets what is learned from the tests of the single methods, which
    `learn` is told the names of.
    """
    methods = available_methods(names)
    single = [name for name, each in methods.items() if not each.is_ensemble]
    for name in names:
        if methods[name].is_ensemble and not methods[name].weights:
            methods[name] = replace(methods[name], weights=learn(single))
    return methods


def ready_encoders(weights_dir: str | None) -> dict[str, ReadyMetric]:
    """The pretrained networks whose weights are on this machine."""
    encoders = {}
    for name in ENCODERS:
        try:
            (encoders[name],), _ = ready_metrics((name,), weights_dir)
        except MachineError:
            continue
    return encoders


def check_method(method: MethodCard, card: Card, weights_dir: str | None) -> None:
    """MachineError or InputError, in one line, if a method lacks what it needs."""
    if method.needs_condition and card.condition == "none":
        raise InputError(f"{method.name} compares labels or captions, and this data set has none; choose other methods")
    if method.is_ensemble and not method.weights:
        raise InputError(
            f"{method.name} needs weights: give --set ensemble.learned_from=URL, a run with finished counterfactual"
            " tests on other seeds"
        )
    if method.encoder:
        ready_metrics((method.encoder,), weights_dir)


def learned_from(source: str, run_url: str, seed: int, methods: Collection[str]) -> dict[str, float]:
    """Weights of some methods for a run, out of another run's finished tests (spec 10).

    InputError if those are of this seed, or if this run's report would take the other's place.
    """
    source = storage.absolute(source)
    if f"{run_url}/".startswith(f"{source.rstrip('/')}/"):
        raise InputError(f"ensemble.learned_from: {source} is this run itself; give another folder with --run")
    url = storage.join(source, "report/report.json")
    try:
        document = storage.read_json(url)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        raise InputError(f"ensemble.learned_from: no report at {url}; run mucs-ray run there first") from None
    evaluation = document.get("evaluation")
    if not evaluation:
        raise InputError(f"ensemble.learned_from: {url} has no counterfactual test; run mucs-ray run there first")
    if seed in evaluation["seeds"]:
        raise InputError(f"ensemble.learned_from: {url} has seed {seed} itself; learn weights on other seeds")
    tested = {each["method"]: mean_auc(each) for each in evaluation["methods"]}
    return learned_weights({method: auc for method, auc in tested.items() if method in methods})


def mean_auc(tested: Mapping[str, Any]) -> float:
    """The mean AUC of one method in a report, over the metrics."""
    values = [metric["auc"] for metric in tested["metrics"].values()]
    return sum(values) / len(values)
