"""The stages of a run in the paper's order (spec 12).

    pretrain -> generate -> attribute(method) -> retrain(method) -> regenerate(method) -> evaluate(method) -> report

The values that each stage reads are listed only here. Its fingerprint follows from them, and with it which stages a
changed setting makes stale. A stage's name is the name of its folder in the run directory.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

from rich.console import Console
from rich.markup import escape

from mucs_ray import storage
from mucs_ray.attribution.card import MethodCard
from mucs_ray.attribution.registry import LEARNED, REFERENCE, installed_methods
from mucs_ray.config.recipe import Recipe, build, check_fits
from mucs_ray.config.values import with_new_sections
from mucs_ray.data.anchor_checks import check_anchors
from mucs_ray.data.encoded import Encoded
from mucs_ray.data.group_manifests import TrainManifest, with_noise
from mucs_ray.data.groups import Groups, find_groups
from mucs_ray.data.queries import Query, model_url, prompt_line, query_folder, with_class, with_own_prompt
from mucs_ray.data.table import Dataset
from mucs_ray.errors import InputError, MucsError
from mucs_ray.evaluation.config import Mode
from mucs_ray.evaluation.metrics import SSIM_LEAST_PX, ReadyMetric, ready_metrics
from mucs_ray.pipeline.generated_queries import recognized
from mucs_ray.pipeline.groups_stages import (
    GROUP_PHASES,
    GROUPS,
    RESULT,
    RETRAINED_GROUPS,
    check_groups,
    group_stages,
)
from mucs_ray.pipeline.lds_stages import (
    LDS,
    LDS_PHASES,
    OUTPUTS,
    SIMILARITY,
    TRAININGS,
    check_lds,
    lds_stages,
    scores_stage,
    similarity_stage,
)
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
from mucs_ray.pipeline.recipe_file import RecordedRun, read_recorded_run
from mucs_ray.store.events import EventLog
from mucs_ray.store.item_names import item_name
from mucs_ray.store.run import Stage, State, open_run

REPORT_LAYOUT = 6
"""The version of the report's layout; a higher one makes finished reports stale."""
PHASES = (
    "pretrain",
    "encode",
    "generate",
    "attribute",
    "retrain",
    "regenerate",
    "evaluate",
    *LDS_PHASES,
    *GROUP_PHASES,
    "report",
)
"""The phases of the stages (`StageRef.phase`), in order."""
RETRAINS = ("retrain", TRAININGS, RETRAINED_GROUPS)
"""The phases that train without some of the images."""
RETRAINING = ("retrain", "regenerate", "evaluate", "lds")
"""The commands that train the model again."""
UNRELATED = "unrelated"
"""The key, beside the methods' names, of the similarities of different generated images: a level to compare with."""
ENCODE = "encode"
"""The stage that brings the training images into the space of a model that does not work on pictures."""
FRESH = "generate/fresh"
"""The stage that generates from the conditions of pictures of the user's, to be compared in their place."""


class RemovalTest(NamedTuple):
    """One counterfactual test: a method's images are removed in one way."""

    method: str
    mode: Mode


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """One run: a recipe with its seed, a data set, a run directory, and the methods to compare."""

    recipe: Recipe
    dataset: Dataset
    run_url: str
    console: Console
    methods: tuple[str, ...] = ("mucs",)
    """The methods besides the reference, random removal, which every counterfactual test has."""
    weights_dir: str | None = None
    """The folder in which the weights of similarity metrics are looked for first."""
    address: str | None = None
    verbose: bool = False
    weights_digest: str | None = None
    """The sha256 of the recipe's `weights`; None if it has none."""
    queries: tuple[Query, ...] = ()
    """The pictures of the user's that are explained instead of generated ones, in the order of their idx."""
    model_run: "Pipeline | None" = None
    """With queries: the run with the model, and with all that does not depend on the queries."""
    learned: Mapping[str, float] = field(default_factory=dict)
    """The weights of ensemble/learned in recipe.json: the run from which they were learned may have moved since."""

    @classmethod
    def open(
        cls,
        recipe: Recipe,
        dataset: Dataset,
        run_url: str,
        *,
        weights_dir: str | None = None,
        queries: tuple[Query, ...] = (),
        **options: Any,  # noqa: ANN401 - other fields
    ) -> "Pipeline":
        """Open a run after checking that model, data and counts fit and that the run directory can be written.

        With `queries`, the run that explains them is returned. InputError if anything does not fit.
        """
        check_fits(recipe, dataset.card, generates=not queries)
        digest = storage.digest(recipe.weights) if recipe.weights else None
        run_url = open_run(run_url)
        recorded = read_recorded_run(run_url, whole=True)
        if weights_dir is None:  # as in the command before, or a report would lose what was measured with them
            weights_dir = recorded.weights_dir if recorded else None
        else:
            weights_dir = storage.absolute(weights_dir)
        run = cls(
            recipe=recipe, dataset=dataset, run_url=run_url, weights_dir=weights_dir, weights_digest=digest, **options
        )
        return run.explaining(queries) if queries else run

    def explaining(self, queries: Sequence[Query]) -> "Pipeline":
        """Return the run that explains a user's pictures with the model of this one, in a folder of its directory.

        InputError if a condition does not fit, or this run's model was made with other settings.
        """
        state = self.stages["pretrain"].state()
        if state.status == "stale":
            raise InputError(
                f"{self.run_url} has a model that was made with other settings ({state.reason}); leave these settings"
                " out to explain pictures with it, or give another --run (what is known of a picture, such as its seed,"
                " goes into metadata.jsonl)"
            )
        card, model = self.dataset.card, self.recipe.model
        reads = {"conditional": model.conditional, "reads_text": model.reads_text}
        named = [with_class(query, card, **reads) for query in queries]
        prompted = [with_own_prompt(query, card, **reads) for query in named]
        if taken := [query for query, before in zip(prompted, named, strict=True) if query.prompt != before.prompt]:
            self.console.print(escape(prompt_line(taken)), highlight=False, soft_wrap=True)
        known = recognized(prompted, self.stages["generate"])
        recipe = replace(self.recipe, generate=replace(self.recipe.generate, items=len(known), controls=0))
        if len(known) == 1 and recipe.remove.mode == "both" and not recipe.remove.size:
            recipe = replace(recipe, remove=replace(recipe.remove, mode="union"))  # of one list both remove the same
        return replace(
            self,
            recipe=recipe,
            run_url=storage.join(self.run_url, query_folder(known)),
            queries=known,
            model_run=self,
        )

    def describe(self) -> dict[str, Any]:
        """Return the content of recipe.json."""
        recorded = RecordedRun(
            recipe={**self.recipe.to_dict(), "data": self.dataset.url},
            weights_sha256=self.weights_digest,
            methods=self.methods,
            weights_dir=self.weights_dir,
            learned=self.known[LEARNED].weights,
            queries=self.queries,
        )
        return recorded.to_json()

    @cached_property
    def events(self) -> EventLog:
        """The log of what this command does on this run."""
        return EventLog(self.run_url)

    @cached_property
    def compared(self) -> tuple[str, ...]:
        """The methods of the counterfactual test, the reference first."""
        return tuple(dict.fromkeys((REFERENCE, *self.methods)))

    @cached_property
    def regeneration(self) -> Literal["same", "fresh", "none"]:
        """How images are made again after a retraining: from the same noise as before or, for pictures of the user's,
        afresh from their conditions, or not at all.
        """
        if self.queries and self.recipe.evaluate.fresh:
            return "fresh"
        return "same" if all(query.generated for query in self.queries) else "none"

    @cached_property
    def similarities(self) -> tuple[list[ReadyMetric], dict[str, str]]:
        """The metrics that can be measured here, and one line, by name, on each that cannot.

        InputError if the recipe names SSIM and the images are too small for it.
        """
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
        """By name, the package's methods, those asked for, and installed ones with a folder in the run directory."""
        begun = [name for name in self.begun() if name in installed_methods()]
        return known_methods(tuple(dict.fromkeys((*self.methods, *begun))), self.learn)

    def begun(self) -> list[str]:
        """Return the methods of which the run directory has a folder, which each shares with its variants."""
        return sorted(storage.names(storage.join(self.run_url, "attribute")))

    def learn(self, methods: Collection[str]) -> Mapping[str, float]:
        """Return the weights of ensemble/learned: those of recipe.json, else those of the run that the recipe names."""
        source, recipe = self.recipe.ensemble.learned_from, self.recipe
        return self.learned or (learned_from(source, self.run_url, recipe.seed, methods) if source else {})

    @cached_property
    def needed(self) -> tuple[str, ...]:
        """The methods to attribute with: the compared ones and the members of ensembles among them."""
        members = [member for name in self.methods for member in self.known[name].weights]
        return tuple(dict.fromkeys((*self.compared, *members)))

    @cached_property
    def encoders(self) -> dict[str, ReadyMetric]:
        """By name, the pretrained networks with which methods compare images and whose weights are on this machine."""
        return ready_encoders(self.weights_dir)

    @cached_property
    def method_stages(self) -> dict[str, StageSpec]:
        """Each stage under attribute/, by its name."""
        checkpoint = ("train.checkpoint",) if self.recipe.trains else ()
        return all_method_stages(self.recipe, self.known.values(), checkpoint, self.encoders)

    def stages_of(self, method: str) -> list[str]:
        """Return the names of all stages of a method's attribution, also of those that it shares with other methods."""
        waiting, names = [f"attribute/{method}"], set[str]()
        while waiting:
            name = waiting.pop()
            names.add(name)
            waiting += [earlier for earlier in self.method_stages[name].inputs if earlier in self.method_stages]
        return [name for name in self.method_stages if name in names]

    @cached_property
    def stages(self) -> dict[str, Stage]:
        """Every stage but the evaluations and the report, as it would be run now, in order, by its name."""
        stages: dict[str, Stage] = {}
        dataset, of_queries = {"data": self.dataset.card.fingerprint}, {"generate", TARGETS}

        def stage(name: str, reads: Mapping[str, Any], *inputs: str) -> None:
            fingerprints = {earlier: stages[earlier].fingerprint for earlier in inputs if earlier in stages} | dataset
            own = {earlier: fingerprints[earlier] for earlier in inputs}
            if of_queries.intersection(inputs):
                of_queries.add(name)
            url = self.model_run.run_url if self.model_run and name not in of_queries else self.run_url
            stages[name] = Stage(run_url=url, name=name, reads=reads, inputs=own)

        recipe = self.recipe
        checkpoint = ("train.checkpoint",) if recipe.trains else ()
        if not recipe.trains:
            stage("pretrain", {"weights": self.weights_digest, **recipe_slice(recipe, "model")})
        else:
            stage("pretrain", self.trained, "data")
        encoding = recipe.model.encoding()
        encoded = () if encoding is None else (ENCODE,)
        if encoding is not None:
            stage(ENCODE, encoding, "data")
        generated = regenerated = recipe_slice(recipe, "generate", "seed", *checkpoint)
        if self.queries:
            generated = {"queries": [query.reads() for query in self.queries]} | recipe_slice(recipe, "model")
            regenerated |= recipe_slice(recipe, "evaluate.fresh")
        stage("generate", generated, "data", *(() if self.queries else ("pretrain",)))
        # the controls are generated beside the targets, but no attribution depends on them
        targets = {name: value for name, value in generated.items() if name != "generate.controls"}
        stage(TARGETS, targets, *stages["generate"].inputs)
        for spec in self.method_stages.values():
            reads_images = spec.method_stage is not None and "data" in spec.inputs
            stage(spec.name, spec.reads, *spec.inputs, *(encoded if reads_images else ()))
        stages.pop(TARGETS)
        first = "generate"
        if recipe.trains and self.regeneration == "fresh":
            stage(first := FRESH, regenerated, "data", "generate", "pretrain")
        for test in self.tests.values() if recipe.trains else ():
            removal = {"remove.mode": test.mode}
            if test.mode == "matched":
                removal |= recipe_slice(recipe, "remove.size")
            retrained = self.retrained(test)
            for name in retrained:
                stage(name, {**self.trained, **removal}, "data", f"attribute/{test.method}")
            if self.regeneration != "none":
                stage(f"regenerate/{self.key(test)}", regenerated, "data", first, *retrained)
        return stages

    @property
    def encoded_dataset(self) -> Dataset:
        """The data set with z of its training images, once they are encoded."""
        stage = self.stages.get(ENCODE)
        manifest = stage.manifest() if stage is not None else None
        if stage is None or manifest is None or manifest.fingerprint != stage.fingerprint:
            return self.dataset
        tag = stage.fingerprint[:8]
        return replace(self.dataset, encoded=Encoded(folder=stage.folder, tag=tag, digests=manifest.files))

    @cached_property
    def evaluations(self) -> dict[str, Stage]:
        """The stages that compare images, by name; none if the run does not train its model.

        MachineError if the recipe names a metric whose weights are absent.
        """
        if not self.recipe.trains:
            return {}
        metrics, losses, regenerates = {}, {}, self.regeneration != "none"
        if regenerates:
            metrics = {f"metric.{metric.name}": metric.digest for metric in self.similarities[0]}
        if self.queries:  # their losses are measured too
            losses = recipe_slice(self.recipe, "evaluate.noises", "score.epsilon", "train.checkpoint", "seed")
        first, stages = FRESH if self.regeneration == "fresh" else "generate", {}
        for key, test in self.tests.items():
            inputs = ("generate", "pretrain", *self.retrained(test)) if self.queries else ()
            inputs += (first, f"regenerate/{key}") if regenerates else ()
            stages[f"evaluate/{key}"] = self.evaluation(key, metrics | losses, inputs)
        if regenerates:
            reads = metrics | recipe_slice(self.recipe, "evaluate.unrelated")
            stages[f"evaluate/{UNRELATED}"] = self.evaluation(UNRELATED, reads, [first])
        return stages

    def evaluation(self, key: str, reads: Mapping[str, Any], inputs: Iterable[str]) -> Stage:
        """Return the stage that compares what earlier stages have made."""
        fingerprints = {name: self.stages[name].fingerprint for name in inputs}
        return Stage(run_url=self.run_url, name=f"evaluate/{key}", reads=reads, inputs=fingerprints)

    @cached_property
    def lds_stages(self) -> dict[str, Stage]:
        """The stages of the linear datamodeling score, by name."""
        targets = self.stages[f"attribute/{REFERENCE}"].inputs[TARGETS]
        stages = lds_stages(
            self.run_url,
            self.recipe,
            self.dataset.card,
            trained=self.trained,
            targets=targets,
        )
        return stages | {SIMILARITY: similarity_stage(stages, self.recipe, self.similarities[0])}

    def lds_scores(self, planned: Collection[str] = ()) -> Stage:
        """Return the stage that scores the methods whose attributions are done, or among the `planned` stages."""
        shown = [f"attribute/{method}" for method in self.available_methods()]
        attributions = {
            name: self.stages[name].fingerprint
            for name in shown
            if name in planned or self.stages[name].state().status == "done"
        }
        return scores_stage(self.lds_stages, self.recipe, attributions)

    def has_lds(self, planned: Collection[str] = ()) -> bool:
        """Return True if the linear datamodeling score is planned or done."""
        if LDS in planned:
            return True
        begun = self.recipe.trains and not self.queries and storage.exists(storage.join(self.run_url, LDS))
        return begun and bool(self.evaluated) and self.lds_scores(planned).state().status == "done"

    @cached_property
    def groups(self) -> Groups:
        """The groups of training images that the recipe names, some images perhaps misplaced on purpose.

        InputError if they cannot be compared.
        """
        config = self.recipe.groups
        found = find_groups(self.dataset, config.by)
        return with_noise(found, share=config.misplaced, seed=self.recipe.seed) if config.misplaced else found

    @cached_property
    def groups_manifest(self) -> TrainManifest:
        """Who is in which group."""
        return TrainManifest.of(self.groups, self.dataset.card.name)

    @cached_property
    def group_stages(self) -> dict[str, Stage]:
        """The stages of group attribution, by name."""
        return self.group_stages_with(self.methods)

    def group_stages_with(self, methods: Sequence[str]) -> dict[str, Stage]:
        """Return the stages of group attribution that sum up the scores of these methods."""
        return group_stages(
            self.run_url,
            self.recipe,
            self.dataset.card,
            self.groups,
            self.groups_manifest.digest,
            trained=self.trained,
            earlier=self.stages,
            methods=methods,
        )

    def groups_result(self, planned: Collection[str] = ()) -> Stage | None:
        """Return the stage with the scores of groups, if it is planned or done under the present settings.

        It may be done with other methods than this command has.
        """
        if RESULT in planned:
            return self.group_stages[RESULT]
        manifest = Stage(run_url=self.run_url, name=RESULT, reads={}, inputs={}).manifest()
        if self.queries or manifest is None:
            return None
        made_of = [name.removeprefix("attribute/") for name in manifest.inputs]
        try:
            stage = self.group_stages_with([name for name in made_of if name in self.known])[RESULT]
        except MucsError:  # a file of groups that is gone, or does not fit the data any more
            return None
        return stage if stage.state().status == "done" else None

    @property
    def trained(self) -> dict[str, Any]:
        """The values of the recipe that every training reads."""
        return recipe_slice(self.recipe, "model", "train", "seed", without=("train.checkpoint",))

    def report(self, planned: Collection[str] = ()) -> Stage:
        """Return the stage of this run's report, which shows the stages that are done and the `planned` ones."""
        methods = self.available_methods()
        keys = [*(key for key, test in self.tests.items() if test.method in methods), UNRELATED]
        evaluated = [name for name in self.evaluated if name.removeprefix("evaluate/") in keys]
        candidates = ("generate", *(f"attribute/{method}" for method in methods), *evaluated)
        shown = [name for name in candidates if name in planned or self.stage(name).state().status == "done"]
        reads = {"layout": REPORT_LAYOUT, **recipe_slice(self.recipe, "name")}
        inputs = {name: self.stage(name).fingerprint for name in shown}
        if self.has_lds(planned):
            inputs[LDS] = self.lds_scores(planned).fingerprint
        if grouped := self.groups_result(planned):
            inputs[RESULT] = grouped.fingerprint
        return Stage(run_url=self.run_url, name="report", reads=reads, inputs=inputs)

    def available_methods(self) -> list[str]:
        """Return the methods that this command needs, and those of which the run directory has a folder."""
        begun = self.begun()
        return [name for name in self.known if name in self.needed or name.split("/")[0] in begun]

    @property
    def evaluated(self) -> dict[str, Stage]:
        """The stages that compare images; none if weights of metrics are absent."""
        try:
            return self.evaluations
        except MucsError:
            return {}

    def stage(self, name: str) -> Stage:
        """Return a stage by its name; the report shows what is done now."""
        if name == "report":
            return self.report()
        folder = name.split("/")[0]
        if folder == LDS:
            return self.lds_scores() if name == LDS else self.lds_stages[name]
        if folder == GROUPS:
            return self.group_stages[name]
        return self.evaluations[name] if name.startswith("evaluate/") else self.stages[name]

    @cached_property
    def tests(self) -> dict[str, RemovalTest]:
        """The counterfactual tests of all methods by their keys, the names of their folders in the phases of a test."""
        tests = [RemovalTest(method, mode) for method in self.known for mode in self.recipe.remove.modes]
        return {self.key(test): test for test in tests}

    def key(self, test: RemovalTest) -> str:
        """Return the key of a test: the method, and below it the mode if there is another mode beside it."""
        return test.method if test.mode == self.recipe.remove.modes[-1] else f"{test.method}/{test.mode}"

    def compared_keys(self) -> list[str]:
        """Return the keys of the tests of the compared methods, the reference first."""
        return [key for method in self.compared for key, test in self.tests.items() if test.method == method]

    def retrained(self, test: RemovalTest) -> list[str]:
        """Return the names of the trainings of a test: one, or one for each item."""
        if test.mode != "per-item":
            return [f"retrain/{self.key(test)}"]
        return [f"retrain/{self.key(test)}/{item_name(number)}" for number in range(self.recipe.generate.items)]

    def target_stages(self, command: str) -> list[str]:
        """Return the names of the stages that a command is for.

        InputError or MachineError if the command cannot run with this model, data set or these methods.
        """
        if command not in ("pretrain", "generate"):
            for name in self.needed:
                check_method(self.known[name], self.recipe, self.dataset.card, self.weights_dir)
        if command in ("pretrain", "lds", GROUPS) and self.queries:
            raise InputError(f"{command} explains no pictures; leave --image and --queries out, or use attribute")
        if command == "regenerate" and self.regeneration == "none":
            strange = next(query.name for query in self.queries if not query.generated)
            raise InputError(
                f"{strange} was not generated in this run, so the noise it was made from is not known; use evaluate,"
                " which compares its loss, or --set evaluate.fresh=8, which generates from its condition"
            )
        if command in RETRAINING and not self.recipe.model.trains:
            raise InputError(
                f"{command} trains the model again without some images, and model.kind {self.recipe.model.kind} cannot"
                " be trained here; use attribute"
            )
        if command in RETRAINING and self.recipe.weights:
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
                return [name for key in self.compared_keys() for name in self.retrained(self.tests[key])]
            case "lds":
                check_lds(self.recipe, self.dataset.card, self.available_methods())
                return [*(f"attribute/{method}" for method in self.compared), SIMILARITY, LDS, "report"]
            case "groups":
                check_groups(self.recipe, self.groups)
                check_anchors(
                    self.recipe.groups, self.groups, self.dataset.card, conditional=self.recipe.model.conditional
                )
                return [RESULT, "report"]
            case "regenerate":
                return [f"regenerate/{key}" for key in self.compared_keys()]
            case _:
                keys = (*self.compared_keys(), *((UNRELATED,) if self.regeneration != "none" else ()))
                compared = [f"evaluate/{key}" for key in keys]
                return [*(f"attribute/{method}" for method in self.methods), *compared, "report"]

    def last_command(self) -> str:
        """Return the last of the commands, in the order of the stages, that the folders of the run directory show."""
        folders = set(storage.names(self.run_url))
        return next(
            (command for command in (GROUPS, LDS, "evaluate", "regenerate", "retrain") if command in folders),
            "attribute",
        )

    def plan(self, command: str) -> dict[str, State]:
        """Return the state of each stage that a command needs, by name, in order."""
        needed: set[str] = set()
        waiting = [name for name in self.target_stages(command) if name not in (LDS, "report")]
        while waiting:
            name = waiting.pop()
            needed.add(name)
            if name.startswith(f"{OUTPUTS}/") and self.stage(name).state().status == "done":
                continue  # its training has done its part, and the weights may be gone
            waiting += [GENERATED.get(earlier, earlier) for earlier in self.stage(name).inputs if earlier != "data"]
        order = [*self.stages, *(self.evaluations if command == "evaluate" else ())]
        order += self.lds_stages if command == LDS else ()
        order += self.group_stages if command == GROUPS else ()
        states = {name: self.stage(name).state() for name in order if name in needed}
        if command == LDS:
            states[LDS] = self.lds_scores(planned=list(states)).state()
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
        """The first folder of the stage's name, or the first two of those of the LDS and of groups."""
        folders = self.name.split("/")
        return "/".join(folders[: 2 if folders[0] in (LDS, GROUPS) else 1])

    @property
    def leaves_images_out(self) -> bool:
        """True if the stage trains without some of the images."""
        return self.phase in RETRAINS

    @property
    def is_training(self) -> bool:
        """True if the stage trains a network."""
        return self.leaves_images_out or (self.name == "pretrain" and self.pipeline.recipe.trains)

    @property
    def joins_its_phase(self) -> bool:
        """True if the stage runs together with all others of its phase."""
        return self.is_training or self.phase == OUTPUTS

    @property
    def streams(self) -> bool:
        """True if the stage streams the training set unit by unit, and so can share a pass with others."""
        spec = self.pipeline.method_stages.get(self.name)
        return spec is not None and spec.streams


def reopen(run_url: str, *, console: Console) -> Pipeline:
    """Open a run as its directory describes it. InputError if there is none."""
    run_url = storage.absolute(run_url)
    recorded = read_recorded_run(run_url)
    if recorded is None:
        raise InputError(
            f"no run at {run_url} (expected recipe.json there); start one with: mucs-ray attribute --run URL"
        )
    return Pipeline(
        recipe=build(with_new_sections(dict(recorded.recipe)), recorded.methods),
        dataset=Dataset.open(recorded.recipe["data"]),
        run_url=run_url,
        console=console,
        methods=recorded.methods,
        weights_dir=recorded.weights_dir,
        weights_digest=recorded.weights_sha256,
        learned=recorded.learned,
        queries=recorded.queries,
        model_run=reopen(model_url(run_url), console=console) if recorded.queries else None,
    )
