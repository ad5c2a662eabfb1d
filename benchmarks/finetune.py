"""Does attribution of a fine-tune find what leaving images out finds?

    python benchmarks/finetune.py --images FOLDER [--set KEY=VALUE ...]

FOLDER holds a folder of pictures for each of ten classes, none of them emoji. The packaged emoji network is fine-tuned
on 30 of them (three of each class), among them a copy of the first query with a little noise. Then it explains that
query, which is not in the training set itself, and an emoji, which the base was trained on. Prints where the copy is
ranked, the rank correlation of each method with `retrain/loo` (30 trainings without an image, and one with another
seed, which shows the floor), and the base share of both queries. Everything is computed in this process, without Ray.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from models import machine
from PIL import Image
from rich.console import Console
from sidebyside import rank_correlation
from torch import Tensor

from mucs_ray.attribution.base import MethodContext
from mucs_ray.attribution.card import load_class
from mucs_ray.attribution.loss_change import select_measure
from mucs_ray.attribution.registry import find_method
from mucs_ray.config.recipe import Recipe, for_method
from mucs_ray.data.local import LocalImages
from mucs_ray.data.sources import emoji
from mucs_ray.data.table import Dataset, Row
from mucs_ray.diffusion.batch import Batch, Item
from mucs_ray.diffusion.model import DiffusionModel
from mucs_ray.diffusion.noise import generator
from mucs_ray.engine.ray_train import TrainJob, run_training
from mucs_ray.evaluation.base_share import sentence, shares
from mucs_ray.evaluation.item_loss import as_batch, batch_losses, evaluation_noises
from mucs_ray.evaluation.subsets import repeat_seed
from mucs_ray.models.adapters import adapter
from mucs_ray.run.resolve import DEMO_WEIGHTS, prepare_data, resolve
from mucs_ray.spaces.pixels import PIXELS
from mucs_ray.store.run import Stage
from mucs_ray.store.weights import load_weights
from mucs_ray.training.order import batch_rows
from mucs_ray.training.step import WorkerContext

CPU, SIZE, CLASSES, OF_EACH = torch.device("cpu"), 16, 10, 3
QUERIES = ("the query", "an emoji")
METHODS = ("mucs", "dtrak", "pixel", "random")
SETTINGS = (
    "finetune.targets=blocks", "finetune.rank=8", "finetune.alpha=8", "train.updates=100",
    "train.updates_per_epoch=100", "train.batch_size=5", "train.learning_rate=3e-3", "score.precision=fp32",
    "score.images_per_forward=1", "score.compile=off", "score.noises=50", "method.mucs.max_updates=200",
    "method.dtrak.dim=1024", "method.dtrak.noises=20",
)  # fmt: skip
LOO_NOISES = 200


def main() -> None:
    options = parse()
    print(f"{machine()}; {' '.join(options.set)}", flush=True)
    with TemporaryDirectory() as folder:
        root = Path(options.out or folder)
        query = pictures(Path(options.images), root / "pictures")
        console = Console(quiet=True)
        prepare_data("folder", str(root / "pictures"), str(root / "data"), SIZE, console=console)
        recipe, dataset = resolve(
            dataset=str(root / "data"),
            recipe="finetune",
            weights=None,
            settings=[f"finetune.base={DEMO_WEIGHTS}", *SETTINGS, *options.set],
            console=console,
        )
        items = [item(0, *query), item(1, *an_emoji())]
        measure(recipe, dataset, items, root)


def measure(recipe: Recipe, dataset: Dataset, items: list[Item], root: Path) -> None:
    """Train, attribute, leave out, and print the tables."""
    images = LocalImages(dataset, "train", codec=PIXELS).batch(np.arange(dataset.card.num_images("train")))
    (copy,) = (number for number, idx in enumerate(images.idx.tolist()) if idx == planted_idx(dataset))
    started = time.monotonic()
    own = trained(recipe, dataset, root, frozenset(), recipe.seed)
    seconds = time.monotonic() - started
    print(f"{len(images)} images; a training takes {seconds:.0f} s", flush=True)
    by_method = {name: scores(find_method(name).name, recipe, own, images, items) for name in METHODS}
    loo, floor = rises(recipe, dataset, root, images, items)
    print(f"\n| method | place of the planted copy | Spearman with retrain/loo: {' | '.join(QUERIES)} |")
    print("|---|---|---|---|")
    for name, found in {"retrain/loo": loo, **by_method}.items():
        place = int((found[:, 0] > found[copy, 0]).sum()) + 1
        correlations = " | ".join(f"{value:.2f}" for value in rank_correlation(found, loo))
        print(f"| {name} | {place} of {len(images)} | {correlations} |", flush=True)
    second, above = loo[:, 0].topk(2).values[1], (loo > floor).sum(dim=0).tolist()
    print(f"\nthe loss of the query rises by {loo[copy, 0]:.4f} without its copy; the next image: {second:.4f}")
    for name, height, count in zip(QUERIES, floor.tolist(), above, strict=True):
        print(f"{name}: another seed alone changes its loss by {height:.4f}; {count} images are above that")
    print()
    base, noises = base_model(recipe), evaluation_noises(own, recipe.finetune.noises, recipe.seed)
    tables = {
        kind: [batch_losses(model, batch, noises).double().mean(dim=1).numpy() for model in (base, own)]
        for kind, batch in (("queries", as_batch(items)), ("images", images))
    }
    median = float(np.median(shares(*tables["images"])))
    for name, before, after in zip(QUERIES, *tables["queries"], strict=True):
        share = float(shares(np.array([before]), np.array([after]))[0])
        print(sentence(name, base=before, own=after, share=share, median=median))


def trained(recipe: Recipe, dataset: Dataset, root: Path, removed: frozenset[int], seed: int) -> DiffusionModel:
    """Return the base as it is after fine-tuning it without these images."""
    name = f"train/{seed}-without-{'-'.join(map(str, sorted(removed)))}"
    stage = Stage(run_url=str(root / "run"), name=name, reads={}, inputs={})
    job = TrainJob(dataset=dataset, stage=stage, model=recipe.model, train=recipe.train, seed=seed, removed=removed)
    return run_training(job, WorkerContext(), CPU, lambda key, value: None).average


def rises(recipe: Recipe, dataset: Dataset, root: Path, images: Batch, items: list[Item]) -> tuple[Tensor, Tensor]:
    """Return how much higher the loss of each item is without each image, scores[images, items], and the floor."""

    def loss(removed: frozenset[int], seed: int = recipe.seed) -> Tensor:
        model = trained(recipe, dataset, root, removed, seed)
        noises = evaluation_noises(model, LOO_NOISES, recipe.seed)
        with torch.inference_mode():
            return batch_losses(model, as_batch(items), noises).double().mean(dim=1)

    whole = loss(frozenset())
    without_one = torch.stack([loss(frozenset([idx])) - whole for idx in images.idx.tolist()]).float()
    return without_one, (loss(frozenset(), repeat_seed(recipe.seed)) - whole).abs().float()


def scores(name: str, recipe: Recipe, model: DiffusionModel, images: Batch, items: list[Item]) -> Tensor:
    """Return the scores of a method, whose hooks are called one after the other: scores[images, items]."""
    card = find_method(name)
    settings = for_method(recipe, card)
    context = MethodContext(
        settings=settings,
        device=CPU,
        num_images=len(images),
        items=tuple(items),
        denoiser=model,
        batches=shuffled(images, recipe.seed),
        codec=PIXELS,
    )
    rows: Any = images
    fitted: dict[str, Tensor] = {}
    of_owner: dict[str, Tensor] = {}
    states: list[dict[str, Tensor]] = [{} for _ in items]
    for stage in card.stages:
        method = load_class(stage.owner or card.implementation)(context)
        if stage.hook == "features":
            rows = {"idx": images.idx, **method.features(images)}
        elif stage.hook == "accumulate":
            fitted = {key: tensor.double() for key, tensor in method.accumulate(rows).items()}
        elif stage.hook == "fit" and stage.owner:
            of_owner = method.fit({}, iter([images]))
        elif stage.hook == "fit":
            fitted = method.fit(fitted, iter([rows]))
        elif stage.hook == "fit_item":
            states = [method.fit_item(each, of_owner or fitted, lambda step, loss: None).tensors for each in items]
        else:
            with torch.inference_mode():
                method.load(fitted, states)
                columns = method.columns(rows)
            return columns["score"] if "score" in columns else select_measure(columns, settings.rank.measure)
    with torch.inference_mode():
        return load_class(card.implementation)(context).score(images)


def shuffled(images: Batch, seed: int) -> Callable[[str, int], Callable[[int], Batch]]:
    """Return the batches that methods draw by name."""

    def named(name: str, size: int) -> Callable[[int], Batch]:
        def batches(step: int) -> Batch:
            rows = batch_rows(seed, name, step, num_images=len(images), batch_size=size)
            return images[torch.from_numpy(rows)]

        return batches

    return named


def base_model(recipe: Recipe) -> DiffusionModel:
    """Return the base alone."""
    spec, tensors = load_weights(DEMO_WEIGHTS, recipe.model.own.to_dict())
    return adapter(spec).model(CPU, tensors)


def item(number: int, pixels: np.ndarray, label: int) -> Item:
    """Return a picture [3, h, w] as an item with its class as condition."""
    z = PIXELS.encode(torch.from_numpy(pixels.copy())[None])[0]
    return Item(number=number, idx=10**6 + number, condition={"condition": torch.eye(CLASSES)[label]}, z=z)


def planted_idx(dataset: Dataset) -> int:
    """Return the idx of the planted copy."""
    for table in dataset.stream("train", ["idx", "name"]):
        for row in table.to_pylist():
            if row["name"].endswith("copy.png"):
                return int(row["idx"])
    raise SystemExit("the planted copy is not in the prepared data set")


def pictures(source: Path, folder: Path) -> tuple[np.ndarray, int]:
    """Write the training set and its test split, and return the query, which is in neither, and its class."""
    classes = sorted(path for path in source.iterdir() if path.is_dir())[:CLASSES]
    files = {own.name: sorted(own.iterdir())[: OF_EACH + 2] for own in classes}
    if len(files) < CLASSES or any(len(own) < OF_EACH + 2 for own in files.values()):
        raise SystemExit(f"{source}: expected {CLASSES} folders of {OF_EACH + 2} pictures or more")
    for name, own in files.items():
        for place, file in enumerate(own[: OF_EACH + 1]):
            write(folder / ("test" if place == OF_EACH else "train") / name / f"{place}.png", small(file))
    name, own = next(iter(files.items()))
    query = small(own[-1])
    noise = generator(1, "planted").integers(-4, 5, query.shape)
    (folder / "train" / name / "0.png").unlink()
    write(folder / "train" / name / "copy.png", np.clip(query.astype(int) + noise, 0, 255).astype(np.uint8))
    return np.moveaxis(query, -1, 0), 0


def write(file: Path, pixels: np.ndarray) -> None:
    """Write a picture [h, w, 3] as PNG."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)


def small(file: Path) -> np.ndarray:
    """Return a picture at the size of the emoji, as [h, w, 3]."""
    return np.asarray(Image.open(file).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BOX))


def an_emoji() -> tuple[np.ndarray, int]:
    """Return an emoji of the base's training set and its class."""
    task = next(task for task in emoji.plan(None, SIZE).tasks if task.split == "train")
    row = next(row for row in emoji.read(task) if isinstance(row, Row))
    assert row.label is not None
    return row.image, row.label


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True, help="a folder of pictures for each of ten classes")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="another setting of the recipe")
    parser.add_argument("--out", help="keep the data and the trainings in this folder")
    return parser.parse_args()


if __name__ == "__main__":
    main()
