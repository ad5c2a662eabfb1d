"""The stages of the linear datamodeling score (LDS) except its trainings, which `mucs_ray.run.stages.train` runs."""

from collections.abc import Iterator, Sequence

import numpy as np

from mucs_ray import storage
from mucs_ray.data.thumbnails import thumbnails
from mucs_ray.engine.generation import GenerateJob
from mucs_ray.engine.progress import bar
from mucs_ray.engine.session import Cluster
from mucs_ray.engine.subset_outputs import SubsetJob, compare_outputs, compute_outputs, load_outputs, outputs_file
from mucs_ray.errors import RunFailed
from mucs_ray.evaluation.lds import LOSS
from mucs_ray.evaluation.subsets import chosen, find_blocks, repeat_seed
from mucs_ray.pipeline.graph import Pipeline, StageRef
from mucs_ray.pipeline.lds_stages import BLOCKS, OUTPUTS, REPEAT, SIMILARITY, TRAININGS, subset_keys, training_number
from mucs_ray.results.lds import read_blocks
from mucs_ray.run.stages.files import Output
from mucs_ray.store.facts import GenerationFacts, read_facts
from mucs_ray.store.parts import part_bytes, table_bytes


def blocks(pipeline: Pipeline) -> Output:
    """Write blocks.parquet: the idx of each training image, and its block of look-alikes."""
    recipe, stage = pipeline.recipe, pipeline.stage(BLOCKS)
    file = stage.part("blocks", "parquet")
    stage.begin([file])
    num_images = pipeline.dataset.card.num_images("train")
    with bar(pipeline.console, BLOCKS, num_images, "images", pipeline.events) as progress:
        idx, label, pixels = thumbnails(pipeline.dataset)
        progress.advance(num_images)
    block = find_blocks(pixels, label, recipe.lds.blocks, seed=recipe.seed)
    digest = storage.publish(stage.url(file), part_bytes(idx, {"block": block}))
    return {file: digest}, {"blocks": int(block.max()) + 1}


def outputs(refs: Sequence[StageRef], cluster: Cluster) -> Iterator[tuple[StageRef, Output]]:
    """Compute what the models of subsets make of the targets, and yield each as soon as it is done.

    Then its weights are removed, unless the recipe keeps them.
    """
    jobs, of_name = {ref.name: subset_job(ref) for ref in refs}, {ref.name: ref for ref in refs}
    first = refs[0].pipeline
    with bar(first.console, OUTPUTS, len(refs), "models", first.events) as progress:
        for name, published in compute_outputs(jobs, cluster=cluster, bar=progress):
            ref, job = of_name[name], jobs[name]
            yield ref, ({outputs_file(job.stage): published.sha256}, {"seconds": round(published.seconds, 2)})
            if not ref.pipeline.recipe.lds.keep_weights:  # the manifest stands
                for kind in ("best", "last"):
                    storage.remove(job.training.url(job.training.part(kind, "safetensors")))


def subset_job(ref: StageRef) -> SubsetJob:
    """Return what a worker needs to know about the model of a subset."""
    pipeline, stage = ref.pipeline, ref.pipeline.stage(ref.name)
    training = pipeline.stage(ref.name.replace(OUTPUTS, TRAININGS))
    stage.begin([outputs_file(stage)])
    return SubsetJob(
        generate=generate_job(pipeline),
        targets=read_facts(pipeline.stages["generate"], GenerationFacts).targets,
        training=training,
        weights=training.part(pipeline.recipe.train.checkpoint, "safetensors"),
        stage=stage,
    )


def generate_job(pipeline: Pipeline) -> GenerateJob:
    """Return how the targets were generated, and are generated again."""
    recipe = pipeline.recipe
    return GenerateJob(
        dataset=pipeline.dataset,
        model=recipe.model,
        config=recipe.generate,
        seed=recipe.seed,
        stage=pipeline.stages["generate"],
    )


def similarity(pipeline: Pipeline, cluster: Cluster) -> Output:
    """Write similarity.parquet: for each model the similarity of each target by each metric, and its loss.

    RunFailed, naming the metric and the model, if a value is not finite.
    """
    stage, (metrics, _) = pipeline.stage(SIMILARITY), pipeline.similarities
    file = stage.part("similarity", "parquet")
    stage.begin([file])
    names = [f"{OUTPUTS}/{key}" for key in subset_keys(pipeline.recipe.lds)]
    models = [pipeline.stage(name) for name in names]
    num_targets = pipeline.recipe.generate.items
    with bar(pipeline.console, SIMILARITY, len(metrics), "metrics", pipeline.events) as progress:
        values = compare_outputs(metrics, generate_job(pipeline), num_targets, models, cluster=cluster, bar=progress)
    values[LOSS] = np.stack([load_outputs(model)["loss"].numpy() for model in models])
    for metric, table in values.items():
        if not np.isfinite(table).all():
            number = int(np.flatnonzero(~np.isfinite(table).all(axis=1))[0])
            raise RunFailed(f"{metric} of a target is not finite ({names[number]})")
    subsets = np.asarray([training_number(name) for name in names], dtype=np.int64)
    repeat = np.asarray([name.endswith(REPEAT) for name in names])
    columns = {"subset": subsets, "repeat": repeat, **values}
    digest = storage.publish(stage.url(file), table_bytes(columns))
    return {file: digest}, {"models": len(names), "metrics": [*values]}


def left_out(pipeline: Pipeline, name: str) -> frozenset[int]:
    """Return the idx of the images that a training leaves out."""
    idx, block = read_blocks(pipeline)
    recipe = pipeline.recipe
    kept = chosen(training_number(name), idx, block, size=recipe.lds.subset_size(len(idx)), seed=recipe.seed)
    return frozenset(idx.tolist()) - kept


def training_seed(name: str, seed: int) -> int:
    """Return the seed of a training from the name of its stage and the seed of the run."""
    return repeat_seed(seed) if name.endswith(REPEAT) else seed
