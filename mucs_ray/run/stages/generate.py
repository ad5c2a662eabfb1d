"""The stages that import the weights of F1 from elsewhere and generate items; `mucs_ray.run.stages.train` trains."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ray import ObjectRef
from rich.markup import escape
from torch import Tensor

from mucs_ray import storage
from mucs_ray.config.recipe import Recipe
from mucs_ray.diffusion.condition import Condition
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
from mucs_ray.store.facts import GenerationFacts
from mucs_ray.store.item_names import item_file
from mucs_ray.store.items import PlannedItem
from mucs_ray.store.run import Stage
from mucs_ray.store.weights import model_facts

Check = Callable[[ModelSpec, Mapping[str, Tensor]], dict[str, Any]]


def import_weights(stage: Stage, recipe: Recipe, check: Check | None = None) -> Output:
    """Copy weights that were trained elsewhere into the run, as safetensors with a card.

    They are those that the recipe names, else those that come with the model. `check` returns facts on them.
    """
    spec, tensors = model_check.given_weights(recipe)
    checked = check(spec, tensors) if check else {}
    name = stage.part("best", "safetensors")
    stage.begin([name])
    facts = {**model_facts(spec), "imported": True, **checked}
    return {name: checkpoint.save_with_card(stage.url(name), tensors, facts)}, facts


def import_checked_weights(pipeline: Pipeline) -> Output:
    """Import weights that denoise the training images, with an image sampled from them; InputError if they do not."""
    pictures: list[bytes] = []

    def check(spec: ModelSpec, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        kind, device = adapter(spec), best_device()
        codec, model = kind.codec(device), kind.model(device, tensors)
        images = model_check.some_images(pipeline.dataset, codec).to(device)
        checked = model_check.check(model, images, seed=recipe.seed)
        model_check.refuse(checked, recipe.weights or f"model.kind {spec.kind}")
        pipeline.console.print(escape(checked.line), highlight=False, soft_wrap=True)
        pictures.append(model_check.sample(model, codec, images[:1].condition, recipe))
        return checked.facts()

    recipe, stage = pipeline.recipe, pipeline.stages["pretrain"]
    files, facts = import_weights(stage, recipe, check if recipe.engine.check_weights else None)
    for picture in pictures:
        name = stage.part("sample", "png")
        files[name] = storage.publish(stage.url(name), picture)
    return files, facts


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
    *,
    conditions: Sequence[Condition] | None = None,
) -> dict[str, str]:
    """Generate the missing items of a stage, and return the sha256 of the files of all items.

    `with_weights` splits missing items into groups, each with the weights that generate it. The items' rows are those
    of `conditions`, if these are given, and else of the images that lend theirs.
    """
    recipe, stage = pipeline.recipe, pipeline.stages[name]
    names = [item_file(stage, item.number) for item in planned]
    missing_files = set(stage.begin(names))
    job = generation.GenerateJob(
        dataset=pipeline.dataset,
        model=recipe.model,
        config=recipe.generate,
        seed=recipe.seed,
        stage=stage,
        conditions=conditions,
    )
    missing = [item for item in planned if item_file(stage, item.number) in missing_files]
    with bar(pipeline.console, name, len(planned), "items", pipeline.events) as progress:
        progress.start_at(len(names) - len(missing))
        new = generation.generate(job, with_weights(missing), cluster=cluster, bar=progress)
    return digests(stage, names, new)
