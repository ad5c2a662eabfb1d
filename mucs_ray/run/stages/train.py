"""Pretraining and retraining: Ray Train runs, several at once where the cluster has room."""

import csv
import io
from collections.abc import Iterator, Sequence

from mucs_ray import storage
from mucs_ray.engine import ray_train
from mucs_ray.engine.progress import bar
from mucs_ray.engine.session import Cluster
from mucs_ray.pipeline.graph import Pipeline
from mucs_ray.run.stages.files import Output, digests
from mucs_ray.run.stages.remove import removed_images
from mucs_ray.store.weights import model_facts


def is_training(pipeline: Pipeline, name: str) -> bool:
    """Whether a stage trains a network."""
    return name.startswith("retrain/") or (name == "pretrain" and pipeline.recipe.trains)


def train(todo: Sequence[tuple[Pipeline, str]], cluster: Cluster) -> Iterator[tuple[Pipeline, str, Output]]:
    """Train all of these, and tell each as soon as it is done."""
    runs = [prepared(pipeline, name, cluster, trainings=len(todo)) for pipeline, name in todo]
    first, title = todo[0][0], todo[0][1].split("/")[0]
    updates = sum(pipeline.recipe.train.updates for pipeline, _ in todo)
    with bar(first.console, title, updates, "updates", first.events) as shown:
        for number, facts in ray_train.train_all(runs, cluster, bar=shown):
            (pipeline, name), run = todo[number], runs[number]
            told = {**facts, "workers": run.num_workers, **model_facts(run.job.model)}
            if name.startswith("retrain/"):
                told |= {"removed": len(run.job.removed)}
            yield pipeline, name, (digests(run.job.stage, parts(pipeline, name)), told)
            if name.startswith("retrain/"):  # the manifest stands: nothing resumes from the state any more
                storage.remove(run.job.stage.url(run.job.stage.part("state", "safetensors")))


def prepared(pipeline: Pipeline, name: str, cluster: Cluster, *, trainings: int) -> ray_train.TrainRun:
    """What a training needs; what it leaves out is written down first."""
    recipe, stage = pipeline.recipe, pipeline.stages[name]
    removed: frozenset[int] = frozenset()
    num_workers = recipe.engine.train_workers
    if name.startswith("retrain/"):
        removed = removed_images(pipeline, name)
        # the same cut of batches over workers as in pretraining, so that nothing differs but the images
        num_workers = num_workers or pipeline.stages["pretrain"].facts()["workers"]
    stage.begin(parts(pipeline, name))
    if name.startswith("retrain/"):
        storage.publish(stage.url(stage.part("removed", "csv")), removed_csv(removed))
    job = ray_train.TrainJob(
        dataset=pipeline.dataset,
        stage=stage,
        model=recipe.model,
        train=recipe.train,
        seed=recipe.seed,
        removed=removed,
        captures=recipe.engine.cuda_graphs,
    )
    workers = ray_train.workers_for(recipe.train, num_workers, cluster, trainings=trainings)
    return ray_train.TrainRun(job=job, num_workers=workers)


def parts(pipeline: Pipeline, name: str) -> list[str]:
    """Files of a finished training."""
    stage = pipeline.stages[name]
    weights = [stage.part(kind, "safetensors") for kind in ("best", "last")]
    return [*weights, stage.part("removed", "csv")] if name.startswith("retrain/") else weights


def removed_csv(removed: frozenset[int]) -> bytes:
    """One idx a line."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([["idx"], *([idx] for idx in sorted(removed))])
    return text.getvalue().encode()
