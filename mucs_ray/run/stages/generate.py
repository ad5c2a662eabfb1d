"""The model and its images: F1 from elsewhere, and the items it generates. Trainings: `mucs_ray.run.stages.train`."""

from collections.abc import Callable, Sequence
from dataclasses import asdict

import torch
from ray import ObjectRef

from mucs_ray.engine import generation
from mucs_ray.engine.progress import bar
from mucs_ray.engine.session import Cluster
from mucs_ray.models.adapters import adapter
from mucs_ray.pipeline.graph import Pipeline
from mucs_ray.run.stages.files import Output, digests, weights_ref
from mucs_ray.store import checkpoint
from mucs_ray.store.item_names import item_file
from mucs_ray.store.items import PlannedItem
from mucs_ray.store.weights import load_weights, model_facts


def import_weights(pipeline: Pipeline) -> Output:
    """Copy weights that were trained elsewhere into the run, as safetensors with a card: those of the recipe, or the
    model's own.
    """
    recipe, stage = pipeline.recipe, pipeline.stages["pretrain"]
    if recipe.weights is not None:
        spec, tensors = load_weights(recipe.weights, recipe.model.to_dict())
    else:
        spec, tensors = recipe.model, adapter(recipe.model).model(torch.device("cpu")).network.state_dict()
    name = stage.part("best", "safetensors")
    stage.begin([name])
    facts = {**model_facts(spec), "imported": True}
    return {name: checkpoint.save_with_card(stage.url(name), tensors, facts)}, facts


def generate(pipeline: Pipeline, cluster: Cluster) -> Output:
    """Generate targets and controls; what an earlier call has generated is kept."""
    recipe = pipeline.recipe
    planned = generation.plan_items(pipeline.dataset, recipe.generate, recipe.seed)
    files = generate_items(pipeline, "generate", planned, lambda todo: [(weights_ref(pipeline), todo)], cluster)
    return files, {"items": [asdict(each) for each in planned]}


def generate_items(
    pipeline: Pipeline,
    name: str,
    planned: Sequence[PlannedItem],
    grouped: Callable[[list[PlannedItem]], list[tuple[ObjectRef, list[PlannedItem]]]],
    cluster: Cluster,
) -> dict[str, str]:
    """The missing items of a stage, each of the `grouped` ones with its weights; sha256 by file, of all items."""
    recipe, stage = pipeline.recipe, pipeline.stages[name]
    names = [item_file(stage, each.number) for each in planned]
    todo = set(stage.begin(names))
    job = generation.GenerateJob(
        dataset=pipeline.dataset, model=recipe.model, config=recipe.generate, seed=recipe.seed, stage=stage
    )
    missing = [each for each in planned if item_file(stage, each.number) in todo]
    with bar(pipeline.console, name, len(planned), "items", pipeline.events) as shown:
        shown.start_at(len(names) - len(todo))
        made = generation.generate(job, grouped(missing), cluster=cluster, bar=shown)
    return digests(stage, names, made)
