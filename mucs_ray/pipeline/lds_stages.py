"""The stages of the linear datamodeling score (LDS), which all methods share.

lds/blocks              the group of look-alikes of each training image
lds/train/NNNN          a training on subset NNNN; on the same one with another seed in lds/train/NNNN-repeat
lds/outputs/NNNN        the targets generated again by that model, and the losses of the original ones
lds/similarity          how similar the targets are that all models make, by every metric
lds                     the scores of all methods: lds.json, lds.csv
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mucs_ray.config.recipe import Recipe
from mucs_ray.data.table import Card
from mucs_ray.errors import InputError
from mucs_ray.evaluation.config import LdsConfig
from mucs_ray.evaluation.metrics import ReadyMetric
from mucs_ray.pipeline.method_stages import TARGETS, recipe_slice
from mucs_ray.store.run import Stage

LDS = "lds"
BLOCKS, TRAININGS, OUTPUTS, SIMILARITY = "lds/blocks", "lds/train", "lds/outputs", "lds/similarity"
LDS_PHASES = (BLOCKS, TRAININGS, OUTPUTS, SIMILARITY, LDS)
"""The first two folders of the stages' names, in order."""
REPEAT = "-repeat"
LDS_LAYOUT = 1
"""The version of lds.json; a higher one makes finished scores stale."""


def subset_keys(config: LdsConfig) -> list[str]:
    """Return the last folder of the name of each training: those of the subsets, then those of the repeats."""
    return [
        f"{number:04d}{end}"
        for end, count in (("", config.subsets), (REPEAT, config.repeats))
        for number in range(count)
    ]


def training_number(name: str) -> int:
    """Return the number of the subset, or of the group, from the name of the stage of a training."""
    return int(name.rpartition("/")[2].removesuffix(REPEAT))


def lds_stages(
    run_url: str, recipe: Recipe, card: Card, *, trained: Mapping[str, Any], targets: str
) -> dict[str, Stage]:
    """Return the stages that need no metric, by name, in order.

    `trained` holds the values of the recipe that any training reads; `targets` is the fingerprint of the targets. The
    number of subsets is not among what they read, so that more can be added.
    """
    stages: dict[str, Stage] = {}
    given = {"data": card.fingerprint, TARGETS: targets}

    def stage(name: str, reads: Mapping[str, Any], *inputs: str) -> None:
        fingerprints = {earlier: given.get(earlier) or stages[earlier].fingerprint for earlier in inputs}
        stages[name] = Stage(run_url=run_url, name=name, reads=reads, inputs=fingerprints)

    stage(BLOCKS, recipe_slice(recipe, "lds.blocks", "seed"), "data")
    generated = recipe_slice(recipe, "generate", "seed", "train.checkpoint", without=("generate.controls",))
    keys = subset_keys(recipe.lds)
    for key in keys:
        stage(f"{TRAININGS}/{key}", {**trained, **recipe_slice(recipe, "lds.share")}, "data", BLOCKS)
    for key in keys:
        stage(f"{OUTPUTS}/{key}", generated, "data", TARGETS, f"{TRAININGS}/{key}")
    return stages


def similarity_stage(stages: Mapping[str, Stage], recipe: Recipe, metrics: Sequence[ReadyMetric]) -> Stage:
    """Return the stage that compares the images of all models."""
    earlier = [f"{OUTPUTS}/{key}" for key in subset_keys(recipe.lds)]
    targets = stages[earlier[0]].inputs[TARGETS]
    return Stage(
        run_url=stages[BLOCKS].run_url,
        name=SIMILARITY,
        reads={f"metric.{metric.name}": metric.digest for metric in metrics},
        inputs={TARGETS: targets, **{name: stages[name].fingerprint for name in earlier}},
    )


def scores_stage(stages: Mapping[str, Stage], recipe: Recipe, attributions: Mapping[str, str]) -> Stage:
    """Return the stage that scores methods, given the fingerprints of their attributions by name."""
    return Stage(
        run_url=stages[BLOCKS].run_url,
        name=LDS,
        reads={"layout": LDS_LAYOUT, **recipe_slice(recipe, "lds.versus", "seed")},
        inputs={SIMILARITY: stages[SIMILARITY].fingerprint, **attributions},
    )


def check_lds(recipe: Recipe, card: Card, methods: Collection[str]) -> None:
    """Raise InputError if there are more repeats than subsets, a subset is smaller than a batch, or the method to
    compare with is not among `methods`.
    """
    config, num_images = recipe.lds, card.num_images("train")
    if config.repeats > config.subsets:
        raise InputError(f"lds.repeats is {config.repeats}, and there are only lds.subsets={config.subsets} to repeat")
    size = config.subset_size(num_images)
    if size < recipe.train.batch_size or size == num_images:
        raise InputError(
            f"a subset would have {size:,} of {num_images:,} training images, and a batch takes"
            f" {recipe.train.batch_size}; set lds.share or train.batch_size"
        )
    if config.versus not in ("", *methods):
        raise InputError(f"lds.versus is {config.versus}, which is not attributed in this run; add it to --method")
