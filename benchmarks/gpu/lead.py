"""Which method leads: all methods on several sets and seeds, by matched removal and by the LDS, in minutes on a GPU.

    python benchmarks/gpu/lead.py --out FOLDER --data FOLDER [--until SECONDS] [--jobs NAME,...] [--workers N] [--tiny]

DATA has a prepared set for each name under `sets/` (`mucs-ray data prepare emoji --size 16 --out DATA/sets/emoji16`).
Each job is one set and one seed: a model is trained, items are generated, every method attributes them; then models are
trained on the subsets of the LDS and without what each method found (equally many images for all, and the union of the
lists for some), each time all at once (together.py). Scores, regenerated pictures, losses and weights are kept in
OUT/JOB, and all of it in OUT/lead.zip; a job goes on where it was cut. Needs pydantic beside what run.sh needs.

Axes: n training images, i items, m models.
"""

import json
import multiprocessing
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import DEVICE, as_bytes, machine, options
from plain import Attribution
from safetensors.torch import load_file, save_file
from together import Trainings, Weights, model_of

from mucs_ray.attribution.ranking import top_k
from mucs_ray.attribution.whitening import whitened
from mucs_ray.config.recipe import Recipe, build, from_card, read_recipe, with_settings
from mucs_ray.data.local import LocalImages
from mucs_ray.data.table import Dataset
from mucs_ray.data.thumbnails import thumbnails
from mucs_ray.diffusion.batch import Item
from mucs_ray.diffusion.condition import Condition, one_by_one, stacked
from mucs_ray.diffusion.model import DiffusionModel
from mucs_ray.diffusion.noise import NoiseSet, generator
from mucs_ray.diffusion.samplers import draw_named
from mucs_ray.evaluation.item_loss import item_losses
from mucs_ray.evaluation.subsets import NUM_NOISES, chosen, find_blocks
from mucs_ray.evaluation.unions import drawn_in_turn, expected_union, union
from mucs_ray.models.adapters import find, kind_of

TESTED = 10
"""The items whose lists are removed and whose pictures are compared, the first of a job."""
Variant = tuple[str, str, dict[str, Any]]
"""A label, the method, and settings beside those of its card."""
TRAIN_SIGMA = {"score.sigmas": "training"}
FILTER = {"score.sigmas": "both", "score.weights": "squared"}
CORE: dict[str, list[Variant]] = {
    "free": [("random", "random", {}), ("pixel", "pixel", {}), ("condition", "condition", {})],
    "das": [("das", "das", {}), ("dtrak", "dtrak", {})],
    "mucs": [
        ("mucs", "mucs", {}),
        ("mucs/train-sigma", "mucs/train-sigma", {}),
        ("mucs/matched-filter", "mucs/matched-filter", {}),
    ],
    "level-bound": [
        ("mucs/level-bound", "mucs/level-bound", {}),
        ("mucs/level-bound+train-sigma", "mucs/level-bound", TRAIN_SIGMA),
        ("mucs/level-bound+matched-filter", "mucs/level-bound", FILTER),
    ],
    "linear": [("mucs/linear", "mucs/linear", {}), ("mucs/linear-half", "mucs/linear-half", {})],
}
MORE: dict[str, list[Variant]] = {
    "control": [("mucs/control", "mucs/control", {}), ("mucs/control+train-sigma", "mucs/control", TRAIN_SIGMA)],
    "retention": [("mucs/matched-retention+train-sigma", "mucs/matched-retention", TRAIN_SIGMA)],
    "antithetic": [
        ("mucs/antithetic", "mucs/antithetic", {}),
        ("mucs/antithetic+train-sigma", "mucs/antithetic", TRAIN_SIGMA),
    ],
    "schedule": [("mucs/sigma-schedule", "mucs/sigma-schedule", {})],
    "no-null": [("mucs/no-null", "mucs/no-null", {}), ("mucs/no-null+train-sigma", "mucs/no-null", TRAIN_SIGMA)],
    "kfac": [("kfac", "kfac", {})],
}  # fmt: skip
WHITENED = ("mucs", "mucs/train-sigma", "mucs/level-bound+train-sigma", "mucs/level-bound+matched-filter", "das")
"""The methods whose whitened scores are tested too."""
MIXED = (("mucs", "das"), ("mucs/train-sigma/whitened", "das"), ("mucs/level-bound+train-sigma/whitened", "das"))
"""Pairs whose ranks are added up."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One set and one seed."""

    set: str
    seed: int
    items: int = TESTED
    subsets: int = 0
    settings: tuple[str, ...] = ()
    label: str = ""
    more: tuple[str, ...] = ()
    """The further groups of methods."""

    @property
    def name(self) -> str:
        """The folder of the job."""
        return f"{self.set}{self.label}-{self.seed}"


DATA_SIGMA = ('model.sigma_data="data"',)
LONGER = ("train.updates=3000", "train.ema_decay=0.999")
EVERY = tuple(MORE)
FEWER = ("control", "antithetic", "no-null", "schedule")
JOBS = (
    Job(set="emoji16", seed=101, items=40, subsets=64, more=EVERY),
    Job(set="cifar16", seed=101, items=24, subsets=64, settings=LONGER, more=FEWER),
    Job(set="emoji16", seed=101, items=40, subsets=64, settings=DATA_SIGMA, label="-v9", more=("control",)),
    *(Job(set="emoji16", seed=seed) for seed in (4, 5, 6)),
    Job(set="natural16", seed=4, settings=LONGER),
    *(Job(set="emoji16", seed=seed) for seed in (7, 8, 9)),
    Job(set="natural16", seed=5, settings=LONGER),
    *(Job(set="emoji16", seed=seed, more=FEWER) for seed in (102, 103)),
    Job(set="natural16", seed=6, settings=LONGER),
    *(Job(set="emoji16", seed=seed, settings=DATA_SIGMA, label="-v9") for seed in (102, 103)),
    Job(set="emoji32", seed=101, items=24, subsets=32, settings=("model.patch_size=8",)),
)


def recipe_of(job: Job, data: Path, *, tiny: bool) -> tuple[Recipe, Dataset]:
    """Return the packaged recipe of the emoji for this set and seed."""
    dataset = Dataset.open(str(data / "sets" / job.set))
    settings = [f"seed={job.seed}", f"generate.items={job.items}", "score.images_per_forward=64", *job.settings]
    if tiny:
        settings += [
            "train.updates=3", "score.noises=2", "method.das.noises=2", "method.das.dim=64", "method.dtrak.noises=2",
            "method.dtrak.dim=64", "method.mucs/linear.noises=2", "method.mucs/linear.dim=64", "method.kfac.noises=2",
            "method.kfac.factor_draws=1", "method.mucs.max_updates=2", "method.mucs.null_batches=2",
            "generate.steps=3", "generate.items=3",
        ]  # fmt: skip
    values = {"data": dataset.url, **with_settings(read_recipe("emoji"), settings)}
    values["model"] = find(kind_of(values["model"])).spec_class.measured(values["model"], lambda: mean_square(dataset))
    return build(from_card(values, dataset.card)), dataset


def mean_square(dataset: Dataset) -> float:
    """Return the mean square of the training images."""
    images = LocalImages(dataset, "train")
    return images.batch(np.arange(len(images))).z.double().square().mean().item()


def main() -> None:
    """Do all jobs, in processes side by side, until all is done or the time is up; then pack what is there."""
    given = options(__doc__, ("--until", float), ("--jobs", str), ("--workers", int))
    started, out = time.monotonic(), given.out
    names = given.jobs.split(",") if given.jobs else None
    jobs = [job for job in JOBS if names is None or job.name in names]
    out.mkdir(parents=True, exist_ok=True)
    (out / "machine.json").write_text(json.dumps(machine()))
    context = multiprocessing.get_context("spawn")
    workers = given.workers or (6 if DEVICE.type == "cuda" else 1)
    pool = ProcessPoolExecutor(workers, mp_context=context)
    running = {pool.submit(work, job, out, given.data, given.tiny): job for job in jobs}
    while running:
        left = None if given.until is None else given.until - (time.monotonic() - started)
        done, _ = wait(running, timeout=left, return_when=FIRST_COMPLETED)
        if not done:
            print("the time is up", flush=True)
            break
        for future in done:
            job = running.pop(future)
            if error := future.exception():
                print(f"{job.name} FAILED {type(error).__name__}: {error}", flush=True)
    pack(out)
    for process in list((pool._processes or {}).values()):
        process.kill()


def pack(out: Path) -> None:
    """Put all results into one archive."""
    with zipfile.ZipFile(out / "lead.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(out.glob("**/*")):
            if file.suffix in (".npz", ".json", ".safetensors"):
                archive.write(file, file.relative_to(out))


def work(job: Job, out: Path, data: Path, tiny: bool) -> None:
    """Do a job, task by task."""
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("highest")
    folder = out / job.name
    folder.mkdir(exist_ok=True)
    recipe, dataset = recipe_of(job, data, tiny=tiny)
    images = LocalImages(dataset, "train")

    def timed(name: str, task: Callable[[], None]) -> None:
        started = time.monotonic()
        try:
            task()
        except Exception as error:  # it is told, and the other tasks are done
            print(f"{job.name} {name} FAILED {type(error).__name__}: {error}", flush=True)
        print(f"{job.name} {name} in {time.monotonic() - started:.1f} s", flush=True)

    timed("train", lambda: train(folder, recipe, dataset, images))
    if job.subsets:
        timed("subsets", lambda: subsets(folder, recipe, dataset, images, 4 if tiny else job.subsets))
    attribution = Attribution(recipe, images, model_of(recipe, load_file(folder / "f1.safetensors")), items_of(folder))
    for group, variants in CORE.items():
        timed(group, lambda group=group, variants=variants: attribute(folder, attribution, group, variants))
    timed("remove", lambda: remove(folder, recipe, images))
    for group in job.more:
        timed(group, lambda group=group: attribute(folder, attribution, group, MORE[group]))


def train(folder: Path, recipe: Recipe, dataset: Dataset, images: LocalImages) -> None:
    """Train F1 and generate the items."""
    if (folder / "items.safetensors").exists():
        return
    (weights,) = Trainings(recipe, images, [frozenset()]).run()
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / "f1.safetensors")
    lenders = LocalImages(dataset, "test")
    order = generator(recipe.seed, "generate/conditions").permutation(len(lenders))[: recipe.generate.items]
    lent = lenders.batch(order)
    tensors = {"idx": lent.idx, "z": generated(recipe, model_of(recipe, weights), lent.idx.tolist(), lent.condition)}
    save_file(
        tensors | {f"condition/{name}": value for name, value in lent.condition.items()}, folder / "items.safetensors"
    )


def generated(recipe: Recipe, model: DiffusionModel, idx: list[int], condition: Condition) -> torch.Tensor:
    """Generate the items, each from its own noise, on the CPU."""
    return draw_named(model, condition, idx, recipe.generate, recipe.seed).cpu()


def items_of(folder: Path) -> list[Item]:
    """Read the items."""
    tensors = load_file(folder / "items.safetensors")
    condition = {name.removeprefix("condition/"): value for name, value in tensors.items() if "/" in name}
    conditions = one_by_one(condition, len(tensors["idx"]))
    return [
        Item(number=number, idx=int(idx), condition=own, z=z)
        for number, (idx, own, z) in enumerate(zip(tensors["idx"], conditions, tensors["z"], strict=True))
    ]


def attribute(folder: Path, attribution: Attribution, group: str, variants: list[Variant]) -> None:
    """Compute and keep the scores of some methods."""
    file = folder / f"scores-{group}.npz"
    if file.exists():
        return
    scores = {label: attribution.scores(name, settings) for label, name, settings in variants}
    np.savez_compressed(file, **{label: table.astype(np.float32) for label, table in scores.items()})
    facts = {"seconds": attribution.seconds, "facts": attribution.facts}
    (folder / f"scores-{group}.json").write_text(json.dumps(facts, default=float))


def whiten(scores: np.ndarray, delta: float = 1.0) -> np.ndarray:
    """Return scores less what the items' columns have in common."""
    ((_, table),) = whitened(lambda: [(np.arange(len(scores)), scores)], scores.shape[1], delta)
    return table


def with_mixed(scores: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the scores with whitened ones, and sums of the ranks of two methods."""
    more = {f"{name}/whitened": whiten(scores[name]) for name in WHITENED if name in scores}
    scores = scores | more
    for pair in MIXED:
        if all(name in scores for name in pair):
            scores[" & ".join(pair)] = sum(ranks(scores[name]) for name in pair)
    return scores


def ranks(scores: np.ndarray) -> np.ndarray:
    """Return minus the logarithm of the place of each image for each item, so that the best places count most."""
    places = np.empty_like(scores)
    order = np.argsort(-scores, axis=0, kind="stable")
    np.put_along_axis(places, order, np.arange(1, len(scores) + 1, dtype=scores.dtype)[:, None], axis=0)
    return -np.log(places)


def read_scores(folder: Path) -> dict[str, np.ndarray]:
    """Read the scores of all methods that are there."""
    return {label: table for file in sorted(folder.glob("scores-*.npz")) for label, table in np.load(file).items()}


def remove(folder: Path, recipe: Recipe, images: LocalImages) -> None:
    """Train without what each method found, and keep what the models make of the items."""
    if (folder / "removed.npz").exists():
        return
    scores = with_mixed(read_scores(folder))
    idx = images.batch(np.arange(len(images))).idx.numpy()
    items = items_of(folder)[:TESTED]
    k = top_k(len(images), recipe.rank.top_percent)
    size = expected_union(len(images), k, len(items))
    removed = {}
    for label, table in scores.items():
        order = [idx[np.argsort(-column, kind="stable")] for column in table[:, : len(items)].T]
        removed[f"{label}/matched"] = drawn_in_turn(order, size)
        if label in ("random", "mucs", "das", "mucs/train-sigma"):
            removed[f"{label}/union"] = union([ranked[:k] for ranked in order])
    (folder / "sizes.json").write_text(json.dumps({label: len(value) for label, value in removed.items()}))
    keep_outputs(folder / "removed.npz", recipe, images, items, removed)


def subsets(folder: Path, recipe: Recipe, dataset: Dataset, images: LocalImages, num: int) -> None:
    """Train on the subsets of the LDS, and keep what the models make of the items."""
    if (folder / "subsets.npz").exists():
        return
    idx, label, pixels = thumbnails(dataset)
    block = find_blocks(pixels, label, recipe.lds.blocks, seed=recipe.seed)
    size, everything = recipe.lds.subset_size(len(idx)), frozenset(idx.tolist())
    removed = {
        str(number): everything - chosen(number, idx, block, size=size, seed=recipe.seed) for number in range(num)
    }
    np.savez_compressed(folder / "blocks.npz", idx=idx, block=block, label=label)
    keep_outputs(folder / "subsets.npz", recipe, images, items_of(folder), removed)


def keep_outputs(
    file: Path, recipe: Recipe, images: LocalImages, items: list[Item], removed: dict[str, frozenset[int]]
) -> None:
    """Train a model without each of these, and keep the pictures that it makes of the items, and their losses."""
    started = time.monotonic()
    trained: list[Weights] = Trainings(recipe, images, list(removed.values())).run()
    took = time.monotonic() - started
    original = load_file(file.parent / "f1.safetensors")
    pictures, losses = [], []
    for weights in [original, *trained]:
        model = model_of(recipe, weights)
        condition = stacked([item.condition for item in items])
        pictures.append(as_bytes(generated(recipe, model, [item.idx for item in items], condition)))
        levels = model.process.training_levels(generator(recipe.seed, "lds/level"), NUM_NOISES)
        noises = NoiseSet.draw(recipe.seed, "lds/noise", levels, model.shape)
        with torch.no_grad():
            losses.append(item_losses(model, items, noises).mean(dim=1).numpy())
    np.savez_compressed(file, names=["original", *removed], pictures=np.stack(pictures), losses=np.stack(losses))
    facts = {"models": len(removed), "training, s": took, "outputs, s": time.monotonic() - started - took}
    file.with_suffix(".json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
