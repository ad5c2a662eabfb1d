"""How many forwards does screening save, which recall does it reach, and does it tell that recall right?

    python benchmarks/screen.py --run FOLDER [--items 8] [--noises 100] [--images 1715] [--sample 300]

Scores the first images of a finished run's training set in full and by `mucs/screen`, in one process on one thread or
GPU, for the same items, and compares the lists. `published`: the plain published procedure on a part of the images,
multiplied out. Below, the same bounds learned from other random samples, evaluated on the table of all skews.
"""

import argparse
import statistics
import tempfile
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from models import DEVICE, Subject, machine, parser, seconds, subject
from sidebyside import PUBLISHED_BATCH, overlap, published

from mucs_ray.attribution.base import Columns, MethodContext
from mucs_ray.attribution.ranking import top_k
from mucs_ray.attribution.screen import ScreenedMUCS
from mucs_ray.attribution.screening import held_out, kept, learn, noise_counts
from mucs_ray.config.recipe import with_values
from mucs_ray.diffusion.batch import Batch

UNIT = 64
"""The number of images that are screened together, as in a row group."""
TOP_PERCENT = 2.0
SHOWN = ("recall", "recall_low", "recall_high", "sample", "share_of_forwards")


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        model = subject(options, folder, images=options.images, settings=options.set).tuned()
        model = replace(model, recipe=with_values(model.recipe, {"rank.top_percent": TOP_PERCENT}))
        batch = model.images(options.images)
        table = measured(model, batch, options)
        resampled(table, options)


def measured(model: Subject, batch: Batch, options: argparse.Namespace) -> np.ndarray:
    """Time a full and a screened pass, compare their lists, and return skews[images, items, noises] of the full one."""
    print(f"{len(batch)} images x {model.recipe.score.noises} noises x {1 + len(model.bank)} models; {model.how}")
    method = screened(model, len(batch), options)
    inside = torch.from_numpy(np.flatnonzero(method.in_sample(batch.idx.numpy())))
    results: dict[str, Any] = {}
    part = batch[: min(len(batch), 4 * PUBLISHED_BATCH)]
    theirs = published(model, batch=PUBLISHED_BATCH, bf16=False)
    method.sample(batch[:8])  # to warm up
    took = {
        "published": seconds(lambda: theirs(part)) * len(batch) / len(part),
        "full": seconds(lambda: results.update(full=[method.sample(unit)["skews"] for unit in units(batch)])),
        "sample": seconds(lambda: results.update(sample=method.sample(batch[inside]))),
    }
    bounds = method.fit_screen(iter([results["sample"]]))
    method.load(bounds, model.bank)
    took["screened"] = seconds(lambda: results.update(columns=[method.columns(unit) for unit in units(batch)]))
    table = torch.cat(results["full"]).view(len(batch), len(model.bank), -1).numpy()
    columns: Columns = {name: torch.cat([unit[name] for unit in results["columns"]]) for name in ("score", "noises")}
    total = took["sample"] + took["screened"]
    print(f"published (multiplied out) {took['published']:.0f} s, full {took['full']:.0f} s")
    print(f"screened {took['screened']:.0f} s and its sample of {len(inside)} images {took['sample']:.0f} s, together")
    print(f"{took['full'] / total:.2f} times as fast as full, {took['published'] / total:.2f} times as published")
    print(f"mucs/screen {method.expectation({name: bounds[name].item() for name in SHOWN})}")
    k = top_k(len(batch), TOP_PERCENT)
    forwards = method.forwards(columns) / table.size / (1 + 1 / len(model.bank))
    recalls = overlap(torch.from_numpy(table.mean(axis=2)), columns["score"], k)
    print(f"found: {statistics.mean(recalls):.1%} of the top {k} (least of an item: {min(recalls):.1%})")
    print(f"forwards: {forwards:.1%}, the sample's not counted")
    return table


def screened(model: Subject, num_images: int, options: argparse.Namespace) -> ScreenedMUCS:
    """Build the method with all models, before its bounds are known."""
    settings = {"method.mucs/screen.sample": options.sample, "method.mucs/screen.recall": options.recall}
    recipe = with_values(model.recipe, settings)
    method = ScreenedMUCS(MethodContext(settings=recipe, device=DEVICE, num_images=num_images, denoiser=model.denoiser))
    method.load({}, model.bank)
    return method


def units(batch: Batch) -> list[Batch]:
    """Cut a batch into units of UNIT images."""
    return [batch[at : at + UNIT] for at in range(0, len(batch), UNIT)]


def resampled(table: np.ndarray, options: argparse.Namespace) -> None:
    """Print recall and cost over random samples, beside the recall that was predicted from each."""
    scores = table.mean(axis=2)
    top = scores >= np.sort(scores, axis=0)[-top_k(len(scores), TOP_PERCENT)]
    counts = noise_counts(table.shape[2], (0.1, 0.3))
    steps = np.diff([0, *counts]) / counts[-1]
    print(f"over {options.samples} random samples (mean, least):")
    print("asked   sample  recall          told    within its interval  share of forwards")
    for recall in (0.9, 0.98):
        for size in options.sizes:
            predicted, real, share = [], [], []
            for seed in range(options.samples):
                rows = np.random.default_rng(seed).choice(len(table), size, replace=False)
                settings: dict[str, Any] = {"top_share": TOP_PERCENT / 100, "counts": counts, "recall": recall}
                alive = kept(learn(table[rows], **settings), table)
                predicted.append(held_out(table[rows], **settings))
                real.append((alive[-1] & top).sum() / top.sum())
                share.append(steps[0] + sum(step * left.mean() for step, left in zip(steps[1:], alive, strict=True)))
            within = np.mean([guess.low <= recall <= guess.high for guess, recall in zip(predicted, real, strict=True)])
            mean_predicted = statistics.mean(guess.recall for guess in predicted)
            print(
                f"{recall:>5.0%} {size:>8} {np.mean(real):>8.1%} {min(real):>6.1%} {mean_predicted:>7.1%}"
                f" {within:>20.0%} {np.mean(share):>18.1%}"
            )


def parse() -> argparse.Namespace:
    """Parse the command line."""
    options = parser(__doc__, images=1715)
    options.add_argument("--sample", type=int, default=300)
    options.add_argument("--recall", type=float, default=0.98)
    options.add_argument("--samples", type=int, default=20, help="random samples, for the table")
    options.add_argument("--sizes", type=int, nargs="+", default=[150, 300, 600], help="of these")
    return options.parse_args()


if __name__ == "__main__":
    main()
