"""The parts of an attribution, but for the ranking: each a hook of the method (mucs_ray.attribution.base)."""

from contextlib import AbstractContextManager

from ray import ObjectRef

from mucs_ray.attribution.loss_change import LossAttributor
from mucs_ray.attribution.screen import expectation
from mucs_ray.attribution.tuning import OPEN, is_open
from mucs_ray.engine import adapting, streaming, tuning
from mucs_ray.engine.attributors import AttributeJob, Refs, unit_part
from mucs_ray.engine.models import load_arrays
from mucs_ray.engine.progress import Bar, bar
from mucs_ray.engine.session import Cluster
from mucs_ray.pipeline import Pipeline
from mucs_ray.steps.files import Output, digests, weights_ref
from mucs_ray.store.item_names import item_file
from mucs_ray.store.run import Stage
from mucs_ray.tasks import Task


def work(pipeline: Pipeline, task: Task, cluster: Cluster) -> Output:
    """One part of one method."""
    assert task.part is not None
    hooks = {"features": stream, "sample": stream, "score": stream}
    hooks |= {"total": total, "prepare": prepare, "bounds": prepare, "adapt": adapt}
    return hooks[task.part.hook](pipeline, task, cluster)


def stream(pipeline: Pipeline, task: Task, cluster: Cluster) -> Output:
    """Stream the training set, or its features, once; a part a unit."""
    stage, units = pipeline.stages[task.name], pipeline.dataset.units("train")
    names = {unit_part(stage, unit): unit for unit in units}
    found = [stage.part("tuning", "json")] if uses_scoring(task) and is_open(task.recipe.score) else []
    missing = stage.begin([*names, *found])
    todo = [unit for name, unit in names.items() if name in missing]
    with shown(pipeline, task, sum(unit.rows for unit in units), "images") as progress:
        progress.start_at(sum(unit.rows for unit in units) - sum(unit.rows for unit in todo))
        job, inputs, told = job_of(pipeline, task), refs(pipeline, task), dict[str, str]()
        if found:
            job, told = tuning.tuned(job, inputs, todo or units, found[0], cluster=cluster, bar=progress)
        totals, made = streaming.score(job, inputs, todo, cluster=cluster, bar=progress)
        totals["wall_seconds"] = progress.elapsed
    if uses_scoring(task):
        totals |= {knob: getattr(job.recipe.score, knob) for knob in OPEN}
    return digests(stage, [*names, *found], {**made, **told}), totals


def uses_scoring(task: Task) -> bool:
    """True for passes in which losses of many models are compared."""
    return issubclass(task.method.load(), LossAttributor) and task.hook in ("sample", "score")


def adapt(pipeline: Pipeline, task: Task, cluster: Cluster) -> Output:
    """Each target: one task an item, those that are there are kept."""
    stage = pipeline.stages[task.name]
    names = {item_file(stage, number): number for number in range(pipeline.recipe.generate.items)}
    todo = [names[name] for name in stage.begin(list(names))]
    with shown(pipeline, task, len(names), "items") as progress:
        progress.start_at(len(names) - len(todo))
        ended = adapting.adapt_all(job_of(pipeline, task), refs(pipeline, task), todo, cluster=cluster, bar=progress)
    seconds = {facts["number"]: round(facts["seconds"], 2) for _, facts in ended}
    made = {item_file(stage, facts["number"]): digest for digest, facts in ended}
    return digests(stage, list(names), made), {"seconds_an_item": seconds}


def prepare(pipeline: Pipeline, task: Task, cluster: Cluster) -> Output:
    """What is computed once a run."""
    stage = pipeline.stages[task.name]
    file = stage.part("prepared", "safetensors")
    stage.begin([file])
    with shown(pipeline, task, 1, "step") as progress:
        job, inputs = job_of(pipeline, task), refs(pipeline, task)
        digest, facts = adapting.prepare_once(job, inputs, file, cluster=cluster, bar=progress)
        progress.advance(1)
        if task.hook == "bounds":
            progress.tell(expectation(facts), "bounds", **facts)
    return {file: digest}, facts


def total(pipeline: Pipeline, task: Task, cluster: Cluster) -> Output:
    """Sums over the training set, a part a group of units."""
    stage, units = pipeline.stages[task.name], pipeline.dataset.units("train")
    groups = {stage.part(f"sum-{n:04d}", "safetensors"): each for n, each in enumerate(adapting.grouped(units))}
    todo = {name: groups[name] for name in stage.begin(list(groups))}
    with shown(pipeline, task, sum(unit.rows for unit in units), "images") as progress:
        progress.start_at(sum(unit.rows for name in groups.keys() - todo.keys() for unit in groups[name]))
        made = adapting.sum_all(job_of(pipeline, task), refs(pipeline, task), todo, cluster=cluster, bar=progress)
    return digests(stage, list(groups), made), {}


def shown(pipeline: Pipeline, task: Task, count: int, unit: str) -> AbstractContextManager[Bar]:
    """Progress of a task."""
    return bar(pipeline.console, task.name, count, unit, pipeline.events)


def job_of(pipeline: Pipeline, task: Task) -> AttributeJob:
    """What a worker needs to know."""
    part = task.part
    assert part is not None
    tables = {"total": "features", "prepare": "features", "score": "features", "bounds": "sample"}
    features = earlier(pipeline, task, tables.get(part.hook, ""))
    return AttributeJob(
        dataset=pipeline.dataset,
        recipe=task.recipe,
        attributor=task.method.load(),
        part=part,
        stage=pipeline.stages[task.name],
        generated=pipeline.stages["generate"],
        features=features[0] if features else None,
        encoder=pipeline.encoders[task.method.encoder] if task.method.encoder else None,
    )


def refs(pipeline: Pipeline, task: Task) -> Refs:
    """What earlier stages made, on its way into the object store."""
    assert task.part is not None
    once = earlier(pipeline, task, "total", "prepare", "bounds")[-1:]
    items = earlier(pipeline, task, "adapt")
    return Refs(
        weights=weights_ref(pipeline) if task.part.uses_model else None,
        prepared=adapting.loaded(once[0], files(once[0])) if once else None,
        adapted=tuple(bank(items[0], pipeline.recipe.generate.items)) if items else (),
    )


def earlier(pipeline: Pipeline, task: Task, *hooks: str) -> list[Stage]:
    """The stages of the method's parts with these hooks that there are before this, in order."""
    return [
        pipeline.stages[name] for name in task.inputs if name in pipeline.tasks and pipeline.tasks[name].hook in hooks
    ]


def files(stage: Stage) -> list[str]:
    """The tensors of a finished stage, in order."""
    manifest = stage.manifest()
    return sorted(name for name in manifest["files"] if name.endswith(".safetensors")) if manifest else []


def bank(stage: Stage, num_items: int) -> list[ObjectRef]:
    """What was made for each item."""
    return [load_arrays.remote(stage, item_file(stage, number)) for number in range(num_items)]
