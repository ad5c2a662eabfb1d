"""The stages of an attribution that run alone; each of them runs a hook of the method (mucs_ray.attribution.base).

Stages that stream the training set unit by unit run together, in `mucs_ray.run.stages.one_pass`.
"""

from contextlib import AbstractContextManager
from dataclasses import asdict

from ray import ObjectRef

from mucs_ray.engine import fitting
from mucs_ray.engine.attributors import AttributeJob, Refs
from mucs_ray.engine.models import load_files
from mucs_ray.engine.progress import Bar, bar
from mucs_ray.engine.session import Cluster
from mucs_ray.pipeline.graph import Pipeline
from mucs_ray.pipeline.method_stages import StageSpec
from mucs_ray.run.stages.files import Load, Output, digests, weights_ref
from mucs_ray.store.facts import FittingFacts
from mucs_ray.store.item_names import item_file
from mucs_ray.store.run import Stage


def run_hook(pipeline: Pipeline, spec: StageSpec, cluster: Cluster) -> Output:
    """Run a stage of a method that runs alone."""
    hooks = {"accumulate": accumulate, "fit": fit, "fit_together": fit, "fit_screen": fit, "fit_item": fit_items}
    return hooks[spec.hook](pipeline, spec, cluster)


def fit_items(pipeline: Pipeline, spec: StageSpec, cluster: Cluster) -> Output:
    """Fit each item in a task of its own, except items that an earlier command has fitted."""
    stage = pipeline.stages[spec.name]
    numbers = {item_file(stage, number): number for number in range(pipeline.recipe.generate.items)}
    missing = [numbers[file] for file in stage.begin(list(numbers))]
    job, inputs = attribute_job(pipeline, spec), input_refs(pipeline, spec)
    with progress_bar(pipeline, spec, len(numbers), "items") as progress:
        progress.start_at(len(numbers) - len(missing))
        fitted = fitting.fit_items(job, inputs, missing, cluster=cluster, bar=progress)
    seconds = {item.number: round(item.seconds, 2) for item in fitted}
    new = {item_file(stage, item.number): item.sha256 for item in fitted}
    return digests(stage, list(numbers), new), asdict(FittingFacts(seconds_an_item=seconds))


def fit(pipeline: Pipeline, spec: StageSpec, cluster: Cluster) -> Output:
    """Run a hook that is called once a run."""
    stage = pipeline.stages[spec.name]
    file = stage.part("prepared", "safetensors")
    stage.begin([file])
    with progress_bar(pipeline, spec, 1, "step") as progress:
        job, inputs = attribute_job(pipeline, spec), input_refs(pipeline, spec)
        fitted = fitting.fit_once(job, inputs, file, cluster=cluster, bar=progress)
        progress.advance(1)
        if spec.method_stage and spec.hook == "fit_screen":
            progress.print_event(spec.load().expectation(fitted.numbers), spec.method_stage.name, **fitted.numbers)
    return {file: fitted.sha256}, fitted.numbers


def accumulate(pipeline: Pipeline, spec: StageSpec, cluster: Cluster) -> Output:
    """Sum over the training set; the sum over each shard of its units is one part."""
    stage, units = pipeline.stages[spec.name], pipeline.encoded_dataset.units("train")
    shards = {stage.part(f"sum-{n:04d}", "safetensors"): shard for n, shard in enumerate(fitting.sum_shards(units))}
    missing = {file: shards[file] for file in stage.begin(list(shards))}
    job, inputs = attribute_job(pipeline, spec), input_refs(pipeline, spec)
    with progress_bar(pipeline, spec, sum(unit.rows for unit in units), "images") as progress:
        progress.start_at(sum(unit.rows for file in shards.keys() - missing.keys() for unit in shards[file]))
        new = fitting.sum_all(job, inputs, missing, cluster=cluster, bar=progress)
    return digests(stage, list(shards), new), {}


def progress_bar(pipeline: Pipeline, spec: StageSpec, count: int, unit: str) -> AbstractContextManager[Bar]:
    """Return a context manager that shows the progress of a stage."""
    return bar(pipeline.console, spec.name, count, unit, pipeline.events)


def attribute_job(pipeline: Pipeline, spec: StageSpec) -> AttributeJob:
    """Return what a worker needs to know about a stage."""
    assert spec.method_stage is not None
    tables = {"accumulate": "features", "fit": "features", "score": "features", "fit_screen": "sample"}
    features = earlier_stages(pipeline, spec, tables.get(spec.hook, ""))
    return AttributeJob(
        dataset=pipeline.encoded_dataset,
        recipe=spec.recipe,
        attributor=spec.load(),
        method_stage=spec.method_stage,
        stage=pipeline.stages[spec.name],
        generated=pipeline.stages["generate"],
        features=features[0] if features else None,
        encoder=pipeline.encoders[spec.method.encoder] if spec.method.encoder else None,
    )


def input_refs(pipeline: Pipeline, spec: StageSpec, load: Load = load_files) -> Refs:
    """Put the results of earlier stages that a stage reads into the object store."""
    assert spec.method_stage is not None
    fitted = earlier_stages(pipeline, spec, "accumulate", "fit", "fit_together", "fit_screen")[-1:]
    items = earlier_stages(pipeline, spec, "fit_item")
    uses_model, pretraining = spec.method_stage.uses_model, pipeline.stages["pretrain"]
    return Refs(
        weights=weights_ref(pretraining, pipeline.recipe, load=load) if uses_model else None,
        fitted=fitting.load_fitted(fitted[0], tensor_files(fitted[0])) if fitted else None,
        item_states=tuple(load_items(items[0], pipeline.recipe.generate.items, load)) if items else (),
    )


def earlier_stages(pipeline: Pipeline, spec: StageSpec, *hooks: str) -> list[Stage]:
    """Return those inputs of a stage that are stages with one of these hooks, in order; those of its own class last."""
    specs = [pipeline.method_stages[name] for name in spec.inputs if name in pipeline.method_stages]
    specs.sort(key=lambda earlier: earlier.implementation == spec.implementation)
    return [pipeline.stages[earlier.name] for earlier in specs if earlier.hook in hooks]


def tensor_files(stage: Stage) -> list[str]:
    """Return the names of the files with tensors of a finished stage, in order."""
    manifest = stage.manifest()
    return sorted(name for name in manifest.files if name.endswith(".safetensors")) if manifest else []


def load_items(stage: Stage, num_items: int, load: Load) -> list[ObjectRef]:
    """Put the tensors that a stage has fitted for each item into the object store."""
    return load(stage, [item_file(stage, number) for number in range(num_items)])
