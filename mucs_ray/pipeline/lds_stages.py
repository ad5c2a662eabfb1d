"""The stages of the linear datamodeling score (LDS), which all methods share.

lds/blocks              the group of look-alikes of each training image
lds/train/NNNN          a training on subset NNNN; on the same one with another seed in lds/train/NNNN-repeat
"""

from collections.abc import Mapping
from typing import Any

from mucs_ray.config.recipe import Recipe
from mucs_ray.data.table import Card
from mucs_ray.errors import InputError
from mucs_ray.evaluation.config import LdsConfig
from mucs_ray.evaluation.subsets import num_chosen, repeat_seed
from mucs_ray.pipeline.method_stages import recipe_slice
from mucs_ray.store.run import Stage

LDS = "lds"
BLOCKS, TRAININGS = "lds/blocks", "lds/train"
LDS_PHASES = (BLOCKS, TRAININGS)
"""The first two folders of the stages' names, in order."""
REPEAT = "-repeat"


def subset_keys(config: LdsConfig) -> list[str]:
    """Return the last folder of the name of each training: those of the subsets, then those of the repeats."""
    return [
        f"{number:04d}{end}"
        for end, count in (("", config.subsets), (REPEAT, config.repeats))
        for number in range(count)
    ]


def subset_number(name: str) -> int:
    """Return the number of the subset from the name of a stage."""
    return int(name.rpartition("/")[2].removesuffix(REPEAT))


def training_seed(name: str, seed: int) -> int:
    """Return the seed of a training from the name of its stage and the seed of the run."""
    return repeat_seed(seed) if name.endswith(REPEAT) else seed


def lds_stages(run_url: str, recipe: Recipe, card: Card, trained: Mapping[str, Any]) -> dict[str, Stage]:
    """Return the stages by name, in order; `trained` holds the values of the recipe that any training reads.

    The number of subsets is not among what they read, so that more can be added.
    """
    data = {"data": card.fingerprint}
    blocks = Stage(run_url=run_url, name=BLOCKS, reads=recipe_slice(recipe, "lds.blocks", "seed"), inputs=data)
    stages = {BLOCKS: blocks}
    for key in subset_keys(recipe.lds):
        reads, inputs = {**trained, **recipe_slice(recipe, "lds.share")}, {**data, BLOCKS: blocks.fingerprint}
        stages[f"{TRAININGS}/{key}"] = Stage(run_url=run_url, name=f"{TRAININGS}/{key}", reads=reads, inputs=inputs)
    return stages


def check_subsets(recipe: Recipe, card: Card) -> None:
    """Raise InputError if there are more repeats than subsets, or a subset is smaller than a batch."""
    config, num_images = recipe.lds, card.num_images("train")
    if config.repeats > config.subsets:
        raise InputError(f"lds.repeats is {config.repeats}, and there are only lds.subsets={config.subsets} to repeat")
    size = num_chosen(num_images, config.share)
    if size < recipe.train.batch_size or size == num_images:
        raise InputError(
            f"a subset would have {size:,} of {num_images:,} training images, and a batch takes"
            f" {recipe.train.batch_size}; set lds.share or train.batch_size"
        )
