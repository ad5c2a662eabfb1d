"""The training images that a retraining leaves out, chosen by a method's ranking (spec 11)."""

from mucs_ray.attribution.ranking import list_length
from mucs_ray.config.recipe import Recipe
from mucs_ray.errors import InputError
from mucs_ray.evaluation.unions import drawn_in_turn, expected_union, union
from mucs_ray.pipeline.graph import Pipeline
from mucs_ray.run.stages.rank import empty_rankings
from mucs_ray.store.parts import matrix, stored_scores
from mucs_ray.store.run import Stage
from mucs_ray.store.topk import top_lists


def removed_images(pipeline: Pipeline, name: str) -> frozenset[int]:
    """Return the idx of the training images that the retraining `name` leaves out.

    `name` is "retrain/KEY" with the key of a test, or "retrain/KEY/item-NNNN"; the attribution must be done.
    InputError if too few images would be left to train on.
    """
    key, _, number = name.removeprefix("retrain/").partition("/item-")
    test, recipe, num_images = pipeline.tests[key], pipeline.recipe, pipeline.dataset.card.num_images("train")
    attribution = pipeline.stages[f"attribute/{test.method}"]
    if test.mode == "per-item":
        removed = union([top_lists(attribution)[int(number)]])
    elif test.mode == "matched":
        removed = equally_many(attribution, recipe, num_images)
    else:
        removed = union(top_lists(attribution))
    if num_images - len(removed) < recipe.train.batch_size:
        raise InputError(
            f"{name} would remove {len(removed):,} of {num_images:,} training images, and a batch takes"
            f" {recipe.train.batch_size}; lower rank.top_percent, generate.items or remove.size"
        )
    return removed


def equally_many(attribution: Stage, recipe: Recipe, num_images: int) -> frozenset[int]:
    """Return as many images as for every other method, going as far down the ranked lists as that takes."""
    k = list_length(num_images, recipe.rank)
    size = recipe.remove.size or expected_union(num_images, k, recipe.generate.items)
    rankings = empty_rankings(size, recipe.generate.items, recipe.seed)
    for table in stored_scores(attribution):
        idx, scores = table["idx"].to_numpy(), matrix(table, "score")
        rankings = [ranking.add(idx, scores[:, number]) for number, ranking in enumerate(rankings)]
    return drawn_in_turn([ranking.idx for ranking in rankings], size)
