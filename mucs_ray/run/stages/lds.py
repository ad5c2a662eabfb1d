"""The stages of the linear datamodeling score (LDS) except its trainings, which `mucs_ray.run.stages.train` runs."""

import numpy as np

from mucs_ray import storage
from mucs_ray.data.thumbnails import thumbnails
from mucs_ray.engine.progress import bar
from mucs_ray.evaluation.subsets import chosen, find_blocks
from mucs_ray.pipeline.graph import Pipeline
from mucs_ray.pipeline.lds_stages import BLOCKS, subset_number
from mucs_ray.run.stages.files import Output
from mucs_ray.store.parts import part_bytes, read_part


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


def kept_images(pipeline: Pipeline, name: str) -> tuple[np.ndarray, frozenset[int]]:
    """Return the idx of all training images, and those of the subset to which a stage belongs."""
    recipe, stage = pipeline.recipe, pipeline.stage(BLOCKS)
    table = read_part(stage.checked(stage.part("blocks", "parquet")))
    idx, block = table["idx"].to_numpy(), table["block"].to_numpy()
    return idx, chosen(subset_number(name), idx, block, share=recipe.lds.share, seed=recipe.seed)


def left_out(pipeline: Pipeline, name: str) -> frozenset[int]:
    """Return the idx of the images that a training leaves out."""
    idx, kept = kept_images(pipeline, name)
    return frozenset(idx.tolist()) - kept
