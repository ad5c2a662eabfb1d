"""The stages that train a network through Ray Train, several of them at once where the cluster has room."""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from mucs_ray import storage
from mucs_ray.engine import trainings as ray_trainings
from mucs_ray.engine.progress import bar
from mucs_ray.engine.ray_train import TrainJob, TrainRun, workers_for
from mucs_ray.engine.session import Cluster
from mucs_ray.pipeline.graph import StageRef
from mucs_ray.pipeline.groups_stages import RETRAINED_GROUPS
from mucs_ray.pipeline.lds_stages import TRAININGS, training_number
from mucs_ray.pipeline.loo_stages import WITHOUT_ONE
from mucs_ray.run.stages.files import Output, digests
from mucs_ray.run.stages.lds import left_out, training_seed
from mucs_ray.run.stages.loo import left_out_image
from mucs_ray.run.stages.remove import removed_images
from mucs_ray.store.facts import RemovalFacts, TrainingFacts, read_facts
from mucs_ray.store.weights import model_facts


def train(refs: Sequence[StageRef], cluster: Cluster) -> Iterator[tuple[StageRef, Output]]:
    """Run these trainings, and yield the output of each as soon as it is done."""
    runs = [prepare_training(ref, cluster, trainings=len(refs)) for ref in refs]
    first, updates = refs[0].pipeline, sum(ref.pipeline.recipe.train.updates for ref in refs)
    with bar(first.console, refs[0].phase, updates, "updates", first.events) as progress:
        for number, facts in ray_trainings.train_all(runs, cluster, bar=progress):
            ref, run = refs[number], runs[number]
            facts = {**facts, "workers": run.num_workers, **model_facts(run.job.model)}
            if ref.leaves_images_out:
                facts |= asdict(RemovalFacts(removed=len(run.job.removed)))
            yield ref, (digests(run.job.stage, training_files(ref)), facts)
            if ref.leaves_images_out:  # the manifest stands: nothing resumes from the state any more
                storage.remove(run.job.stage.url(run.job.stage.part("state", "safetensors")))


def prepare_training(ref: StageRef, cluster: Cluster, *, trainings: int) -> TrainRun:
    """Return what a training needs, after publishing the list of images that it leaves out."""
    pipeline, name = ref
    recipe, stage, seed = pipeline.recipe, pipeline.stage(name), pipeline.recipe.seed
    removed: frozenset[int] = frozenset()
    num_workers = recipe.engine.train_workers
    if ref.phase == TRAININGS:
        removed, seed = left_out(pipeline, name), training_seed(name, seed)
    elif ref.phase == RETRAINED_GROUPS:
        removed, seed = pipeline.groups.members(training_number(name)), training_seed(name, seed)
    elif ref.phase == WITHOUT_ONE:
        removed, seed = left_out_image(pipeline, name), training_seed(name, seed)
    elif ref.leaves_images_out:
        removed = removed_images(pipeline, name)
    if ref.leaves_images_out:
        # the same cut of batches over workers as in pretraining, so that nothing differs but the images
        num_workers = num_workers or read_facts(pipeline.stages["pretrain"], TrainingFacts).workers
    stage.begin(training_files(ref))
    if ref.leaves_images_out:
        storage.publish(stage.url(stage.part("removed", "csv")), removed_csv(removed))
    job = TrainJob(
        dataset=pipeline.dataset,
        stage=stage,
        model=recipe.model,
        train=recipe.train,
        seed=seed,
        removed=removed,
        captures=recipe.engine.cuda_graphs,
    )
    workers = workers_for(recipe.train, num_workers, cluster, trainings=trainings)
    return TrainRun(job=job, num_workers=workers)


def training_files(ref: StageRef) -> list[str]:
    """Return the names of the files of a finished training."""
    stage = ref.pipeline.stage(ref.name)
    weights = [stage.part(kind, "safetensors") for kind in ("best", "last")]
    return [*weights, stage.part("removed", "csv")] if ref.leaves_images_out else weights


def removed_csv(removed: frozenset[int]) -> bytes:
    """Return a CSV table with one idx a line, in ascending order."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([["idx"], *([idx] for idx in sorted(removed))])
    return text.getvalue().encode()
