"""The counterfactual test of pictures of the user's (spec/models 3.1 and 5).

Each picture is compared by its loss, before and after. Pictures that the run generated are also generated again from
their own noise; with `evaluate.fresh`, images that are generated from their conditions stand in their place.
"""

from collections.abc import Sequence
from dataclasses import asdict

import torch
from ray import ObjectRef

from mucs_ray.diffusion.condition import Condition
from mucs_ray.diffusion.noise import generator
from mucs_ray.engine import compare
from mucs_ray.engine.item_losses import LossJob, losses_by_model
from mucs_ray.engine.progress import Bar, bar
from mucs_ray.engine.session import Cluster
from mucs_ray.evaluation.item_loss import LossChanges, evaluation_noises, loss_changes
from mucs_ray.evaluation.unions import unrelated_pairs
from mucs_ray.models.adapters import adapter
from mucs_ray.pipeline.graph import FRESH, Pipeline, RemovalTest
from mucs_ray.run.stages.files import Output, weights_ref
from mucs_ray.run.stages.generate import generate_items
from mucs_ray.run.stages.regenerate import compare_pairs, mean_removal, publish_similarities
from mucs_ray.store import checkpoint
from mucs_ray.store.facts import LossFacts
from mucs_ray.store.items import PlannedItem, load_item
from mucs_ray.store.run import Stage


def planned_items(pipeline: Pipeline) -> list[PlannedItem]:
    """Return the images that are generated before and after: one of each picture, or `evaluate.fresh` of each.

    The row of each is the number of its picture, and its idx names its noise.
    """
    fresh = pipeline.recipe.evaluate.fresh
    if pipeline.regeneration == "same":
        return [
            PlannedItem(number=number, row=number, idx=query.idx, role="target")
            for number, query in enumerate(pipeline.queries)
        ]
    names = [
        (number, f"evaluate/fresh/idx={query.idx}/{count}")
        for number, query in enumerate(pipeline.queries)
        for count in range(fresh)
    ]
    seed = pipeline.recipe.seed
    return [
        PlannedItem(number=at, row=row, idx=int(generator(seed, name).integers(2**63)), role="target")
        for at, (row, name) in enumerate(names)
    ]


def conditions(pipeline: Pipeline) -> list[Condition]:
    """Return the condition of each picture; of one that is made again, that with which the run generated it."""
    if pipeline.regeneration == "fresh":
        stage = pipeline.stages["generate"]
        return [load_item(stage, number).condition for number in range(len(pipeline.queries))]
    made = [checkpoint.load(query.generated)[0] for query in pipeline.queries]
    return [{name: tensor for name, tensor in tensors.items() if name != "image"} for tensors in made]


def generate_fresh(pipeline: Pipeline, cluster: Cluster) -> Output:
    """Generate from the condition of each picture, by the model that was trained on all images."""
    weights = weights_ref(pipeline.stages["pretrain"], pipeline.recipe)
    planned, given = planned_items(pipeline), conditions(pipeline)
    return generate_items(pipeline, FRESH, planned, lambda missing: [(weights, missing)], cluster, conditions=given), {}


def regenerate(pipeline: Pipeline, key: str, cluster: Cluster) -> Output:
    """Generate the same images, from the same conditions and noise, by the retrained network."""

    def with_weights(missing: list[PlannedItem]) -> list[tuple[ObjectRef, list[PlannedItem]]]:
        groups = [(weights, [item for item in missing if item.row in numbers]) for weights, numbers in models]
        return [(weights, items) for weights, items in groups if items]

    models = retrained_models(pipeline, pipeline.tests[key])
    name, planned, given = f"regenerate/{key}", planned_items(pipeline), conditions(pipeline)
    return generate_items(pipeline, name, planned, with_weights, cluster, conditions=given), {}


def retrained_models(pipeline: Pipeline, test: RemovalTest) -> list[tuple[ObjectRef, Sequence[int]]]:
    """Return the weights of each retraining, and the numbers of the pictures that it is for."""
    recipe, every = pipeline.recipe, range(len(pipeline.queries))
    retrained = [weights_ref(pipeline.stages[name], recipe) for name in pipeline.retrained(test)]
    if test.mode == "per-item":
        return [(weights, [number]) for number, weights in enumerate(retrained)]
    return [(retrained[0], every)]


def evaluate(pipeline: Pipeline, key: str, cluster: Cluster) -> Output:
    """Measure how the loss of each picture changed and, where images were made again, how similar they are."""
    stage, test, count = pipeline.stage(f"evaluate/{key}"), pipeline.tests[key], len(pipeline.queries)
    metrics = [] if pipeline.regeneration == "none" else pipeline.similarities[0]
    stage.begin([stage.part("similarity", "parquet")])
    steps = 1 + len(pipeline.retrained(test)) + len(metrics)
    with bar(pipeline.console, stage.name, steps, "steps", pipeline.events) as progress:
        changes = measured_changes(pipeline, test, cluster, progress)
        values = {}
        if metrics:
            again = pipeline.stages[f"regenerate/{key}"]
            pairs = [((before, number), (again, number)) for before, number in originals(pipeline)]
            similar = compare.compare(metrics, pairs, pipeline.recipe.model, cluster=cluster, bar=progress)
            values = {name: each.reshape(count, -1).mean(axis=1) for name, each in similar.items()}
    values |= {"skew": -changes.skew.numpy(), "loss": -changes.after.numpy()}
    files = publish_similarities(stage, values, [(number, number) for number in range(count)], ["target"] * count)
    losses = LossFacts(before=changes.before.tolist(), after=changes.after.tolist())
    facts = asdict(mean_removal(pipeline, test)) | asdict(losses)
    return files, {"metrics": list(values), "pairs": count, **facts}


def originals(pipeline: Pipeline) -> list[tuple[Stage, int]]:
    """Return the images before any retraining that are compared with those after."""
    stage = pipeline.stages[FRESH if pipeline.regeneration == "fresh" else "generate"]
    return [(stage, item.number) for item in planned_items(pipeline)]


def measured_changes(pipeline: Pipeline, test: RemovalTest, cluster: Cluster, progress: Bar) -> LossChanges:
    """Return how the retraining, or that of each picture, changed the losses of the pictures."""
    recipe, every = pipeline.recipe, range(len(pipeline.queries))
    job = LossJob(
        items=pipeline.stages["generate"], model=recipe.model, noises=recipe.evaluate.noises, seed=recipe.seed
    )
    models = {"before": (weights_ref(pipeline.stages["pretrain"], recipe), every)}
    retrained = dict(zip(pipeline.retrained(test), retrained_models(pipeline, test), strict=True))
    losses = losses_by_model(job, models | retrained, cluster=cluster, bar=progress)
    after = torch.cat([losses[name] for name in retrained])
    model = adapter(recipe.model).model(torch.device("meta"))
    noises = evaluation_noises(model, recipe.evaluate.noises, recipe.seed)
    return loss_changes(model, losses["before"], after, noises, recipe.score.epsilon)


def unrelated(pipeline: Pipeline, key: str, cluster: Cluster) -> Output:
    """Measure how similar the images of different pictures are: the level at which nothing of an image is left."""
    count = len(pipeline.queries)
    first = originals(pipeline)[:: max(1, len(planned_items(pipeline)) // count)]
    numbers = unrelated_pairs(count, pipeline.recipe.evaluate.unrelated)
    pairs = [(first[number], first[other]) for number, other in numbers]
    return compare_pairs(pipeline, key, pairs, [key] * len(pairs), cluster)
