"""The stages in order, as one reads the paper (spec 12).

    pretrain -> generate -> attribute(method) -> retrain(method) -> regenerate(method) -> evaluate(method) -> report

What each stage reads is listed here once; its fingerprint, and so what a changed knob makes stale, follows from it.
A stage's name is its folder in the run directory.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import Any, NamedTuple

from rich.console import Console

from mucs_ray import storage
from mucs_ray.attribution.card import MethodCard
from mucs_ray.attribution.registry import LEARNED, REFERENCE, installed_methods
from mucs_ray.config.recipe import Recipe, build, check_fits
from mucs_ray.config.values import with_new_sections
from mucs_ray.data.table import Dataset
from mucs_ray.errors import InputError, MucsError
from mucs_ray.evaluation.metrics import SSIM_LEAST_PX, ReadyMetric, ready_metrics
from mucs_ray.pipeline.method_stages import (
    GENERATED,
    TARGETS,
    StageSpec,
    all_method_stages,
    check_method,
    known_methods,
    learned_from,
    ready_encoders,
    recipe_slice,
)
from mucs_ray.store.events import EventLog
from mucs_ray.store.item_names import item_name
from mucs_ray.store.run import Stage, State, open_run, read_json_or_none

REPORT_LAYOUT = 4
"""Raise when the report changes, so that reports are made again."""
PHASES = ("pretrain", "generate", "attribute", "retrain", "regenerate", "evaluate", "report")
"""First folders of the stages' names, in order."""
UNRELATED = "unrelated"
"""Not a method: the similarities of different generated images, as a level to compare with."""


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """One run: a recipe with its seed, a data set, a run directory, and the methods that are compared in it."""

    recipe: Recipe
    dataset: Dataset
    run_url: str
    console: Console
    methods: tuple[str, ...] = ("mucs",)
    """Besides the reference, random removal, which every counterfactual test has."""
    weights_dir: str | None = None
    """Where the weights of similarity metrics are looked for first."""
    address: str | None = None
    verbose: bool = False
    weights_digest: str | None = None
    """sha256 of the recipe's `weights`, if it has any."""
    learned: Mapping[str, float] = field(default_factory=dict)
    """Weights of ensemble/learned, if recipe.json has any: the run they are from may have been moved since."""

    @classmethod
    def open(
        cls,
        recipe: Recipe,
        dataset: Dataset,
        run_url: str,
        *,
        weights_dir: str | None = None,
        **how: Any,  # noqa: ANN401
    ) -> "Pipeline":
        """Check that model, data and counts fit and that the run directory can be written. InputError if not."""
        check_fits(recipe, dataset.card)
        digest = sha256(storage.read_bytes(recipe.weights)).hexdigest() if recipe.weights else None
        run_url = open_run(run_url)
        if weights_dir is None:  # as in the command before, or a report would lose what was measured with them
            known = read_json_or_none(storage.join(run_url, "recipe.json")) or {}
            weights_dir = known.get("weights_dir")
        else:
            weights_dir = storage.absolute(weights_dir)
        return cls(
            recipe=recipe, dataset=dataset, run_url=run_url, weights_dir=weights_dir, weights_digest=digest, **how
        )

    def describe(self) -> dict[str, Any]:
        """The content of recipe.json: enough to see where the run stands from any folder, without the weights' file."""
        more = {"weights_sha256": self.weights_digest, "methods": self.methods, "weights_dir": self.weights_dir}
        learned = dict(self.known[LEARNED].weights)
        return {**self.recipe.to_dict(), "data": self.dataset.url, **more, **({"learned": learned} if learned else {})}

    @cached_property
    def events(self) -> EventLog:
        """What this command does on this run."""
        return EventLog(self.run_url)

    @cached_property
    def compared(self) -> tuple[str, ...]:
        """The methods of the counterfactual test, the reference first."""
        return tuple(dict.fromkeys((REFERENCE, *self.methods)))

    @cached_property
    def similarities(self) -> tuple[list[ReadyMetric], dict[str, str]]:
        """The metrics that can be measured here, and by name a line on each that cannot."""
        asked = self.recipe.evaluate.metrics
        ready, left_out = ready_metrics(asked, self.weights_dir)
        if self.dataset.card.size < SSIM_LEAST_PX and any(metric.name == "ssim" for metric in ready):
            reason = f"SSIM needs images of {SSIM_LEAST_PX} px or more, and these have {self.dataset.card.size}"
            if "ssim" in asked:
                raise InputError(f"{reason}; name other metrics in evaluate.metrics")
            ready, left_out = [metric for metric in ready if metric.name != "ssim"], {**left_out, "ssim": reason}
        return ready, left_out

    @cached_property
    def known(self) -> dict[str, MethodCard]:
        """The methods of the package, those asked for, and installed ones that the run directory holds, by name."""
        begun = [name for name in self.begun() if name in installed_methods()]
        return known_methods(tuple(dict.fromkeys((*self.methods, *begun))), self.learn)

    def begun(self) -> list[str]:
        """The folders of methods, each shared with its variants, of which the run directory holds something."""
        return sorted(storage.names(storage.join(self.run_url, "attribute")))

    def learn(self, methods: Collection[str]) -> Mapping[str, float]:
        """Weights of ensemble/learned: as this run has had them, else out of the run that the recipe names."""
        source, recipe = self.recipe.ensemble.learned_from, self.recipe
        return self.learned or (learned_from(source, self.run_url, recipe.seed, methods) if source else {})

    @cached_property
    def needed(self) -> tuple[str, ...]:
        """The methods to attribute with: those asked for, and the members of ensembles among them."""
        members = [member for name in self.methods for member in self.known[name].weights]
        return tuple(dict.fromkeys((*self.compared, *members)))

    @cached_property
    def encoders(self) -> dict[str, ReadyMetric]:
        """The pretrained networks that methods compare images with, by name, as far as their weights are here."""
        return ready_encoders(self.weights_dir)

    @cached_property
    def method_stages(self) -> dict[str, StageSpec]:
        """Each stage under attribute/, by its name."""
        chosen = ("train.checkpoint",) if self.recipe.trains else ()
        return all_method_stages(self.recipe, self.known.values(), chosen, self.encoders)

    def stages_of(self, method: str) -> list[str]:
        """Every stage of a method's attribution, those included that it shares with others."""
        waiting, names = [f"attribute/{method}"], set[str]()
        while waiting:
            name = waiting.pop()
            names.add(name)
            waiting += [each for each in self.method_stages[name].inputs if each in self.method_stages]
        return [name for name in self.method_stages if name in names]

    @cached_property
    def stages(self) -> dict[str, Stage]:
        """Every stage but the report as it would be run now, in order, by its name."""
        stages: dict[str, Stage] = {}
        extra = {"data": self.dataset.card.fingerprint}

        def stage(name: str, reads: Mapping[str, Any], *inputs: str) -> None:
            known = {each: one.fingerprint for each, one in stages.items()} | extra
            picked = {each: known[each] for each in inputs}
            stages[name] = Stage(run_url=self.run_url, name=name, reads=reads, inputs=picked)

        recipe = self.recipe
        chosen = ("train.checkpoint",) if recipe.trains else ()
        trained = recipe_slice(recipe, "model", "train", "seed", without=("train.checkpoint",))
        if not recipe.trains:
            stage("pretrain", {"weights": self.weights_digest, **recipe_slice(recipe, "model")})
        else:
            stage("pretrain", trained, "data")
        generated = recipe_slice(recipe, "generate", "seed", *chosen)
        stage("generate", generated, "data", "pretrain")
        # the controls are generated beside the targets, but no attribution depends on them
        targets = {name: value for name, value in generated.items() if name != "generate.controls"}
        stage(TARGETS, targets, "data", "pretrain")
        for spec in self.method_stages.values():
            stage(spec.name, spec.reads, *spec.inputs)
        stages.pop(TARGETS)
        removal = recipe_slice(recipe, "remove", without=() if recipe.remove.mode == "matched" else ("remove.size",))
        for method in self.known if recipe.trains else ():
            retrained = self.retrained(method)
            for name in retrained:
                stage(name, {**trained, **removal}, "data", f"attribute/{method}")
            stage(f"regenerate/{method}", generated, "data", "generate", *retrained)
        return stages

    @cached_property
    def evaluations(self) -> dict[str, Stage]:
        """The stages that compare images. MachineError if a metric was asked for by name and its weights are absent."""
        if not self.recipe.trains:
            return {}
        reads = {f"metric.{each.name}": each.digest for each in self.similarities[0]}
        pairs = {method: ("generate", f"regenerate/{method}") for method in self.known} | {UNRELATED: ("generate",)}
        return {
            name: Stage(
                run_url=self.run_url,
                name=name,
                reads=reads if key != UNRELATED else {**reads, **recipe_slice(self.recipe, "evaluate.unrelated")},
                inputs={each: self.stages[each].fingerprint for each in inputs},
            )
            for key, name, inputs in ((key, f"evaluate/{key}", inputs) for key, inputs in pairs.items())
        }

    def report(self, planned: Collection[str] = ()) -> Stage:
        """The report of this run, which shows whatever is done, or will be by then."""
        methods = self.available_methods()
        evaluated = [name for name in self.evaluated if name.removeprefix("evaluate/") in (*methods, UNRELATED)]
        candidates = ("generate", *(f"attribute/{method}" for method in methods), *evaluated)
        shown = [name for name in candidates if name in planned or self.stage(name).state().status == "done"]
        reads = {"layout": REPORT_LAYOUT, **recipe_slice(self.recipe, "name")}
        inputs = {name: self.stage(name).fingerprint for name in shown}
        return Stage(run_url=self.run_url, name="report", reads=reads, inputs=inputs)

    def available_methods(self) -> list[str]:
        """Methods that are asked for here, or of which the run directory holds something."""
        begun = self.begun()
        return [name for name in self.known if name in self.needed or name.split("/")[0] in begun]

    @property
    def evaluated(self) -> dict[str, Stage]:
        """The stages that compare images, if the metrics' weights are here."""
        try:
            return self.evaluations
        except MucsError:
            return {}

    def stage(self, name: str) -> Stage:
        """A stage by its name; the report as of what is done now."""
        if name == "report":
            return self.report()
        return self.evaluations[name] if name.startswith("evaluate/") else self.stages[name]

    def retrained(self, method: str) -> list[str]:
        """The trainings without a method's images: one, or one an item."""
        if self.recipe.remove.mode != "per-item":
            return [f"retrain/{method}"]
        return [f"retrain/{method}/{item_name(number)}" for number in range(self.recipe.generate.items)]

    def target_stages(self, command: str) -> list[str]:
        """The stages a command is for."""
        if command not in ("pretrain", "generate"):
            for name in self.needed:
                check_method(self.known[name], self.dataset.card, self.weights_dir)
        if command in ("retrain", "regenerate", "evaluate") and not self.recipe.model.trains:
            raise InputError(
                f"{command} trains the model again without some images, and model.kind {self.recipe.model.kind} cannot"
                " be trained here; use attribute"
            )
        if command in ("retrain", "regenerate", "evaluate") and self.recipe.weights:
            raise InputError(
                f"{command} needs a model trained in this run, to train it again without some images; leave --weights"
                " out, or use attribute"
            )
        match command:
            case "pretrain" | "generate":
                return [command]
            case "attribute" | "report":
                return [*(f"attribute/{method}" for method in self.methods), "report"]
            case "retrain":
                return [name for method in self.compared for name in self.retrained(method)]
            case "regenerate":
                return [f"regenerate/{method}" for method in self.compared]
            case _:
                compared = [f"evaluate/{method}" for method in (*self.compared, UNRELATED)]
                return [*(f"attribute/{method}" for method in self.methods), *compared, "report"]

    def last_command(self) -> str:
        """The furthest of the commands that this run's directory shows to have been given."""
        folders = set(storage.names(self.run_url))
        return next((each for each in ("evaluate", "regenerate", "retrain") if each in folders), "attribute")

    def plan(self, command: str) -> dict[str, State]:
        """Where each stage stands that a command needs, in order, and why."""
        needed: set[str] = set()
        waiting = [name for name in self.target_stages(command) if name != "report"]
        while waiting:
            name = waiting.pop()
            needed.add(name)
            waiting += [GENERATED.get(each, each) for each in self.stage(name).inputs if each != "data"]
        order = [*self.stages, *(self.evaluations if command == "evaluate" else ())]
        states = {name: self.stage(name).state() for name in order if name in needed}
        if "report" in self.target_stages(command):
            states["report"] = self.report(planned=list(states)).state()
            if not storage.exists(storage.join(self.run_url, "report.html")):
                states["report"] = State(status="missing", reason="no report.html")
        return states


class StageRef(NamedTuple):
    """One stage of one run."""

    pipeline: Pipeline
    name: str

    @property
    def phase(self) -> str:
        """The first folder of the stage's name."""
        return self.name.split("/")[0]

    @property
    def is_training(self) -> bool:
        """Whether the stage trains a network."""
        return self.phase == "retrain" or (self.name == "pretrain" and self.pipeline.recipe.trains)

    @property
    def streams(self) -> bool:
        """Whether the stage goes over the training set unit by unit, and so can share a pass with others."""
        spec = self.pipeline.method_stages.get(self.name)
        return spec is not None and spec.streams


def reopen(run_url: str, *, console: Console) -> Pipeline:
    """A run as its directory describes it. InputError if there is none."""
    run_url = storage.absolute(run_url)
    values = read_json_or_none(storage.join(run_url, "recipe.json"))
    if values is None:
        raise InputError(
            f"no run at {run_url} (expected recipe.json there); start one with: mucs-ray attribute --run URL"
        )
    digest, weights_dir = values.pop("weights_sha256", None), values.pop("weights_dir", None)
    methods, learned = tuple(values.pop("methods", ("mucs",))), values.pop("learned", {})
    recipe, dataset = build(with_new_sections(values), methods), Dataset.open(values["data"])
    return Pipeline(
        recipe=recipe,
        dataset=dataset,
        run_url=run_url,
        console=console,
        methods=methods,
        weights_dir=weights_dir,
        weights_digest=digest,
        learned=learned,
    )
