"""The model and its images: F1 from elsewhere, and the items it generates. Trainings: `mucs_ray.run.stages.train`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from ray import ObjectRef
from torch import Tensor

from mucs_ray.engine import generation
from mucs_ray.engine.models import best_device
from mucs_ray.engine.progress import bar
from mucs_ray.engine.session import Cluster
from mucs_ray.models.adapters import adapter
from mucs_ray.models.spec import ModelSpec
from mucs_ray.pipeline.graph import Pipeline
from mucs_ray.run import model_check
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
    facts = {**model_facts(spec), "imported": True, **checked_weights(pipeline, spec, tensors)}
    return {name: checkpoint.save_with_card(stage.url(name), tensors, facts)}, facts


def checked_weights(pipeline: Pipeline, spec: ModelSpec, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Check that the model denoises the training images, and say how well; InputError if it does not."""
    if not pipeline.recipe.engine.check_weights:
        return {}
    kind, device = adapter(spec), best_device()
    model = kind.model(device, tensors)
    images = model_check.some_images(pipeline.dataset, kind.codec(device)).to(device)
    checked = model_check.check(model, images, seed=pipeline.recipe.seed)
    model_check.refuse(checked, pipeline.recipe.weights or f"model.kind {spec.kind}")
    pipeline.console.print(checked.line, highlight=False, soft_wrap=True)
    return checked.facts()


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
