"""Does attribution of a fine-tune find what leaving images out finds?

    python benchmarks/finetune.py --images FOLDER [--set KEY=VALUE ...]

FOLDER holds a folder of pictures for each of ten classes, none of them emoji. The packaged emoji network is fine-tuned
on 30 of them (three of each class), among them a copy of the first query with a little noise. Then it explains that
query, which is not in the training set itself, and an emoji, which the base was trained on. Prints where the copy is
ranked, the rank correlation of each method with `retrain/loo` (30 trainings without an image), and the base share of
both queries.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from models import machine
from PIL import Image
from rich.console import Console
from sidebyside import rank_correlation

from mucs_ray import storage
from mucs_ray.data.queries import Query, query_of
from mucs_ray.data.sources import emoji
from mucs_ray.data.table import Dataset
from mucs_ray.diffusion.noise import generator
from mucs_ray.engine import trainings
from mucs_ray.engine.ray_train import TrainRun, run_training
from mucs_ray.pipeline.graph import Pipeline
from mucs_ray.results import base_share
from mucs_ray.results.answer import Answer
from mucs_ray.run import driver
from mucs_ray.run.resolve import DEMO_WEIGHTS, prepare_data, resolve
from mucs_ray.training.step import WorkerContext

SIZE, CLASSES, OF_EACH = 16, 10, 3
LOO = "retrain/loo"
METHODS = (LOO, "mucs", "mucs/linear", "dtrak", "das", "pixel", "random")
SETTINGS = (
    "finetune.targets=blocks", "finetune.rank=8", "finetune.alpha=8", "train.updates=200", "train.batch_size=5",
    "train.learning_rate=2e-3", "engine.train_workers=1", "engine.actors=[1,1]", "method.dtrak.dim=1024",
    "method.das.dim=1024", "method.mucs/linear.dim=1024",
)  # fmt: skip


def main() -> None:
    options = parse()
    trainings.train_all = train_here
    console = Console(quiet=not options.verbose)
    print(f"{machine()}; {' '.join(options.set)}")
    with TemporaryDirectory() as temporary:
        folder = Path(options.out or temporary)
        picture, label = pictures(Path(options.images), folder / "pictures")
        prepare_data("folder", str(folder / "pictures"), str(folder / "data"), SIZE, console=console)
        recipe, dataset = resolve(
            dataset=str(folder / "data"),
            recipe="finetune",
            weights=None,
            settings=[f"finetune.base={DEMO_WEIGHTS}", *SETTINGS, *options.set],
            methods=METHODS,
            console=console,
        )
        queries = [query_of(str(picture), label=label), an_emoji(folder / "emoji.png", dataset)]
        run = Pipeline.open(
            recipe, dataset, str(folder / "run"), methods=METHODS, queries=tuple(queries), console=console
        )
        driver.run([run], "attribute")
        tell(run, picture.name)


def train_here(runs: Sequence[TrainRun], *_: object, **__: object) -> Iterator[tuple[int, dict[str, Any]]]:
    """Train in this process, one after the other: the weights are those of Ray Train, whose start takes longer."""
    for number, run in enumerate(runs):
        posted, started = dict[str, Any](), time.monotonic()
        run_training(run.job, WorkerContext(), torch.device("cpu"), posted.__setitem__)
        yield number, {**posted["result"], "images_per_second": 0.0, "seconds": time.monotonic() - started}


def tell(run: Pipeline, planted: str) -> None:
    """Print the tables."""
    answer = Answer(run)
    names = [query.name.rsplit("/", 1)[-1] for query in run.queries]
    of_copy = names.index(planted)
    idx = answer.scores(LOO).idx
    (copy,) = np.flatnonzero(idx == planted_idx(run.dataset))
    by_loo = torch.from_numpy(answer.scores(LOO).scores).T
    print(f"\n| method | place of the planted copy, of {len(idx)} | Spearman with {LOO}: {' | '.join(names)} |")
    print(f"|---|---|{'---|' * len(names)}")
    for method in METHODS:
        scores = torch.from_numpy(answer.scores(method).scores).T
        place = int((scores[:, of_copy] > scores[copy, of_copy]).sum()) + 1
        correlations = rank_correlation(scores, by_loo)
        print(f"| {method} | {place} | {' | '.join(f'{value:.2f}' for value in correlations)} |")
    print(f"\nleft out: the loss of {planted} rises by")
    rises = by_loo[:, of_copy]
    print(
        f"{rises[copy]:.4f} without its copy, and by {rises.topk(2).values[1]:.4f} without the second image of the list"
    )
    print("\n" + "\n".join(base_share.sentences(run)))
    trained = {name: json.loads(storage.read_bytes(run.stages[name].url("manifest.json"))) for name in ("pretrain",)}
    print("\n" + ", ".join(f"{name} {content['facts']['seconds']:.0f} s" for name, content in trained.items()))


def planted_idx(dataset: Dataset) -> int:
    """Return the idx of the planted copy."""
    for table in dataset.stream("train"):
        for row in table.to_pylist():
            if "copy" in str(row.get("name")):
                return int(row["idx"])
    raise SystemExit("the planted copy is not in the prepared data set")


def pictures(source: Path, folder: Path) -> tuple[Path, str]:
    """Write the training set and its test split, and return the first query and its class."""
    classes = sorted(path for path in source.iterdir() if path.is_dir())[:CLASSES]
    if len(classes) < CLASSES:
        raise SystemExit(f"{source}: expected {CLASSES} folders of pictures, found {len(classes)}")
    for number, own in enumerate(classes):
        files = sorted(own.iterdir())[: OF_EACH + 2]
        for place, file in enumerate(files[: OF_EACH + 1]):
            split = "test" if place == OF_EACH else "train"
            target = folder / split / own.name / f"{place}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            small(file).save(target)
        if number == 0:
            query = folder.parent / "query.png"
            small(files[-1]).save(query)
            noise = generator(1, "planted").integers(-4, 5, (SIZE, SIZE, 3))
            copied = np.clip(np.asarray(small(files[-1])).astype(int) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(copied).save(folder / "train" / own.name / "copy.png")
            (folder / "train" / own.name / "0.png").unlink()
    return query, classes[0].name


def small(file: Path) -> Image.Image:
    """Return a picture at the size of the emoji."""
    return Image.open(file).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BOX)


def an_emoji(file: Path, dataset: Dataset) -> Query:
    """Write an emoji of the base's training set, and return it as a query with the number of its class."""
    task = next(task for task in emoji.plan(None, SIZE).tasks if task.split == "train")
    row = next(row for row in emoji.read(task) if not hasattr(row, "reason"))
    Image.fromarray(np.moveaxis(row.image, 0, -1)).save(file)
    return query_of(str(file), label=dataset.card.classes[row.label])


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True, help="a folder of pictures for each of ten classes")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="another setting of the recipe")
    parser.add_argument("--out", help="keep the run in this folder")
    parser.add_argument("--verbose", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
