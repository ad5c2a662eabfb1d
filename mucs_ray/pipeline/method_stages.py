"""The stages of each method's attribution and the values that they read; variants share equal stages.

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
from mucs_ray.store.run import jsonable, read_json_or_none

if TYPE_CHECKING:
    from mucs_ray.attribution.base import Attributor

TARGETS = "targets"
GENERATED = {TARGETS: "generate"}
"""An attribution depends on the generated images that it explains, and not on the controls beside them."""
ENCODERS = ("clip", "dino")
"""The pretrained networks with which methods compare images; the metrics have the same names."""
LATER = {
    "generate.conditions": "test",
    "generate.sampler": "auto",
    "generate.compat": False,
    "generate.clip": "auto",
    "score.lowest_sigma": None,
    "score.weights": "even",
    "rank.whitening": 1.0,
    "method.mucs.draws": "own",
    "method.mucs.moments": "fresh",
    "method.mucs.retention": 0.0,
    "method.mucs.trajectory": 0.0,
    "method.mucs.antithetic": False,
}
"""Settings that came later, with the values that mean what was done before: those are not part of a fingerprint."""


def recipe_slice(recipe: Recipe, *keys: str, without: Sequence[str] = ()) -> dict[str, Any]:
    """Return the recipe values under these sections or dotted keys, by dotted key, as they look in JSON."""
    shared = recipe.to_dict()
    own = shared.pop("method")
    sections = shared | {f"method.{name}": values for name, values in own.items()}
    flat: dict[str, Any] = {}
    for key, value in sections.items():
        entries = (
            {f"{key}.{inner}": setting for inner, setting in value.items()} if isinstance(value, dict) else {key: value}
        )
        flat |= {name: jsonable(setting) for name, setting in entries.items()}
    read = {name: value for name, value in flat.items() if name in keys or name.rpartition(".")[0] in keys}
    left_out = {*without, *(name for name, before in LATER.items() if read.get(name, before) == before)}
    return {name: value for name, value in read.items() if name not in left_out}


@dataclass(frozen=True, kw_only=True)
class StageSpec:
    """A stage of an attribution: a stage of the method's card with the values that it reads, or the ranking."""

    method: MethodCard
    recipe: Recipe
    """The recipe, with the method's own settings applied."""
    method_stage: MethodStage | None
    """The stage of the method's card; None for the ranking."""
    name: str
    """The stage's folder in the run directory."""
    reads: dict[str, Any]
    inputs: tuple[str, ...]

    @property
    def hook(self) -> str:
        """The hook that the stage runs; "" for the ranking."""
        return self.method_stage.hook if self.method_stage else ""

    @property
    def implementation(self) -> str:
        """MODULE:CLASS of the class whose hook the stage runs: the method's own, or that of the stage's owner."""
        return (self.method_stage.owner if self.method_stage else "") or self.method.implementation

    @property
    def streams(self) -> bool:
        """True if the stage streams the training set unit by unit, with one part for each, and so can share a pass."""
        return self.hook in ("features", "sample", "score")

    def load(self) -> "type[Attributor]":
        """Import the class whose hook the stage runs."""
        return load_class(self.implementation)


Shared = dict[tuple[Any, ...], str]
"""The names of stages by what they do and read, through which variants find the stages that they can share."""


def method_stages(
    recipe: Recipe, method: MethodCard, checkpoint: Sequence[str], encoder: str | None, shared: Shared
) -> Iterator[StageSpec]:
    """Yield the stages of a method's attribution, except those that `shared` has already; the last one is the ranking.

    A stage reads what all earlier ones made; one that is taken over, what its owner's made, as in the owner's method.

    `checkpoint` is the key of the setting that selects the trained weights, if there is one; `encoder` is the digest of
    the weights of the pretrained network, if the method has one.
    """
    recipe, folder = for_method(recipe, method), f"attribute/{method.name}"
    unread = () if recipe.rank.correction == "whitened" else ("rank.whitening",)
    ranked = recipe_slice(recipe, "rank", "seed", without=unread)
    earlier: list[str] = []
    names, read = dict[MethodStage, str](), dict[MethodStage, set[str]]()
    for stage in method.stages:
        before = [one for one in names if not stage.owner or one.owner == stage.owner]
        values = recipe_slice(recipe, *stage.reads, *(checkpoint if stage.uses_model else ()))
        known = set[str]().union(*(read[one] for one in before))
        values = {key: value for key, value in values.items() if key not in known} | {"seed": recipe.seed}
        if method.encoder:
            values[f"encoder.{method.encoder}"] = encoder
        read[stage] = set(values)
        earlier = [names[one] for one in before]
        inputs = ("data", *(("pretrain",) * stage.uses_model), *((TARGETS,) * stage.uses_items), *earlier)
        key = (stage.owner or method.implementation, replace(stage, owner=""), dumps(values, sort_keys=True), inputs)
        if key not in shared:
            name = shared[key] = f"{folder}/{stage.name}"
            yield StageSpec(method=method, recipe=recipe, method_stage=stage, name=name, reads=values, inputs=inputs)
        names[stage] = shared[key]
    earlier = list(names.values())
    if method.is_ensemble:
        ranked["ensemble.weights"] = dict(method.weights)
        earlier = [f"attribute/{member}" for member in method.weights]
    inputs = tuple(earlier if method.is_ensemble else earlier[-1:]) or ("data", TARGETS)
    yield StageSpec(method=method, recipe=recipe, method_stage=None, name=folder, reads=ranked, inputs=inputs)


def all_method_stages(
    recipe: Recipe, methods: Iterable[MethodCard], checkpoint: Sequence[str], encoders: Mapping[str, ReadyMetric]
) -> dict[str, StageSpec]:
    """Return the stages of all methods by name; members of ensembles come before the ensembles."""
    shared: Shared = {}
    specs = {}
    for method in sorted(methods, key=lambda method: method.is_ensemble):
        encoder = encoders.get(method.encoder or "")
        for spec in method_stages(recipe, method, checkpoint, encoder.digest if encoder else None, shared):
            specs[spec.name] = spec
    return specs


def known_methods(
    names: Collection[str], learn: Callable[[Collection[str]], Mapping[str, float]]
) -> dict[str, MethodCard]:
    """Return all methods by name: those of the package, and those in `names`.

    If an ensemble in `names` has no weights, it gets those that `learn` returns for the names of the single methods.
    """
    methods = available_methods(names)
    single = [name for name, method in methods.items() if not method.is_ensemble]
    for name in names:
        if methods[name].is_ensemble and not methods[name].weights:
            methods[name] = replace(methods[name], weights=learn(single))
    return methods


def ready_encoders(weights_dir: str | None) -> dict[str, ReadyMetric]:
    """Return, by name, the pretrained networks whose weights are on this machine."""
    encoders = {}
    for name in ENCODERS:
        try:
            (encoders[name],), _ = ready_metrics((name,), weights_dir)
        except MachineError:
            continue
    return encoders


def check_method(method: MethodCard, recipe: Recipe, card: Card, weights_dir: str | None) -> None:
    """Raise InputError or MachineError, in one line, if a method lacks conditions, weights or a pretrained network."""
    if method.needs_condition and card.condition == "none" and not recipe.model.reads_text:
        raise InputError(f"{method.name} compares labels or captions, and this data set has none; choose other methods")
    if method.is_ensemble and not method.weights:
        raise InputError(
            f"{method.name} needs weights: give --set ensemble.learned_from=URL, a run with finished counterfactual"
            " tests on other seeds"
        )
    if method.encoder:
        ready_metrics((method.encoder,), weights_dir)


def learned_from(source: str, run_url: str, seed: int, methods: Collection[str]) -> dict[str, float]:
    """Return weights of these methods, learned from the finished counterfactual tests of another run (spec 10).

    InputError if `source` has no such tests, if they are of this run's own seed, or if `source` is this run itself,
    whose report would replace the one to learn from.
    """
    source = storage.absolute(source)
    if f"{run_url}/".startswith(f"{source.rstrip('/')}/"):
        raise InputError(f"ensemble.learned_from: {source} is this run itself; give another folder with --run")
    url = storage.join(source, "report/report.json")
    document = read_json_or_none(url)
    if document is None:
        raise InputError(f"ensemble.learned_from: no report at {url}; run mucs-ray run there first")
    tests = finished_tests(document)
    if tests is None:
        raise InputError(f"ensemble.learned_from: {url} has no counterfactual test; run mucs-ray run there first")
    if seed in tests.seeds:
        raise InputError(f"ensemble.learned_from: {url} has seed {seed} itself; learn weights on other seeds")
    return learned_weights({method: auc for method, auc in tests.mean_auc.items() if method in methods})


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedTests:
    """The part of a report's numbers from which weights are learned."""

    seeds: list[int]
    mean_auc: dict[str, float]
    """The AUC of each method against random removal, mean over the metrics."""


def finished_tests(report: Mapping[str, Any]) -> FinishedTests | None:
    """Return the counterfactual tests in the content of report.json; None if there are none."""
    evaluation = report.get("evaluation")
    if not evaluation:
        return None
    auc = {
        tested["method"]: [metric["auc"] for metric in tested["metrics"].values()] for tested in evaluation["methods"]
    }
    means = {method: sum(values) / len(values) for method, values in auc.items()}
    return FinishedTests(seeds=evaluation["seeds"], mean_auc=means)
