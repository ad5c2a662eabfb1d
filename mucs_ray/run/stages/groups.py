"""The stages of group attribution except its trainings, which `mucs_ray.run.stages.train` runs."""

from typing import cast

from mucs_ray import storage
from mucs_ray.attribution.forgetting.config import Unlearner
from mucs_ray.engine import group_models
from mucs_ray.engine.group_models import GroupJob
from mucs_ray.engine.models import load_files
from mucs_ray.engine.progress import bar
from mucs_ray.engine.session import Cluster
from mucs_ray.pipeline.graph import Pipeline
from mucs_ray.pipeline.groups_stages import (
    FORGOTTEN,
    FULL,
    MEMBERS,
    RETRAINED,
    SCORED,
    group_name,
    retrainings,
)
from mucs_ray.run.stages.files import Output, digests, weights_ref
from mucs_ray.store.parts import part_bytes
from mucs_ray.store.run import Stage


def members(pipeline: Pipeline) -> Output:
    """Write groups.parquet (idx, group) and the manifest of groups."""
    groups, stage = pipeline.groups, pipeline.stage(MEMBERS)
    table, manifest = stage.part("groups", "parquet"), stage.part("manifest", "json")
    stage.begin([table, manifest])
    files = {
        table: storage.publish(stage.url(table), part_bytes(groups.idx, {"group": groups.group})),
        manifest: storage.publish_json(stage.url(manifest), pipeline.groups_manifest.to_json()),
    }
    facts = {
        "names": list(groups.names),
        "sizes": groups.sizes,
        "images": groups.num_images,
        "grouped": groups.num_grouped,
        "overlapping": groups.overlapping,
    }
    return files, facts


def unlearn(pipeline: Pipeline, unlearner: str, cluster: Cluster) -> Output:
    """Unlearn each group in a task of its own, except groups that an earlier command has unlearned."""
    name = f"{FORGOTTEN}/{unlearner}"
    stage, groups = pipeline.stage(name), pipeline.groups
    files = {model_file(stage, number): (number, groups.members(number)) for number in range(len(groups.names))}
    missing = {file: files[file] for file in stage.begin(list(files))}
    weights = weights_ref(pipeline.stages["pretrain"], pipeline.recipe)
    with bar(pipeline.console, name, len(files), "groups", pipeline.events) as progress:
        progress.start_at(len(files) - len(missing))
        new = group_models.forget_groups(
            job_of(pipeline, stage), weights, missing, cast(Unlearner, unlearner), cluster=cluster, bar=progress
        )
    return digests(stage, list(files), new), {}


def score(pipeline: Pipeline, model: str, cluster: Cluster) -> Output:
    """Measure the errors of the full model, or of the models without each group, for all targets."""
    name, recipe = f"{SCORED}/{model}", pipeline.recipe
    stage, num_groups = pipeline.stage(name), len(pipeline.groups.names)
    files = [errors_file(stage, number) for number in range(1 if model == FULL else num_groups)]
    missing = stage.begin(files)
    if model == FULL:
        weights = [weights_ref(pipeline.stages["pretrain"], recipe)]
    elif model.startswith(RETRAINED):
        weights = [weights_ref(pipeline.stage(training), recipe) for training in retrainings(model, num_groups)]
    else:
        forgotten = pipeline.stage(f"{FORGOTTEN}/{model}")
        weights = load_files(forgotten, [model_file(forgotten, number) for number in range(num_groups)])
    models = {file: ref for file, ref in zip(files, weights, strict=True) if file in missing}
    with bar(pipeline.console, name, len(files), "models", pipeline.events) as progress:
        progress.start_at(len(files) - len(missing))
        numbers = range(recipe.generate.items)
        new = group_models.errors_by_model(job_of(pipeline, stage), models, numbers, cluster=cluster, bar=progress)
    return digests(stage, files, new), {}


def job_of(pipeline: Pipeline, stage: Stage) -> GroupJob:
    """Return what a worker needs to know about a stage."""
    generated = pipeline.stages["generate"]
    return GroupJob(
        dataset=pipeline.dataset,
        recipe=pipeline.recipe,
        stage=stage,
        generated=generated,
        names=pipeline.groups.names,
    )


def model_file(stage: Stage, number: int) -> str:
    """Return the name of the file with the model without a group."""
    return stage.part(f"group-{group_name(number)}", "safetensors")


def errors_file(stage: Stage, number: int) -> str:
    """Return the name of the file with the errors of a model."""
    return stage.part(f"errors-{group_name(number)}", "safetensors")
