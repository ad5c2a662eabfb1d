"""The model and its images: F1 from elsewhere, and the items it generates. Trainings: `mucs_ray.steps.trainings`."""

from dataclasses import asdict

from mucs_ray.engine import generation
from mucs_ray.engine.progress import bar
from mucs_ray.engine.session import Cluster
from mucs_ray.pipeline import Pipeline
from mucs_ray.steps.files import Output, digests, weights_ref
from mucs_ray.store import checkpoint
from mucs_ray.store.items import item_file
from mucs_ray.store.weights import model_facts
from mucs_ray.weights import load_weights


def import_weights(pipeline: Pipeline) -> Output:
    """Copy weights that were trained elsewhere into the run, as safetensors with a card."""
    recipe, stage = pipeline.recipe, pipeline.stages["pretrain"]
    assert recipe.weights is not None
    network = load_weights(recipe.weights, num_heads=recipe.model.num_heads)
    name = stage.part("best", "safetensors")
    stage.begin([name])
    facts = {**model_facts(network.config), "imported": True}
    return {name: checkpoint.save_with_card(stage.url(name), network.state_dict(), facts)}, facts


def generate(pipeline: Pipeline, cluster: Cluster) -> Output:
    """Generate targets and controls; what an earlier call has generated is kept."""
    recipe, stage = pipeline.recipe, pipeline.stages["generate"]
    planned = generation.plan_items(pipeline.dataset, recipe.generate, recipe.seed)
    names = [item_file(stage, each.number) for each in planned]
    todo = set(stage.begin(names))
    missing = [each for each in planned if item_file(stage, each.number) in todo]
    job = generation.GenerateJob(
        dataset=pipeline.dataset, model=recipe.model, config=recipe.generate, seed=recipe.seed, stage=stage
    )
    with bar(pipeline.console, "generate", len(planned), "items") as shown:
        shown.start_at(len(names) - len(todo))
        made = generation.generate(job, [(weights_ref(pipeline), missing)], cluster=cluster, bar=shown)
    return digests(stage, names, made), {"items": [asdict(each) for each in planned]}
