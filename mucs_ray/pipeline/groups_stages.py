"""The stages of group attribution: who made an image, by models without one group of training images each.

groups/members                the group of each training image
groups/retrain/NNNN           a training without group NNNN; with another seed in groups/retrain/NNNN-repeat
groups/unlearn/UNLEARNER      the full model without each group, by unlearning; a part is a group
groups/score/full             the errors of the full model for the generated images
groups/score/METHOD           those of the models without each group: retrained, retrained-repeat, or an unlearner
groups/result                 scores of all groups, agreement with the trainings, shares
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mucs_ray.attribution.forgetting.config import ANCHORED
from mucs_ray.config.recipe import Recipe
from mucs_ray.data.groups import Groups
from mucs_ray.data.table import Card
from mucs_ray.errors import InputError
from mucs_ray.pipeline.lds_stages import REPEAT
from mucs_ray.pipeline.method_stages import recipe_slice
from mucs_ray.store.run import Stage

GROUPS = "groups"
MEMBERS, RETRAINED_GROUPS, FORGOTTEN, SCORED, RESULT = (
    f"groups/{folder}" for folder in ("members", "retrain", "unlearn", "score", "result")
)
GROUP_PHASES = (MEMBERS, RETRAINED_GROUPS, FORGOTTEN, SCORED, RESULT)
"""The first two folders of the stages' names, in order."""
FULL, RETRAINED = "full", "retrained"
HOW_TO_FORGET = (
    "groups.updates", "groups.batch_size", "groups.learning_rate", "groups.warmup", "groups.weight_decay",
    "groups.forget_weight", "groups.retain", "groups.neighbours", "groups.lowest_sigma", "groups.kl_cap",
    "groups.guidance", "groups.dropout", "groups.flip", "train.flip", "seed",
)  # fmt: skip
HOW_TO_ANCHOR = (
    "groups.template", "groups.descriptors", "groups.words", "groups.beta", "groups.eta", "groups.content"
)  # fmt: skip
"""What awss, uniform, style-removed and matched read besides."""
HOW_TO_SCORE = ("groups.score", "groups.skip", "groups.levels", "groups.noise_sets", "seed")
HOW_TO_SCORE_SKEW = ("score.noises", "score.keep", "score.lowest_sigma", "score.epsilon")


def group_name(number: int) -> str:
    """Return the name of a group in files and folders; users' names never become those of files."""
    return f"{number:04d}"


def gold_names(recipe: Recipe) -> list[str]:
    """Return the names of the sets of trainings without each group: the reference, and that which shows the floor."""
    return [RETRAINED, f"{RETRAINED}{REPEAT}"][: recipe.groups.golds]


def retrainings(gold: str, num_groups: int) -> list[str]:
    """Return the names of the trainings of one set."""
    end = gold.removeprefix(RETRAINED)
    return [f"{RETRAINED_GROUPS}/{group_name(number)}{end}" for number in range(num_groups)]


def group_stages(
    run_url: str,
    recipe: Recipe,
    card: Card,
    groups: Groups,
    digest: str,
    *,
    trained: Mapping[str, Any],
    earlier: Mapping[str, Stage],
    methods: Sequence[str],
) -> dict[str, Stage]:
    """Return the stages by name, in order.

    `digest` is that of the groups' manifest, `trained` holds the values of the recipe that any training reads, and
    `earlier` the stages before these. The scores of images by `methods` are summed up for each group.
    """
    stages: dict[str, Stage] = {}
    checkpoint = ("train.checkpoint",) if recipe.trains else ()

    def stage(name: str, reads: Mapping[str, Any], *inputs: str) -> None:
        known = {"data": card.fingerprint} | {other: made.fingerprint for other, made in {**earlier, **stages}.items()}
        stages[name] = Stage(run_url=run_url, name=name, reads=reads, inputs={other: known[other] for other in inputs})

    stage(MEMBERS, {**recipe_slice(recipe, "groups.by"), "groups.digest": digest}, "data")
    golds = gold_names(recipe)
    for gold in golds:
        for name in retrainings(gold, len(groups.names)):
            stage(name, trained, "data", MEMBERS)
    for unlearner in recipe.groups.unlearners:
        anchors = HOW_TO_ANCHOR if unlearner in ANCHORED else ()
        read = recipe_slice(recipe, *HOW_TO_FORGET, *anchors, *checkpoint)
        stage(f"{FORGOTTEN}/{unlearner}", read, "data", "pretrain", MEMBERS)
    skew = HOW_TO_SCORE_SKEW if recipe.groups.score == "skew" else ()
    scored = recipe_slice(recipe, *HOW_TO_SCORE, *skew, *checkpoint)
    stage(f"{SCORED}/{FULL}", scored, "generate", "pretrain")
    for gold in golds:
        stage(f"{SCORED}/{gold}", scored, "generate", *retrainings(gold, len(groups.names)))
    for unlearner in recipe.groups.unlearners:
        stage(f"{SCORED}/{unlearner}", scored, "generate", f"{FORGOTTEN}/{unlearner}")
    inputs = [name for name in stages if name.startswith(f"{SCORED}/")]
    stage(RESULT, scored, MEMBERS, *inputs, *(f"attribute/{method}" for method in methods))
    return stages


def check_groups(recipe: Recipe, groups: Groups) -> None:
    """Raise InputError if models cannot be trained again, or too few images are left for a batch without a group."""
    if recipe.groups.golds and not recipe.trains:
        raise InputError(
            "groups are compared with trainings without each of them, and this run trains no model; set groups.golds=0"
            " to unlearn only"
        )
    if not recipe.groups.golds and not recipe.groups.unlearners:
        raise InputError("there is nothing to score groups with; set groups.golds or groups.unlearners")
    left = groups.num_images - max(groups.sizes)
    if recipe.groups.golds and left < recipe.train.batch_size:
        raise InputError(
            f"without its largest group the training set has {left:,} images, and a batch takes"
            f" {recipe.train.batch_size}; set train.batch_size lower"
        )
    if "esd" in recipe.groups.unlearners and not recipe.model.conditional:
        raise InputError("groups.unlearners has esd, which needs a model with classes; choose others")
