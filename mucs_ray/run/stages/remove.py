"""Which images a retraining leaves out: from a method's ranking to a set of idx (spec 11)."""

from mucs_ray.attribution.ranking import top_k
from mucs_ray.errors import InputError
from mucs_ray.evaluation.unions import drawn_in_turn, expected_union, union
from mucs_ray.pipeline.graph import Pipeline
from mucs_ray.run.stages.rank import empty_rankings, score_matrix, stored_scores
from mucs_ray.store.topk import top_lists


def removed_images(pipeline: Pipeline, name: str) -> frozenset[int]:
    """What the retraining `name` ("retrain/METHOD", or "retrain/METHOD/item-NNNN") leaves out.

    InputError if too few images would be left to train on.
    """
    recipe = pipeline.recipe
    method, _, number = name.removeprefix("retrain/").partition("/item-")
    if number:
        removed = union([top_lists(pipeline.stages[f"attribute/{method}"])[int(number)]])
    elif recipe.remove.mode == "matched":
        removed = matched(pipeline, method)
    else:
        removed = union(top_lists(pipeline.stages[f"attribute/{method}"]))
    num_images = pipeline.dataset.card.num_images("train")
    if num_images - len(removed) < recipe.train.batch_size:
        raise InputError(
            f"{name} would remove {len(removed):,} of {num_images:,} training images, and a batch takes"
            f" {recipe.train.batch_size}; lower rank.top_percent, generate.items or remove.size"
        )
    return removed


def matched(pipeline: Pipeline, method: str) -> frozenset[int]:
    """As many images for every method, by going as far down the ranked lists as that takes."""
    recipe, num_images = pipeline.recipe, pipeline.dataset.card.num_images("train")
    k = top_k(num_images, recipe.rank.top_percent)
    size = recipe.remove.size or expected_union(num_images, k, recipe.generate.items)
    rankings = empty_rankings(pipeline, size)
    for table in stored_scores(pipeline, method):
        idx, scores = table["idx"].to_numpy(), score_matrix(table)
        rankings = [ranking.add(idx, scores[:, number]) for number, ranking in enumerate(rankings)]
    return drawn_in_turn([ranking.idx for ranking in rankings], size)
