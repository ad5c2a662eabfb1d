"""Whether unlearning ends, family by family: updates, outcome and loss of an item under each bound of MUCS.

    python benchmarks/bounds.py                      # some minutes of one core
    python benchmarks/bounds.py --kinds unet2d --updates 2000 --items 2

Small networks of every kind learn the embedded emoji at 8 px, in this process. Items are drawn from them as a run draws
them. R is the check of spec/models 2.6: the loss as a share of that of the best linear denoiser.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch.nn.functional import avg_pool2d

from mucs_ray.attribution.cards.mucs import MUCSConfig
from mucs_ray.attribution.mucs import NULL_BATCH
from mucs_ray.attribution.unlearn import null_loss, unlearn
from mucs_ray.config.recipe import model_spec
from mucs_ray.data.prepare import prepare
from mucs_ray.diffusion.batch import Batch, Item
from mucs_ray.diffusion.gate import ratio
from mucs_ray.diffusion.model import DiffusionModel
from mucs_ray.diffusion.noise import generator, normal
from mucs_ray.diffusion.samplers import draw
from mucs_ray.models.adapters import adapter
from mucs_ray.models.spec import ModelSpec
from mucs_ray.training.config import TrainConfig
from mucs_ray.training.step import TrainState, WorkerContext, training

SEED, SIDE = 1, 8
CPU = torch.device("cpu")
DIT = {"patch_size": 2, "width": 64, "depth": 3, "num_heads": 4, "registers": 0, "kernel_size": 3, "dropout": 0.0}
UNET = {"channels": 16, "multipliers": [1, 2], "blocks": 1, "attention_at": [4], "dropout": 0.0}
UNET2D = {
    "channels": [16, 32],
    "layers": 1,
    "attention_down": [False, True],
    "attention_up": [False, True],
    "groups": 8,
    "dropout": 0.0,
}
FAMILIES = {
    "dit-edm": {"kind": "dit-edm", **DIT},
    "dit-vp": {"kind": "dit-vp", **DIT},
    "unet-edm": {"kind": "unet-edm", **UNET},
    "unet-vp": {"kind": "unet-vp", **UNET},
    "unet2d": {"kind": "unet2d", **UNET2D},
    "unet2d, velocity": {"kind": "unet2d", **UNET2D, "prediction": "v_prediction"},
    "unet2d, image": {"kind": "unet2d", **UNET2D, "prediction": "sample"},
}
BOUNDS = ("linear", "zero-output", "drawn")


class Emoji:
    """The training images at 8 px, with the vectors of their classes."""

    def __init__(self, folder: str) -> None:
        """Prepare the embedded data set and shrink it."""
        dataset = prepare("emoji", where=None, out=folder, size=None)
        batches = [dataset.batch(table) for table in dataset.stream("train")]
        self.z = torch.cat([avg_pool2d(batch.z, batch.z.shape[-1] // SIDE) for batch in batches])
        self.condition = torch.cat([batch.condition["condition"] for batch in batches])

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.z)

    def batch(self, rows: np.ndarray, stream: np.random.Generator | None = None) -> Batch:
        """Return these rows."""
        at = torch.from_numpy(rows)
        return Batch(idx=at, z=self.z[at], condition={"condition": self.condition[at]})

    def batches(self, name: str, size: int) -> Callable[[int], Batch]:
        """Return a function from a step to random rows that belong to the name."""
        return lambda step: self.batch(generator(SEED, f"{name}/{step}").integers(len(self), size=size))


def main() -> None:
    """Train each family, and print one line for each of its items and bounds."""
    options = parse()
    with tempfile.TemporaryDirectory() as folder:
        images = Emoji(folder)
    titles = f"{'bound':<12} {'mean':>6} {'updates':>7}  {'outcome':<10} {'item loss':>9} {'s':>6}"
    print(f"{'family':<18} {'R':>5}  {titles}", flush=True)
    for name in options.kinds:
        values = {**FAMILIES[name], "image_size": SIDE}
        width = "num_classes" if values["kind"] == "unet2d" else "condition_dim"
        spec = model_spec({**values, width: images.condition.shape[1]})
        spec.check()
        model = trained(spec, images, options)
        checked = ratio(model, images.batch(np.arange(0, len(images), len(images) // 32)[:32]), seed=SEED)
        for item in items(model, images, options.items):
            for line in unlearned(spec, model, images, item, options):
                print(f"{name:<18} {checked:>5.2f}  {line}", flush=True)


def trained(spec: ModelSpec, images: Emoji, options: argparse.Namespace) -> DiffusionModel:
    """Train a model from the weights that the seed names, and return the running mean of its weights."""
    kind = adapter(spec)
    model, trainer = kind.untrained(SEED, CPU), kind.trainer()
    assert model is not None and trainer is not None
    config = train_config(options)
    state = TrainState.fresh(model, config)
    for _ in training(state, images, images, config, seed=SEED, worker=WorkerContext(), augment=trainer.augment):
        pass
    return state.average


def train_config(options: argparse.Namespace) -> TrainConfig:
    """Return the settings of training, which validates only at its end."""
    return TrainConfig(
        updates=options.updates,
        updates_per_epoch=options.updates,
        batch_size=64,
        learning_rate=options.learning_rate,
        warmup_epochs=0,
        ema_decay=0.99,
        augment=0.0,
        flip=False,
        patience=0,
    )


def items(model: DiffusionModel, images: Emoji, num: int) -> Iterator[Item]:
    """Yield images that the model draws for the classes of the first training images."""
    for number in range(num):
        noise = normal(generator(SEED, f"generate/idx={number}"), 1, *model.shape)
        condition = {"condition": images.condition[number][None]}
        z = draw(model, noise, condition, steps=40, clip="on", step_noise=lambda step, noise=noise: noise)[0]
        yield Item(number=number, idx=number, condition={"condition": images.condition[number]}, z=z)


def unlearned(
    spec: ModelSpec, model: DiffusionModel, images: Emoji, item: Item, options: argparse.Namespace
) -> Iterator[str]:
    """Yield a line for each bound: its mean over training levels, and how unlearning to it ended."""
    mean_square = images.z.double().square().mean().item()
    first = adapter(spec).untrained(SEED, CPU)
    assert first is not None
    values = {
        "linear": lambda: model.process.null_loss(mean_square),
        "zero-output": lambda: model.process.zero_output_loss(mean_square),
        "drawn": lambda: null_loss(first, images.batches("null", NULL_BATCH), num_batches=20, seed=SEED),
    }
    config = MUCSConfig(batch_size=64, max_updates=options.max_updates)
    for name in options.bounds:
        started, bound = time.monotonic(), values[name]()
        found = unlearn(
            model,
            item,
            images.batches(f"unlearn/{item.idx}", config.batch_size),
            bound=bound,
            level_bound=partial(model.process.linear_bound, mean_square=mean_square) if name == "linear" else None,
            config=replace(config, max_updates=options.max_updates),
            learning_rate=options.learning_rate / config.learning_rate_divisor,
            seed=SEED,
        )
        ended = f"{found.updates:>7}  {found.outcome:<10} {found.item_loss[-1]:>9.3f}"
        yield f"{name:<12} {bound:>6.3f} {ended} {time.monotonic() - started:>6.1f}"


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--bounds", nargs="+", choices=BOUNDS, default=list(BOUNDS))
    parser.add_argument("--updates", type=int, default=1500, help="of training")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--items", type=int, default=2)
    parser.add_argument("--max-updates", type=int, default=250, help="of unlearning")
    return parser.parse_args()


if __name__ == "__main__":
    main()
