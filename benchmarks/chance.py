"""How much of a list is chance: do other noises, or unlearning again with other draws, give the same top images?

    python benchmarks/chance.py --run FOLDER [--items 4] [--images 1715] [--noises 20] [--top-percent 5]

Scores every image twice, at the recipe's noise levels and at those of training, with two sets of noises that have
nothing in common and the run's own unlearned models; then with one set of noises and two unlearnings, each with
training batches and draws of its own. Prints how far the two agree, item by item.
"""

import argparse
import statistics
from dataclasses import replace

import torch
from models import DEVICE, Subject, machine, parser, parts, subject
from sidebyside import overlap, rank_correlation
from torch import Tensor

from mucs_ray.attribution.config import ScoreConfig
from mucs_ray.attribution.loss_change import LossChange
from mucs_ray.attribution.ranking import top_k
from mucs_ray.attribution.unlearn import unlearn
from mucs_ray.data.local import LocalImages
from mucs_ray.diffusion.batch import Batch, Item
from mucs_ray.engine.host import keep_freed_memory
from mucs_ray.store.checkpoint import Tensors
from mucs_ray.training.order import batch_rows

SEEDS = (101, 102)


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    keep_freed_memory()
    print(machine())
    model = subject(options, "", images=options.images, settings=options.set).tuned()  # with --run nothing is written
    batch = model.images(options.images)
    levels = {sigmas: replace(model.recipe.score, sigmas=sigmas) for sigmas in ("schedule", "training")}
    k = top_k(len(batch), options.top_percent)
    print(f"{len(batch)} images x {model.recipe.score.noises} noises x {len(model.bank)} items; the top {k}\n")
    for name, score in levels.items():
        one, other = (scores(model, model.bank, batch, score, seed) for seed in SEEDS)
        print(f"{name} levels, two sets of noises: {agreement(one, other, k)}", flush=True)
    banks = [unlearned(model, options, seed) for seed in SEEDS]
    for name, score in levels.items():
        one, other = (scores(model, bank, batch, score, SEEDS[0]) for bank in banks)
        print(f"{name} levels, two unlearnings: {agreement(one, other, k)}", flush=True)


def scores(model: Subject, bank: list[Tensors], batch: Batch, score: ScoreConfig, seed: int) -> Tensor:
    """Return skews[images, items] with the noises of a seed."""
    change = LossChange(model.denoiser, bank, config=score, seed=seed)
    return change.skew(change.losses(batch))


def unlearned(model: Subject, options: argparse.Namespace, seed: int) -> list[Tensors]:
    """Return F2 of each item, unlearned as in the recipe with the draws of a seed."""
    images, config = LocalImages(model.dataset, "train"), model.recipe.method["mucs"]
    (null,) = parts(options.run, "attribute/mucs/null", "prepared")
    rate = model.recipe.train.learning_rate / config.learning_rate_divisor
    bank = []
    for number, tensors in enumerate(parts(options.run, "generate", "item-")[: options.items]):
        item = Item(number=number, idx=number, z=tensors.pop("image"), condition=tensors)

        def batches(step: int, name: str = f"chance/item={number}") -> Batch:
            rows = batch_rows(seed, name, step, num_images=len(images), batch_size=config.batch_size)
            return images.batch(rows).to(DEVICE)

        bound = null["null_loss"].item()
        state = unlearn(model.denoiser, item, batches, bound=bound, config=config, learning_rate=rate, seed=seed)
        bank.append(state.tensors)
    return bank


def agreement(one: Tensor, other: Tensor, k: int) -> str:
    """Return the agreement of two scorings of the same images for the same items."""
    correlations, shared = rank_correlation(one, other), overlap(one, other, k)
    return (
        f"rank correlation {statistics.mean(correlations):.3f} (least {min(correlations):.3f}),"
        f" {statistics.mean(shared):.0%} of the top in common (least {min(shared):.0%})"
    )


def parse() -> argparse.Namespace:
    """Parse the command line."""
    options = parser(__doc__, images=1715)
    options.add_argument("--top-percent", type=float, default=5.0)
    arguments = options.parse_args()
    if not arguments.run:
        options.error("--run is needed: of random weights there is nothing to unlearn")
    return arguments


if __name__ == "__main__":
    main()
