"""The stages that import the weights of F1 from elsewhere and generate items; `mucs_ray.run.stages.train` trains."""

from collections.abc import Callable, Sequence
from dataclasses import asdict

import torch
from ray import ObjectRef

from mucs_ray.config.recipe import Recipe
from mucs_ray.engine import generation
from mucs_ray.engine.progress import bar
from mucs_ray.engine.session import Cluster
from mucs_ray.models.adapters import adapter
from mucs_ray.pipeline.graph import Pipeline
from mucs_ray.run.stages.files import Output, digests, weights_ref
from mucs_ray.store import checkpoint
from mucs_ray.store.facts import GenerationFacts
from mucs_ray.store.item_names import item_file
from mucs_ray.store.items import PlannedItem
from mucs_ray.store.run import Stage
from mucs_ray.store.weights import load_weights, model_facts


def import_weights(stage: Stage, recipe: Recipe) -> Output:
    """Copy weights that were trained elsewhere into the run, as safetensors with a card.

    They are those that the recipe names, else those that come with the model.
    """
    if recipe.weights is not None:
        spec, tensors = load_weights(recipe.weights, recipe.model.to_dict())
    else:
        spec, tensors = recipe.model, adapter(recipe.model).model(torch.device("cpu")).network.state_dict()
    name = stage.part("best", "safetensors")
    stage.begin([name])
    facts = {**model_facts(spec), "imported": True}
    return {name: checkpoint.save_with_card(stage.url(name), tensors, facts)}, facts


def generate(pipeline: Pipeline, cluster: Cluster) -> Output:
    """Generate targets and controls, except those that an earlier command has generated."""
    recipe = pipeline.recipe
    planned = generation.plan_items(pipeline.dataset, recipe.generate, recipe.seed)
    weights = weights_ref(pipeline.stages["pretrain"], recipe)
    files = generate_items(pipeline, "generate", planned, lambda missing: [(weights, missing)], cluster)
    return files, asdict(GenerationFacts(items=planned))


def generate_items(
    pipeline: Pipeline,
    name: str,
    planned: Sequence[PlannedItem],
    with_weights: Callable[[list[PlannedItem]], list[tuple[ObjectRef, list[PlannedItem]]]],
    cluster: Cluster,
) -> dict[str, str]:
    """Generate the missing items of a stage, and return the sha256 of the files of all items.

    `with_weights` splits missing items into groups, each with the weights that generate it.
    """
    recipe, stage = pipeline.recipe, pipeline.stages[name]
    names = [item_file(stage, item.number) for item in planned]
    missing_files = set(stage.begin(names))
    job = generation.GenerateJob(
        dataset=pipeline.dataset, model=recipe.model, config=recipe.generate, seed=recipe.seed, stage=stage
    )
    missing = [item for item in planned if item_file(stage, item.number) in missing_files]
    with bar(pipeline.console, name, len(planned), "items", pipeline.events) as progress:
        progress.start_at(len(names) - len(missing))
        new = generation.generate(job, with_weights(missing), cluster=cluster, bar=progress)
    return digests(stage, names, new)
