"""The base share of the targets and of the training images of a fine-tune."""

import csv
import io

import numpy as np

from mucs_ray import storage
from mucs_ray.engine.base_losses import BaseJob, Table, base_losses
from mucs_ray.engine.progress import bar
from mucs_ray.engine.session import Cluster
from mucs_ray.errors import RunFailed
from mucs_ray.evaluation.base_share import shares
from mucs_ray.pipeline.graph import BASE_SHARE, Pipeline
from mucs_ray.results.base_share import COLUMNS, FILE
from mucs_ray.run.stages.files import Output, weights_ref


def base_share(pipeline: Pipeline, cluster: Cluster) -> Output:
    """Write share.csv: a line for each target and each training image. RunFailed if a loss is not finite."""
    recipe, stage = pipeline.recipe, pipeline.stages[BASE_SHARE]
    assert recipe.finetune.base is not None, "only a fine-tune has this stage"
    stage.begin([FILE])
    job = BaseJob(
        dataset=pipeline.dataset,
        items=pipeline.stages["generate"],
        model=recipe.model,
        base=recipe.finetune.base,
        noises=recipe.finetune.noises,
        seed=recipe.seed,
    )
    weights, num_tasks = weights_ref(pipeline.stages["pretrain"], recipe), 1 + len(pipeline.dataset.units("train"))
    with bar(pipeline.console, stage.name, num_tasks, "parts", pipeline.events) as progress:
        targets, images = base_losses(job, weights, recipe.generate.items, cluster=cluster, bar=progress)
    content = as_csv({"target": targets, "image": images})
    return {FILE: storage.publish(stage.url(FILE), content.encode())}, {}


def as_csv(tables: dict[str, Table]) -> str:
    """Return a line for each picture. RunFailed, naming the picture, if a loss is not finite."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for kind, (idx, losses) in tables.items():
        for number, (base, own), share in zip(idx.tolist(), losses.tolist(), shares(*losses.T).tolist(), strict=True):
            if not np.isfinite([base, own]).all():
                raise RunFailed(f"{BASE_SHARE}: the loss of {kind} {number} is not finite")
            writer.writerow([kind, number, f"{base:.8g}", f"{own:.8g}", f"{share:.6f}"])
    return text.getvalue()
