"""The stages of an attribution that stand alone: each a hook of the method (mucs_ray.attribution.base).

Stages that go over the training set unit by unit are done together: `mucs_ray.run.stages.one_pass`.
"""

from contextlib import AbstractContextManager

from ray import ObjectRef

from mucs_ray.engine import fitting
from mucs_ray.engine.attributors import AttributeJob, Refs
from mucs_ray.engine.models import load_arrays
from mucs_ray.engine.progress import Bar, bar
from mucs_ray.engine.session import Cluster
from mucs_ray.pipeline.graph import Pipeline
from mucs_ray.pipeline.method_stages import Task
from mucs_ray.run.stages.files import Load, Output, digests, weights_ref
from mucs_ray.store.item_names import item_file
from mucs_ray.store.run import Stage


def work(pipeline: Pipeline, task: Task, cluster: Cluster) -> Output:
    """One stage of one method."""
    hooks = {"accumulate": accumulate, "fit": fit, "fit_screen": fit, "fit_item": fit_items}
    return hooks[task.hook](pipeline, task, cluster)


def fit_items(pipeline: Pipeline, task: Task, cluster: Cluster) -> Output:
    """Each target: one task an item, those that are there are kept."""
    stage = pipeline.stages[task.name]
    names = {item_file(stage, number): number for number in range(pipeline.recipe.generate.items)}
    todo = [names[name] for name in stage.begin(list(names))]
    with shown(pipeline, task, len(names), "items") as progress:
        progress.start_at(len(names) - len(todo))
        ended = fitting.fit_items(job_of(pipeline, task), refs(pipeline, task), todo, cluster=cluster, bar=progress)
    seconds = {facts["number"]: round(facts["seconds"], 2) for _, facts in ended}
    made = {item_file(stage, facts["number"]): digest for digest, facts in ended}
    return digests(stage, list(names), made), {"seconds_an_item": seconds}


def fit(pipeline: Pipeline, task: Task, cluster: Cluster) -> Output:
    """What is computed once a run."""
    stage = pipeline.stages[task.name]
    file = stage.part("prepared", "safetensors")
    stage.begin([file])
    with shown(pipeline, task, 1, "step") as progress:
        job, inputs = job_of(pipeline, task), refs(pipeline, task)
        digest, facts = fitting.fit_once(job, inputs, file, cluster=cluster, bar=progress)
        progress.advance(1)
        if task.part and task.hook == "fit_screen":
            progress.print_event(task.load().expectation(facts), task.part.name, **facts)
    return {file: digest}, facts


def accumulate(pipeline: Pipeline, task: Task, cluster: Cluster) -> Output:
    """Sums over the training set, a part a group of units."""
    stage, units = pipeline.stages[task.name], pipeline.dataset.units("train")
    groups = {stage.part(f"sum-{n:04d}", "safetensors"): each for n, each in enumerate(fitting.grouped(units))}
    todo = {name: groups[name] for name in stage.begin(list(groups))}
    with shown(pipeline, task, sum(unit.rows for unit in units), "images") as progress:
        progress.start_at(sum(unit.rows for name in groups.keys() - todo.keys() for unit in groups[name]))
        made = fitting.sum_all(job_of(pipeline, task), refs(pipeline, task), todo, cluster=cluster, bar=progress)
    return digests(stage, list(groups), made), {}


def shown(pipeline: Pipeline, task: Task, count: int, unit: str) -> AbstractContextManager[Bar]:
    """Progress of a task."""
    return bar(pipeline.console, task.name, count, unit, pipeline.events)


def job_of(pipeline: Pipeline, task: Task) -> AttributeJob:
    """What a worker needs to know."""
    part = task.part
    assert part is not None
    tables = {"accumulate": "features", "fit": "features", "score": "features", "fit_screen": "sample"}
    features = earlier(pipeline, task, tables.get(part.hook, ""))
    return AttributeJob(
        dataset=pipeline.dataset,
        recipe=task.recipe,
        attributor=task.load(),
        part=part,
        stage=pipeline.stages[task.name],
        generated=pipeline.stages["generate"],
        features=features[0] if features else None,
        encoder=pipeline.encoders[task.method.encoder] if task.method.encoder else None,
    )


def refs(pipeline: Pipeline, task: Task, load: Load = load_arrays.remote) -> Refs:
    """What earlier stages made, on its way into the object store."""
    assert task.part is not None
    once = earlier(pipeline, task, "accumulate", "fit", "fit_screen")[-1:]
    items = earlier(pipeline, task, "fit_item")
    return Refs(
        weights=weights_ref(pipeline, load=load) if task.part.uses_model else None,
        fitted=fitting.loaded(once[0], files(once[0])) if once else None,
        item_states=tuple(bank(items[0], pipeline.recipe.generate.items, load)) if items else (),
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


def bank(stage: Stage, num_items: int, load: Load) -> list[ObjectRef]:
    """What was made for each item."""
    return [load(stage, item_file(stage, number)) for number in range(num_items)]
