"""Unlearning of styles by anchors (GUDA-C) beside trainings without each style, on a toy of four styles.

    python benchmarks/styles.py --out runs/styles

The styles are those of four_styles.py. Two hundred updates of training are too few to tell styles apart; the default
takes about ten minutes of one idle core, by estimate. Everything runs in this process, without Ray. The reference is
the training without each style (leave one group out, LOGO), and the floor a second set of them with another seed. The
table has, for each unlearner, the agreement with the reference over generated images, and the mean score of a picture's
own style and of the others: an unlearner that forgets too much has the right order and a meaningless scale.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from four_styles import DIM, SIZE, STYLES, WORDS, embed, written
from jaxtyping import Float, Int64
from torch import Tensor

from mucs_ray.attribution.config import ScoreConfig
from mucs_ray.attribution.forgetting.config import ANCHORED, GroupsConfig, Unlearner
from mucs_ray.attribution.forgetting.forget import forget_group
from mucs_ray.attribution.forgetting.losses import Help
from mucs_ray.attribution.forgetting.score import group_score, query_errors, score_grid
from mucs_ray.data.group_anchors import anchors_of
from mucs_ray.data.group_images import GroupImages
from mucs_ray.data.groups import Groups, find_groups
from mucs_ray.data.local import LocalImages
from mucs_ray.data.table import Dataset
from mucs_ray.diffusion.batch import Item
from mucs_ray.diffusion.model import DiffusionModel
from mucs_ray.diffusion.noise import generator, normal
from mucs_ray.diffusion.samplers import draw
from mucs_ray.evaluation.group_agreement import agreement
from mucs_ray.models.adapters import adapter
from mucs_ray.models.dit_config import DiTConfig
from mucs_ray.training.config import TrainConfig
from mucs_ray.training.step import TrainState, WorkerContext, training

MODEL = DiTConfig(
    image_size=SIZE, patch_size=4, width=48, depth=2, num_heads=4, registers=1, condition_channels=32,
    condition_dim=DIM, kernel_size=3, dropout=0.0,
)  # fmt: skip
UNLEARNERS: tuple[Unlearner, ...] = (*ANCHORED, "zero", "retrack", "retain-only")
METRICS = ("top-1", "Spearman", "NDCG@3 (linear)", "MRR")


def main() -> None:
    """Train, unlearn, score, and print a line for each set of models without a style."""
    options = parse()
    dataset = written(f"{options.out}/data")
    groups = find_groups(dataset, "style")
    full = trained(dataset, options, seed=options.seed)
    queries = generated(full, dataset, options)
    own = np.array([groups.names.index(style_of(item, dataset)) for item in queries])
    errors, gold = errors_of(full, queries, options), None
    print(f"{'models':<22} {' '.join(f'{metric:>22}' for metric in METRICS)} {'own style':>10} {'others':>8} {'s':>6}")
    for name, models in counterfactuals(full, dataset, groups, options):
        start = time.monotonic()
        without = list(models)
        seconds = time.monotonic() - start
        table = scores_of(full, errors, [errors_of(model, queries, options) for model in without], options)
        gold = table if gold is None else gold
        show(name, gold, table, own, seconds, options)
    assert gold is not None
    chance = {summary.metric: summary.chance for summary in agreement(gold, gold, seed=options.seed).summaries}
    print(f"{'chance':<22} {' '.join(f'{chance[metric] or 0:>22.3f}' for metric in METRICS)}")


def show(
    name: str,
    gold: Float[np.ndarray, "q k"],
    table: Float[np.ndarray, "q k"],
    own: Int64[np.ndarray, " q"],
    seconds: float,
    options: argparse.Namespace,
) -> None:
    """Print the agreement of scores with the reference, and the mean scores of the own style and of others."""
    told = {summary.metric: summary for summary in agreement(gold, table, seed=options.seed).summaries}
    cells = []
    for metric in METRICS:
        mean, interval = told[metric].mean, told[metric].interval
        cells.append("" if mean is None or interval is None else f"{mean:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]")
    is_own = np.eye(table.shape[1], dtype=bool)[own]
    means = f"{table[is_own].mean():>10.2f} {table[~is_own].mean():>8.2f} {seconds:>6.0f}"
    print(f"{name:<22} {' '.join(f'{cell:>22}' for cell in cells)} {means}", flush=True)


def counterfactuals(
    full: DiffusionModel, dataset: Dataset, groups: Groups, options: argparse.Namespace
) -> Iterator[tuple[str, Iterator[DiffusionModel]]]:
    """Yield the models without each group, by what makes them."""
    numbers = range(len(groups.names))
    for name, seed in (("LOGO", options.seed), ("LOGO, other seed", options.seed + 1)):
        yield name, (trained(dataset, options, seed=seed, removed=groups.members(number)) for number in numbers)
    for unlearner in options.unlearners:
        for updates in options.updates:
            config = GroupsConfig(
                unlearners=(unlearner,), updates=updates, batch_size=options.batch_size, words=WORDS,
                learning_rate=options.learning_rate, descriptors=dict(STYLES), content=("object", "number"), flip=False,
            )  # fmt: skip
            models = (forgotten(full, dataset, groups, number, unlearner, config, options) for number in numbers)
            yield f"{unlearner}, {updates}", models


def forgotten(
    full: DiffusionModel,
    dataset: Dataset,
    groups: Groups,
    number: int,
    unlearner: Unlearner,
    config: GroupsConfig,
    options: argparse.Namespace,
) -> DiffusionModel:
    """Unlearn one group."""
    cut = GroupImages(LocalImages(dataset, "train"), groups.members(number))
    batches = (
        cut.batches(part, group=number, batch_size=config.batch_size, seed=options.seed)
        for part in ("retain", "forget")
    )
    retain, forget = batches
    helped = Help(
        neighbours=cut.neighbours_of(cut.neighbours(config.neighbours)) if unlearner == "retrack" else None,
        anchors=anchors_of(unlearner, cut, dataset, groups.names, number, config, nothing=full.nothing, embed=embed)
        if unlearner in ANCHORED
        else None,
    )
    found = forget_group(
        full, number, unlearner, retain=retain, forget=forget, config=config, seed=options.seed, helped=helped
    )
    return adapter(MODEL).model(torch.device("cpu"), found.tensors)


def trained(
    dataset: Dataset, options: argparse.Namespace, *, seed: int, removed: frozenset[int] = frozenset()
) -> DiffusionModel:
    """Train a model without some images and return its average."""
    config = TrainConfig(
        updates=options.train_updates, updates_per_epoch=40, batch_size=options.batch_size, learning_rate=3e-3,
        warmup_epochs=1, ema_decay=0.99, patience=0, checkpoint="last", augment=0.0, flip=False,
    )  # fmt: skip
    fresh = adapter(MODEL).untrained(seed, torch.device("cpu"))
    assert fresh is not None
    state = TrainState.fresh(fresh, config)
    images, test = LocalImages(dataset, "train", removed=removed), LocalImages(dataset, "test")
    for update in training(state, images, test, config, seed=seed, worker=WorkerContext()):
        if update.validation is not None and not removed:
            print(f"update {update.step}: validation loss {update.validation:.4f}", flush=True)
    return state.average


def generated(full: DiffusionModel, dataset: Dataset, options: argparse.Namespace) -> list[Item]:
    """Generate an image from each test prompt, up to a number."""
    (table,) = dataset.stream("test")
    batch = dataset.batch(table)[torch.from_numpy(generator(options.seed, "queries").permutation(len(table)))]
    batch = batch[: options.queries]
    noise = torch.cat([normal(generator(options.seed, f"query/{idx}"), 1, *full.shape) for idx in batch.idx.tolist()])
    z = draw(full, noise, batch.condition, steps=24, step_noise=lambda _: noise)  # heun, which draws no noise
    condition = batch.condition["condition"]
    return [
        Item(number=number, idx=int(batch.idx[number]), condition={"condition": condition[number]}, z=z[number])
        for number in range(len(batch))
    ]


def style_of(item: Item, dataset: Dataset) -> str:
    """Return the style whose test prompt an image was generated from."""
    return next(
        row["style"]
        for table in dataset.stream("test", ["idx", "style"])
        for row in table.to_pylist()
        if row["idx"] == item.idx
    )


def errors_of(model: DiffusionModel, queries: list[Item], options: argparse.Namespace) -> Float[Tensor, "q n"]:
    """Return the errors of a model for images, on noises that all models share."""
    grid = score_grid(model.process, GroupsConfig(levels=options.levels), ScoreConfig())
    with torch.no_grad():
        return torch.stack([query_errors(model, item, grid, seed=options.seed) for item in queries])


def scores_of(
    full: DiffusionModel, errors: Float[Tensor, "q n"], without: list[Tensor], options: argparse.Namespace
) -> Float[np.ndarray, "q k"]:
    """Return the differences of the evidence lower bounds."""
    config = GroupsConfig(levels=options.levels)
    of = (config, ScoreConfig(), full.process, score_grid(full.process, config, ScoreConfig()))
    num_elements = int(np.prod(full.shape))
    return np.array(
        [[group_score(*of, errors[q], one[q], num_elements) for one in without] for q in range(len(errors))]
    )


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs/styles", type=lambda path: str(Path(path).absolute()))
    parser.add_argument("--seed", default=1, type=int)
    parser.add_argument("--train-updates", default=1000, type=int)
    parser.add_argument("--unlearners", nargs="+", choices=UNLEARNERS, default=list(UNLEARNERS))
    parser.add_argument("--updates", nargs="+", default=[30, 100], type=int, help="Updates of unlearning.")
    parser.add_argument("--learning-rate", default=2e-4, type=float, help="The rate of unlearning.")
    parser.add_argument("--batch-size", default=16, type=int)
    parser.add_argument("--queries", default=40, type=int)
    parser.add_argument("--levels", default=48, type=int)
    return parser.parse_args()


if __name__ == "__main__":
    main()
