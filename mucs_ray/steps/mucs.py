"""The parts of MUCS's attribution, but for the ranking: null loss, unlearning, scoring."""

from mucs_ray.engine import scoring, unlearning
from mucs_ray.engine.board import as_task, results
from mucs_ray.engine.models import load_arrays
from mucs_ray.engine.progress import bar
from mucs_ray.engine.session import Cluster
from mucs_ray.pipeline import Pipeline
from mucs_ray.steps.files import Output, digests, weights_ref
from mucs_ray.store.items import item_file


def null(pipeline: Pipeline, cluster: Cluster) -> Output:
    """The loss of an untrained network."""
    config = pipeline.recipe.unlearn
    if isinstance(config.null_loss, float):
        return {}, {"null_loss": config.null_loss}
    task = as_task(unlearning.null_loss_task, cluster)
    arguments = (pipeline.dataset, pipeline.recipe.model, config, pipeline.recipe.seed)
    (value,) = results([task.remote(*arguments)])
    return {}, {"null_loss": value}


def unlearn(pipeline: Pipeline, cluster: Cluster) -> Output:
    """F2 of every target: one task an item, those that are there are kept."""
    recipe, stages = pipeline.recipe, pipeline.stages
    stage = stages["attribute/mucs/unlearn"]
    numbers = range(recipe.generate.items)
    names = {item_file(stage, number): number for number in numbers}
    todo = [names[name] for name in stage.begin(list(names))]
    job = unlearning.UnlearnJob(
        dataset=pipeline.dataset,
        model=recipe.model,
        config=recipe.unlearn,
        learning_rate=recipe.train.learning_rate / recipe.unlearn.learning_rate_divisor,
        seed=recipe.seed,
        bound=stages["attribute/mucs/null"].facts()["null_loss"],
        generated=stages["generate"],
        stage=stage,
    )
    with bar(pipeline.console, "unlearn", len(names), "items") as shown:
        shown.start_at(len(names) - len(todo))
        ended = unlearning.unlearn_all(weights_ref(pipeline), todo, job, cluster=cluster, bar=shown)
    seconds = {facts["number"]: round(facts["seconds"], 2) for _, facts in ended}
    made = {item_file(stage, facts["number"]): digest for digest, facts in ended}
    return digests(stage, list(names), made), {"seconds_an_item": seconds}


def score(pipeline: Pipeline, cluster: Cluster) -> Output:
    """Stream the training set once; a part a unit."""
    recipe, stages = pipeline.recipe, pipeline.stages
    stage, unlearned = stages["attribute/mucs/score"], stages["attribute/mucs/unlearn"]
    units = pipeline.dataset.units("train")
    names = {scoring.part_of(stage, unit): unit for unit in units}
    todo = [names[name] for name in stage.begin(list(names))]
    job = scoring.ScoreJob(
        dataset=pipeline.dataset, model=recipe.model, config=recipe.score, seed=recipe.seed, stage=stage
    )
    files = [item_file(unlearned, number) for number in range(recipe.generate.items)]
    bank = [load_arrays.remote(unlearned, file) for file in files]
    with bar(pipeline.console, "score", sum(unit.rows for unit in units), "images") as shown:
        shown.start_at(sum(unit.rows for unit in units) - sum(unit.rows for unit in todo))
        weights, pool = weights_ref(pipeline), recipe.engine.actors
        totals, made = scoring.score(job, weights, bank, todo, pool=pool, cluster=cluster, bar=shown)
        totals["wall_seconds"] = shown.elapsed
    return digests(stage, list(names), made), totals
