"""The stages of `retrain/loo`, which trains once without each image.

loo/train/NNNN         a training without image NNNN, counted from 0 in ascending order of idx
loo/train/all-repeat   a training on all images with another seed, whose effect is the floor: what is below it is chance
loo/losses             the loss of each target under each of these models, and under that of all images
"""

from mucs_ray.config.recipe import Recipe
from mucs_ray.data.table import Card
from mucs_ray.errors import InputError

LOO = "loo"
WITHOUT_ONE, LOO_LOSSES = "loo/train", "loo/losses"
LOO_PHASES = (WITHOUT_ONE, LOO_LOSSES)
"""The first two folders of the stages' names, in order."""
FLOOR = f"{WITHOUT_ONE}/all-repeat"
"""The training with another seed, as its end says (mucs_ray.pipeline.lds_stages.REPEAT)."""
MOST_IMAGES = 60


def trainings_without_one(num_images: int) -> list[str]:
    """Return the names of the trainings, of which each leaves one image out."""
    return [f"{WITHOUT_ONE}/{number:04d}" for number in range(num_images)]


def check_loo(recipe: Recipe, card: Card) -> None:
    """Raise InputError if the run trains no model, or there are too many images to train without each."""
    num_images = card.num_images("train")
    if not recipe.trains:
        raise InputError(
            "retrain/loo trains the model again without each image, and this run trains none; leave --weights out, or"
            " choose other methods"
        )
    if num_images > MOST_IMAGES:
        raise InputError(
            f"retrain/loo trains the model once for each image, up to {MOST_IMAGES}, and there are {num_images:,};"
            " choose other methods, of which mucs-ray run tests each by a few retrainings"
        )
    if num_images - 1 < recipe.train.batch_size:
        raise InputError(
            f"without one image there are {num_images - 1} to train on, and a batch takes {recipe.train.batch_size};"
            " set train.batch_size lower"
        )
