"""What the models say that were trained without one image each (`retrain/loo`)."""

from dataclasses import asdict

import numpy as np

from mucs_ray import storage
from mucs_ray.data.table import Dataset
from mucs_ray.engine.item_losses import LossJob, losses_by_model
from mucs_ray.engine.progress import bar
from mucs_ray.engine.session import Cluster
from mucs_ray.errors import RunFailed
from mucs_ray.pipeline.graph import Pipeline
from mucs_ray.pipeline.loo_stages import FLOOR, LOO_LOSSES, trainings_without_one
from mucs_ray.run.stages.files import Output, weights_ref
from mucs_ray.store.facts import LooFacts
from mucs_ray.store.parts import part_bytes

ALL_IMAGES = "pretrain"
"""The training with all images, with which the others are compared."""


def ascending_idx(dataset: Dataset) -> np.ndarray:
    """Return the idx of all training images, in ascending order."""
    return np.sort(np.concatenate([table["idx"].to_numpy() for table in dataset.stream("train", ["idx"])]))


def left_out_image(pipeline: Pipeline, name: str) -> frozenset[int]:
    """Return the idx of the image that a training leaves out, by the name of its stage; none for the floor."""
    if name == FLOOR:
        return frozenset()
    return frozenset([int(ascending_idx(pipeline.dataset)[int(name.rpartition("/")[2])])])


def losses(pipeline: Pipeline, cluster: Cluster) -> Output:
    """Write losses.parquet: for each image how much higher the loss of each target is without it, and the loss.

    The losses are means over noises that all models and targets share. RunFailed, naming the training, if one is not
    finite.
    """
    recipe, stage = pipeline.recipe, pipeline.stages[LOO_LOSSES]
    file = stage.part("losses", "parquet")
    stage.begin([file])
    idx = ascending_idx(pipeline.dataset)
    names = [ALL_IMAGES, FLOOR, *trainings_without_one(len(idx))]
    job = LossJob(
        items=pipeline.stages["generate"], model=recipe.model, noises=recipe.evaluate.noises, seed=recipe.seed
    )
    targets = range(recipe.generate.items)
    models = {name: (weights_ref(pipeline.stages[name], recipe), targets) for name in names}
    with bar(pipeline.console, stage.name, len(names), "models", pipeline.events) as progress:
        measured = losses_by_model(job, models, cluster=cluster, bar=progress)
    loss = np.stack([measured[name].double().mean(dim=1).numpy() for name in names])
    for name, row in zip(names, loss, strict=True):
        if not np.isfinite(row).all():
            raise RunFailed(f"{stage.name}: the loss of a target under {name} is not finite")
    whole, another_seed, *_ = loss
    columns = {"score": loss[2:] - whole, "loss": loss[2:]}
    facts = LooFacts(with_all_images=whole.tolist(), another_seed=another_seed.tolist())
    return {file: storage.publish(stage.url(file), part_bytes(idx, columns))}, asdict(facts)
