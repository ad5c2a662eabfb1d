"""Do the other passes use the machine as well as scoring does?

    python benchmarks/passes.py --run FOLDER [--rounds 3]
    python benchmarks/passes.py --model cifar10 --batch 4 --noises 5 --items 1 --images 2 --dim 1024   # on a CPU

Training and unlearning updates, the gradient features of D-TRAK and DAS, the Fisher pass of AbU, scoring and generation
take turns in one process on one thread or one GPU, with the recipe's own precision and sizes. Operations are counted by
torch, forward and backward; the share is that of the fastest matrix product in fp32, whatever the precision.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace

import numpy as np
import torch
from models import DEVICE, Subject, counted, machine, parser, seconds, subject
from throughput import ceiling

from mucs_ray.attribution.abu import AbU
from mucs_ray.attribution.base import MethodContext
from mucs_ray.attribution.das import DAS
from mucs_ray.attribution.dtrak import DTRAK
from mucs_ray.attribution.unlearn import unlearn
from mucs_ray.config.recipe import Recipe, build, with_settings
from mucs_ray.data.local import LocalImages
from mucs_ray.diffusion.batch import Item
from mucs_ray.diffusion.condition import for_each, one_by_one
from mucs_ray.diffusion.edm import EDM
from mucs_ray.diffusion.sampler import sample
from mucs_ray.engine.host import keep_freed_memory
from mucs_ray.training.step import TrainState, WorkerContext, draw_update, train_update

UPDATES = 4
"""The number of updates of unlearning, timed together with the losses before and after, and of training."""
GENERATED, STEPS = 4, 4
NO_BOUND = 1e9


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    keep_freed_memory()
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        model = subject(options, folder, images=max(options.images, options.batch or 0), settings=options.set).tuned()
        model = replace(model, recipe=sized(model.recipe, options))
        fastest = ceiling(model.recipe, ["fp32"])["fp32"]
        print(f"\n{model.recipe.name}, {model.origin}; share of {fastest / 1e9:,.4g} GFLOP/s, fp32\n")
        works = passes(model, options.images)
        flops = {name: counted(work) for name, work in works.items()}  # to warm up, too
        taken: dict[str, list[float]] = {name: [] for name in works}
        for _ in range(options.rounds):
            for name, work in works.items():
                taken[name].append(seconds(work))
        print(f"{'pass':<44}  seconds   GFLOP  GFLOP/s   share (least to most)")
        for name, times in taken.items():
            rates = sorted(flops[name] / time for time in times)
            middle = statistics.median(rates)
            print(
                f"{name:<44} {statistics.median(times):>8.4g} {flops[name] / 1e9:>7.4g} {middle / 1e9:>8.4g}"
                f"   {middle / fastest:.1%} ({rates[0] / fastest:.1%} to {rates[-1] / fastest:.1%})"
            )


def sized(recipe: Recipe, options: argparse.Namespace) -> Recipe:
    """Apply the smaller batches, sketches and sets of noises that the options give."""
    sections_of = {
        "batch_size": ("train", "method.mucs"),
        "noises": ("method.dtrak", "method.das"),
        "dim": ("method.dtrak", "method.das"),
    }
    values = {"batch_size": options.batch, "noises": options.noises, "dim": options.dim}
    pairs = [(f"{section}.{knob}", values[knob]) for knob, sections in sections_of.items() for section in sections]
    return build(with_settings(recipe.to_dict(), [f"{key}={value}" for key, value in pairs if value]))


def passes(model: Subject, num_images: int) -> dict[str, Callable[[], object]]:
    """Return the computations that take turns, by their names in the table."""
    recipe, batch = model.recipe, model.images(num_images)
    images = LocalImages(model.dataset, "train")
    state = TrainState.fresh(deepcopy(model.denoiser).requires_grad_(True), recipe.train)
    (condition,) = one_by_one(batch[:1].condition, 1)
    item = Item(number=0, idx=0, condition=condition, z=batch.z[0])
    own = recipe.method
    config = replace(own["mucs"], fixed_updates=UPDATES)
    context = MethodContext(settings=recipe, device=DEVICE, num_images=len(images), denoiser=model.denoiser)
    dtrak, das, abu, scoring = DTRAK(context), DAS(context), AbU(context), model.loss_change()
    noise = torch.randn(GENERATED, *batch.z.shape[1:], device=DEVICE)
    conditions = for_each(condition, GENERATED)
    batch = images.batch(np.arange(own["mucs"].batch_size)).to(DEVICE)
    rate = recipe.train.learning_rate

    def training() -> None:
        for _ in range(UPDATES):
            draws = draw_update(EDM(), images, recipe.train, seed=1, step=state.step)
            train_update(state, draws, recipe.train, seed=1, worker=WorkerContext())

    def unlearning() -> None:
        unlearn(model.denoiser, item, lambda _: batch, bound=NO_BOUND, config=config, learning_rate=rate, seed=1)

    return {
        f"training, {UPDATES} updates of {recipe.train.batch_size} images": training,
        f"unlearning, {UPDATES} updates of 2 x {recipe.method['mucs'].batch_size} draws": unlearning,
        f"features of D-TRAK, {num_images} images x {own['dtrak'].noises} noises": lambda: dtrak.features(batch),
        f"features of DAS, {num_images} images x {own['das'].noises} noises": lambda: das.features(batch),
        f"Fisher of AbU, {num_images} images x {recipe.method['abu'].fisher_draws} draws": lambda: abu.accumulate(
            batch
        ),
        f"scoring, {num_images} images x {model.forwards_an_image} forwards": lambda: scoring.losses(batch),
        f"generation, {GENERATED} items, {STEPS} steps": lambda: sample(
            EDM(), model.denoiser, noise, conditions, num_steps=STEPS
        ),
    }


def parse() -> argparse.Namespace:
    """Parse the command line."""
    options = parser(__doc__, images=32)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--batch", type=int, help="of training and unlearning; the recipe's by default")
    options.add_argument("--dim", type=int, help="of D-TRAK's and DAS's features; the recipe's by default")
    return options.parse_args()


if __name__ == "__main__":
    main()
