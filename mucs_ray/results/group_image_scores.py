"""Scores of groups from what methods have found of single training images.

Axes: b training images of one table, q queries (generated images), k groups, n noises.
"""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Int64

from mucs_ray.attribution.loss_change import scored_levels
from mucs_ray.attribution.skew import epsilon_at
from mucs_ray.evaluation.group_scores import FUNCTIONS, Aggregation, Members, group_scores, skew_of_groups
from mucs_ray.models.adapters import adapter
from mucs_ray.pipeline.graph import Pipeline
from mucs_ray.pipeline.method_stages import StageSpec
from mucs_ray.store.parts import matrix, read_part, stored_scores, unit_part
from mucs_ray.store.run import Stage

TOP = 10
"""The number of images of which "top-10 mean" takes the mean."""
SKEW = "skew of mean losses"


def image_scores(pipeline: Pipeline) -> dict[str, Float[np.ndarray, "q k"]]:
    """Return the scores of groups from those of images, by method and aggregation.

    Of a method that kept its losses there is also the skew of the groups' mean losses.
    """
    groups = pipeline.groups
    members = Members(idx=groups.idx, group=groups.group, num=len(groups.names))
    ways = [Aggregation(function, top=TOP) for function in FUNCTIONS]
    found = {}
    for method in pipeline.methods:
        attribution = pipeline.stages[f"attribute/{method}"]

        def tables(attribution: Stage = attribution) -> Iterator[tuple[Int64[np.ndarray, " b"], np.ndarray]]:
            for table in stored_scores(attribution):
                yield table["idx"].to_numpy(), matrix(table, "score")

        scores = group_scores(tables, members, ways)
        found |= {f"{method}, {way.name}": table for way, table in scores.items()}
        spec = pipeline.method_stages[f"attribute/{method}"]
        if keeps_losses(pipeline, spec):
            found[f"{method}, {SKEW}"] = skew_of_groups(kept_losses(pipeline, spec), members, epsilon(spec))
    return found


def keeps_losses(pipeline: Pipeline, spec: StageSpec) -> bool:
    """Return True if a method compares losses on noise that all images share, and has kept them."""
    score = spec.recipe.score
    if not score.keep_losses or score.noise != "shared" or spec.method.is_ensemble or len(spec.inputs) != 1:
        return False
    stage = pipeline.stages[spec.inputs[0]]
    first = read_part(stage.checked(unit_part(stage, pipeline.dataset.units("train")[0])))
    # a method that compares each item with another model of its own has as many losses before as after
    return "before" in first.column_names and matrix(first, "before").shape[1] == score.noises


def kept_losses(
    pipeline: Pipeline, spec: StageSpec
) -> Iterator[tuple[Int64[np.ndarray, " b"], Float[np.ndarray, "b n"], Float[np.ndarray, "b q n"]]]:
    """Yield the losses before and after the unlearning of each query, unit by unit."""
    stage, num_noises = pipeline.stages[spec.inputs[0]], spec.recipe.score.noises
    manifest = stage.manifest()
    for unit in pipeline.dataset.units("train"):
        table = read_part(stage.checked(unit_part(stage, unit), manifest))
        before, after = matrix(table, "before"), matrix(table, "after")
        yield table["idx"].to_numpy(), before, after.reshape(len(after), -1, num_noises)


def epsilon(spec: StageSpec) -> Float[np.ndarray, " n"]:
    """Return the epsilon of the skew's denominator at each noise, as in the method's own scores."""
    recipe = spec.recipe
    process = adapter(recipe.model).model(torch.device("meta")).process
    return epsilon_at(process, scored_levels(process, recipe.score, recipe.seed), recipe.score.epsilon).numpy()
