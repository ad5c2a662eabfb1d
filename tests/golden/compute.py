"""Golden numbers: what training, generation and every method compute, in process and in a plain loop.

This is the only file of the golden tests that uses the package. A refactoring that renames modules, classes or settings
adapts the functions here; the recipes' values, the seeds and the names of the numbers stay as they are.

A number's name is subject/quantity, where the subject is a stage or a method: "train/losses", "mucs/screen/score".
Axes: b training images, i items, c h w image.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from mucs_ray.attribution.base import Attributor, MethodContext
from mucs_ray.attribution.card import MethodCard, MethodStage, load_class
from mucs_ray.attribution.ensemble import ensemble_scores, learned_weights
from mucs_ray.attribution.loss_change import select_measure
from mucs_ray.attribution.ranking import Ranking, mutual_ranks, top_k
from mucs_ray.attribution.registry import METHODS
from mucs_ray.attribution.whitening import Moments, Whitening
from mucs_ray.config.recipe import Recipe, build, for_method, from_card, read_recipe, with_settings, with_values
from mucs_ray.data.local import LocalImages
from mucs_ray.data.prepare import prepare
from mucs_ray.data.table import Card, Dataset, Row, Shard, read_unit, schema, to_parquet, to_table
from mucs_ray.diffusion.batch import Batch, Item
from mucs_ray.diffusion.condition import joined, one_by_one
from mucs_ray.diffusion.model import DiffusionModel, guided
from mucs_ray.diffusion.noise import generator, normal
from mucs_ray.diffusion.sampler import sample
from mucs_ray.diffusion.schedule import sampling_sigmas, scoring_sigmas, training_sigmas
from mucs_ray.models.adapters import adapter
from mucs_ray.training.order import batch_rows
from mucs_ray.training.step import TrainState, WorkerContext, training

Values = dict[str, Any]
"""Tensors, and JSON values (numbers, strings, lists of them), by name."""
CPU = torch.device("cpu")
FACTS = ("outcome", "updates", "null_loss", "target", "item_loss", "train_loss")
"""What a method tells of its work on an item; which of them are there depends on the method."""
MOST_FIXED_UPDATES = 3
"""mucs/no-null makes 109 updates whatever the loss; here they are cut to these."""

TINY = {
    "name": "tiny",
    "model": {
        "patch_size": 4, "width": 16, "depth": 1, "num_heads": 2, "registers": 1, "condition_channels": 16,
        "kernel_size": 3, "dropout": 0.05,
    },
    "train": {
        "updates": 60, "updates_per_epoch": 20, "batch_size": 16, "learning_rate": 1e-2, "warmup_epochs": 0,
        "ema_decay": 0.9, "augment": 0.05, "patience": 0, "checkpoint": "last",
    },
    "generate": {"items": 3, "controls": 0, "steps": 6, "guidance": 1.5},
    "score": {"noises": 6, "keep_losses": True},
    "rank": {"top_percent": 10.0},
    "method": {
        "mucs": {"batch_size": 8, "null_batches": 2, "max_updates": 4, "learning_rate_divisor": 1.0},
        "mucs/screen": {"sample": 30, "recall": 0.9, "rounds": [0.3, 0.6]},
        "forward-inf": {"updates": 2, "draws": 6, "learning_rate_divisor": 1.0},
        "abu": {"draws": 8, "draws_per_forward": 3, "fisher_draws": 2},
        "dtrak": {"dim": 32, "noises": 3, "noises_per_forward": 2},
        "das": {"dim": 32, "noises": 3},
        "mucs/linear": {"dim": 32, "noises": 3},
        "kfac": {"noises": 3, "factor_draws": 2, "damping": 1e-3},
    },
}  # fmt: skip
DEEPER = [
    "train.updates=30", "train.updates_per_epoch=10", "train.warmup_epochs=1", "model.depth=2", "generate.items=2",
]  # fmt: skip
EMOJI_CUT = [
    "train.updates=20", "train.updates_per_epoch=10", "train.ema_decay=0.8", "generate.items=2",
    "method.mucs.null_batches=5", "method.mucs.max_updates=4",
    "method.das.noises=8", "method.das.dim=1024", "method.dtrak.noises=8", "method.dtrak.dim=1024",
]  # fmt: skip

OTHER_SETTINGS = {
    "das, leverage": ("das", {"method.das.leverage": True, "method.das.square": False}),
    "dtrak, 3 signs": ("dtrak", {"method.dtrak.signs": 3, "method.dtrak.parameters": "mlp"}),
    "abu, mlp": ("abu", {"method.abu.parameters": "mlp", "method.abu.updates": 2, "method.abu.step": 1e-4}),
    "mucs, analytic": ("mucs", {"method.mucs.bound": "zero-output", "score.images_per_forward": 4}),
    "mucs, given null loss": ("mucs", {"method.mucs.bound": 1.5, "method.mucs.tolerance": 0.07}),
    "mucs, absolute": ("mucs", {"method.mucs.fixed_updates": 2, "rank.measure": "absolute"}),
}
"""Methods under settings that no variant of the registry has."""


# --- the cases ----------------------------------------------------------------------------------------------------


def tiny(folder: Path) -> Values:
    """Every method and variant on 54 coloured squares of 8 x 8 pixels; the condition is the colour."""
    run = Run(dataset=squares(folder), values=TINY)
    f1, items, values = pipeline(run)
    scores: dict[str, np.ndarray] = {}
    for name, method in METHODS.items():
        if not method.is_ensemble:
            scores[name], of_method = attributed(run, f1, items, name, method)
            values |= of_method
    for label, (name, settings) in OTHER_SETTINGS.items():
        _, of_method = attributed(run, f1, items, label, METHODS[name], settings)
        values |= of_method
    return values | ensembles(run, scores) | levels_and_noise()


def unconditional(folder: Path) -> Values:
    """A network without a condition, on images without labels."""
    run = Run(dataset=without_condition(squares(folder)), values=with_settings(TINY, DEEPER))
    return with_methods(run, "mucs", "das", "forward-inf")


def captions(folder: Path) -> Values:
    """Images of several sizes, each with one to three embedded captions, of which training draws one and a crop."""
    run = Run(dataset=captioned(folder), values=with_settings(TINY, DEEPER))
    return with_methods(run, "mucs", "condition", "abu")


def emoji(folder: Path) -> Values:
    """The packaged recipe with 20 updates, on all emoji; 2 items are attributed to the first 64."""
    dataset = prepare("emoji", where=None, out=str(folder / "emoji"), size=None)
    cut = with_settings(read_recipe("emoji"), EMOJI_CUT)
    return with_methods(Run(dataset=dataset, values=cut, num_attributed=64), "mucs", "das", "dtrak", "pixel")


CASES: dict[str, Callable[[Path], Values]] = {
    "tiny": tiny,
    "unconditional": unconditional,
    "captions": captions,
    "emoji": emoji,
}


def compute(case: str) -> Values:
    """All numbers of a case; what it changes in this process (threads, random state, environment) is restored."""
    with TemporaryDirectory() as folder, undisturbed(Path(folder)):
        return CASES[case](Path(folder))


@contextmanager
def undisturbed(folder: Path) -> Iterator[None]:
    """One thread, and copies of images in this folder."""
    threads, cache = torch.get_num_threads(), os.environ.get("MUCS_RAY_CACHE")
    torch.set_num_threads(1)
    os.environ["MUCS_RAY_CACHE"] = str(folder / "cache")
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(threads)
        del os.environ["MUCS_RAY_CACHE"]
        if cache is not None:
            os.environ["MUCS_RAY_CACHE"] = cache


# --- data ---------------------------------------------------------------------------------------------------------


def squares(folder: Path) -> Dataset:
    """54 training and 12 test images: a square of a random size in one of three colours, on a noisy ground."""
    return written(folder, [square(number, 8, 8) for number in range(66)], condition="label")


def captioned(folder: Path) -> Dataset:
    """The same with a longer side of up to 11 pixels, and captions as vectors of width 5."""
    rng = np.random.default_rng(7)
    rows = []
    for number in range(66):
        longer, count = int(rng.integers(8, 12)), int(rng.integers(1, 4))
        height, width = (longer, 8) if number % 2 else (8, longer)
        vectors = rng.standard_normal((count, 5)).astype(np.float32)
        texts = tuple(f"caption {each}" for each in range(count))
        rows.append(replace(square(number, height, width), label=None, text=texts, condition=vectors))
    return written(folder, rows, condition="embedding")


def square(idx: int, height: int, width: int) -> Row:
    """One image; its numbers depend on idx and size only."""
    rng = np.random.default_rng([3, idx])
    label, side = idx % 3, int(rng.integers(3, 7))
    image = rng.integers(0, 60, (3, height, width), dtype=np.uint8)
    image[label, 1 : 1 + side, 1 : 1 + side] = 255
    return Row(idx=idx, image=image, label=label, text=(("red", "green", "blue")[label],))


def written(folder: Path, rows: list[Row], *, condition: str) -> Dataset:
    """A prepared data set: the first 54 rows in two shards for training, the others for testing."""
    embedding, width = condition == "embedding", 5 if condition == "embedding" else 3
    shards = []
    for path, part in (
        ("train/part-00000", rows[:32]),
        ("train/part-00001", rows[32:54]),
        ("test/part-00000", rows[54:]),
    ):
        content = to_parquet(to_table(part, schema(width, embedding=embedding)), 16)
        file = folder / "data" / f"{path}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        groups = tuple(len(part[at : at + 16]) for at in range(0, len(part), 16))
        split, digest = path.split("/")[0], sha256(content).hexdigest()
        shards.append(Shard(path=f"{path}.parquet", split=split, row_groups=groups, sha256=digest))
    card = Card(
        name="squares", source="drawn", licence="none", size=8, condition=condition, condition_dim=width,
        classes=() if embedding else ("red", "green", "blue"), shards=tuple(shards),
    )  # fmt: skip
    return Dataset(url=str(folder / "data"), card=card)


def without_condition(dataset: Dataset) -> Dataset:
    """The same images as a set that has no condition."""
    return replace(dataset, card=replace(dataset.card, condition="none", condition_dim=0, classes=()))


# --- the pipeline -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Run:
    """A data set and a recipe."""

    dataset: Dataset
    values: Mapping[str, Any]
    """Of the recipe, as in a file."""
    num_attributed: int | None = None
    """How many training images the items are attributed to; None = all."""

    @cached_property
    def recipe(self) -> Recipe:
        """Checked, with what the data set says."""
        return build(from_card({"data": self.dataset.url, **self.values}, self.dataset.card))

    @cached_property
    def train(self) -> LocalImages:
        """The training set, for training and unlearning."""
        return LocalImages(self.dataset, "train")

    @cached_property
    def test(self) -> LocalImages:
        """The images that lend their conditions."""
        return LocalImages(self.dataset, "test")

    @cached_property
    def images(self) -> Batch:
        """The training images that are scored, as one batch, read as a scorer reads them."""
        batches = [self.dataset.batch(read_unit(unit)) for unit in self.dataset.units("train")]
        conditions = [batch.condition for batch in batches]
        whole = Batch(
            idx=torch.cat([batch.idx for batch in batches]),
            z=torch.cat([batch.z for batch in batches]),
            condition=joined(conditions),
        )
        return whole[: self.num_attributed]

    @cached_property
    def k(self) -> int:
        """Length of a top-k list."""
        return top_k(len(self.images), self.recipe.rank.top_percent)

    def batches(self, name: str, size: int) -> Callable[[int], Batch]:
        """Training images in the order of this name, as methods are lent them."""
        num_images, seed = len(self.train), self.recipe.seed
        return lambda step: self.train.batch(batch_rows(seed, name, step, num_images=num_images, batch_size=size))


def with_methods(run: Run, *names: str) -> Values:
    """Training, generation and some methods."""
    f1, items, values = pipeline(run)
    for name in names:
        values |= attributed(run, f1, items, name, METHODS[name])[1]
    return values


def pipeline(run: Run) -> tuple[DiffusionModel, list[Item], Values]:
    """F1 and the items, and the numbers of data, training and generation."""
    images = run.images
    data = {"data/images": images.z, "data/idx": images.idx, "data/num_train": len(run.train)}
    data |= {f"data/{name}": tensor for name, tensor in images.condition.items()}
    f1, of_training = trained(run)
    items, of_generation = generated(run, f1)
    return f1, items, data | of_training | of_generation


def trained(run: Run) -> tuple[DiffusionModel, Values]:
    """F1, the EMA of the weights after the last update."""
    recipe = run.recipe
    first = adapter(recipe.model).untrained(recipe.seed, CPU)
    assert first is not None
    state = TrainState.fresh(first, recipe.train)
    values = flat("train/initial", dict(state.live.network.named_parameters()))
    updates = list(training(state, run.train, run.test, recipe.train, seed=recipe.seed, worker=WorkerContext()))
    values["train/losses"] = [update.loss.item() for update in updates]
    values["train/validation"] = [update.validation for update in updates if update.validation is not None]
    values |= flat("train/live", dict(state.live.network.named_parameters()))
    values |= flat("train/ema", dict(state.average.network.named_parameters()))
    return state.average, values


def generated(run: Run, f1: DiffusionModel) -> tuple[list[Item], Values]:
    """The items: test images in a seeded order lend conditions and names of noise; each is generated alone."""
    recipe, config = run.recipe, run.recipe.generate
    order = generator(recipe.seed, "generate/conditions").permutation(len(run.test))[: config.items]
    items = []
    for number, row in enumerate(order.tolist()):
        lent = run.test.batch(np.asarray([row]))
        idx = int(lent.idx)
        noise = normal(generator(recipe.seed, f"generate/idx={idx}"), 1, *lent.z.shape[1:])
        image = sample(f1.process, guided(f1, config.guidance), noise, lent.condition, num_steps=config.steps)[0]
        (condition,) = one_by_one(lent.condition, 1)
        items.append(Item(number=number, idx=idx, condition=condition, z=image))
    values = {"generate/idx": [item.idx for item in items], "generate/z": torch.stack([item.z for item in items])}
    return items, values


def flat(name: str, tensors: Mapping[str, Tensor]) -> Values:
    """Named tensors as one vector, in order of their names; and the norm of each."""
    ordered = [tensors[each].detach() for each in sorted(tensors)]
    return {
        name: torch.cat([tensor.flatten() for tensor in ordered]),
        f"{name}/norms": torch.stack([tensor.double().norm() for tensor in ordered]),
    }


# --- methods ------------------------------------------------------------------------------------------------------


def recipe_of(run: Run, method: MethodCard, settings: Mapping[str, Any]) -> Recipe:
    """With the method's settings, then these, and few updates.

    Where each level has its own bound these items are near it from the start; without a tolerance they are unlearned.
    """
    recipe = with_values(for_method(run.recipe, method), settings)
    fixed = min(MOST_FIXED_UPDATES, recipe.method["mucs"].fixed_updates)
    tolerance = 0.0 if recipe.method["mucs"].bound == "by-level" else recipe.method["mucs"].tolerance
    return with_values(recipe, {"method.mucs.fixed_updates": fixed, "method.mucs.tolerance": tolerance})


def attributed(
    run: Run,
    f1: DiffusionModel,
    items: list[Item],
    label: str,
    method: MethodCard,
    settings: Mapping[str, Any] | None = None,
) -> tuple[np.ndarray, Values]:
    """Scores [b, i] as they are ranked, and all that the hooks of a method make, in their order."""
    recipe = recipe_of(run, method, settings or {})
    if not method.stages:
        kind = load_class(method.implementation)
        images = Batch(idx=run.images.idx, z=torch.zeros(len(run.images), 0), condition={})
        scores = kind(MethodContext(settings=recipe, device=CPU, num_images=len(images), items=items)).score(images)
        return ranked(run, recipe, label, scores)
    rows_of: dict[str, Any] = {}
    """What the stages of an owner stream, where it is not images."""
    prepared_by: dict[str, dict[str, Tensor]] = {}
    adapted: list[dict[str, Tensor]] = [{} for _ in items]
    made: Values = {}
    for stage in method.stages:
        worker = worker_of(run, f1, items, method, stage, recipe)
        rows = rows_of.get(stage.owner, run.images)
        prepared = prepared_by.get(stage.owner, next(reversed(prepared_by.values()), {}))
        match stage.hook:
            case "features":
                columns = worker.features(rows)
                rows_of[stage.owner] = {"idx": rows.idx, **columns}
                made |= {f"{label}/features/{name}": column for name, column in columns.items()}
            case "accumulate":
                prepared = prepared_by[stage.owner] = {
                    name: tensor.double() for name, tensor in worker.accumulate(rows).items()
                }
                made |= flat(f"{label}/total", {name: each for name, each in prepared.items() if each.ndim})
            case "fit":
                prepared = worker.fit(prepared_by.get(stage.owner, {}), iter([rows]))
                prepared_by[stage.owner] = prepared
                if prepared and not (stage.owner and rows_of):  # what is taken over has its own numbers
                    made |= flat(f"{label}/prepared", prepared)
            case "fit_item":
                found = [worker.fit_item(item, prepared, lambda step, loss: None) for item in items]
                adapted = [each.tensors for each in found]
                for number, each in enumerate(found if not (stage.owner and rows_of) else ()):
                    made |= flat(f"{label}/item={number}/adapted", each.tensors)
                    told = {name: each.facts[name] for name in FACTS if name in each.facts}
                    made |= {f"{label}/item={number}/{name}": listed(fact) for name, fact in told.items()}
            case "fit_together":
                prepared = prepared_by[stage.owner] = worker.fit_together(prepared, adapted)
                made |= flat(f"{label}/together/adapted", prepared)
            case "sample":
                worker.load(prepared, adapted)
                inside = torch.from_numpy(np.flatnonzero(worker.in_sample(run.images.idx.numpy())))
                rows_of["sample"] = worker.sample(run.images[inside])
                made |= {f"{label}/sample/{name}": column for name, column in rows_of["sample"].items()}
            case "fit_screen":
                prepared = prepared_by[stage.owner] = worker.fit_screen(iter([rows_of["sample"]]))
                made |= {f"{label}/bounds/{name}": tensor for name, tensor in prepared.items()}
            case "score":
                worker.load(prepared, adapted)
                columns = worker.columns(rows)
                made |= {f"{label}/{name}": column for name, column in columns.items() if name != "score"}
                scores = columns["score"] if "score" in columns else select_measure(columns, recipe.rank.measure)
                table, of_ranking = ranked(run, recipe, label, scores)
                return table, made | of_ranking
    raise AssertionError(f"no part of {label} scores")


def worker_of(
    run: Run, f1: DiffusionModel, items: list[Item], method: MethodCard, stage: MethodStage, recipe: Recipe
) -> Attributor:
    """The class that a stage belongs to, with all that a hook may need."""
    encoder = method.encoder
    context = MethodContext(
        settings=recipe,
        device=CPU,
        num_images=len(run.images),
        items=items,
        denoiser=f1,
        batches=run.batches,
        encode=None if encoder is None else lambda pictures: encoded(encoder, pictures),
    )
    return load_class(stage.owner or method.implementation)(context)


def encoded(name: str, pictures: Tensor) -> Tensor:
    """Instead of CLIP or DINO, whose weights are large: unit vectors from a fixed random layer."""
    weights = normal(generator(4, f"encoder/{name}"), pictures[0].numel(), 6)
    return normalize(torch.tanh(pictures.flatten(1) @ weights), dim=1)


def listed(fact: Any) -> Any:
    """As JSON has it."""
    return list(fact) if isinstance(fact, tuple) else fact


def ranking_names(scores: np.ndarray) -> list[str]:
    """What the order among ties is named by, an item each."""
    return [f"rank/item={number}" for number in range(scores.shape[1])]


def ranked(run: Run, recipe: Recipe, label: str, scores: Tensor) -> tuple[np.ndarray, Values]:
    """fp32 scores [b, i] after the correction that the recipe asks for, and the top-k list of each item."""
    table, idx = scores.detach().numpy().astype(np.float32), run.images.idx.numpy()
    if recipe.rank.correction == "mutual":
        table = mutual_ranks(table, idx, recipe.seed, ranking_names(table))
    if recipe.rank.correction == "whitened":
        table = Whitening.of(Moments.empty(table.shape[1]).add(idx, table), recipe.rank.whitening)(table)
    values: Values = {f"{label}/score": torch.from_numpy(table)}
    for number, name in enumerate(ranking_names(table)):
        best = Ranking.empty(run.k, seed=recipe.seed, name=name).add(idx, table[:, number])
        values[f"{label}/item={number}/top-k"] = best.idx.tolist()
    return table, values


def ensembles(run: Run, scores: Mapping[str, np.ndarray]) -> Values:
    """All ensembles of the registry, the learned one with weights from made-up results of tests."""
    weights = learned_weights({"mucs": 0.7, "das": 0.82, "pixel": 0.45, "dtrak": 0.61})
    values: Values = {"ensemble/learned/weights": weights}
    idx, seed = run.images.idx.numpy(), run.recipe.seed
    for name, method in METHODS.items():
        if not method.is_ensemble:
            continue
        members = method.weights or weights
        names = ranking_names(next(iter(scores.values())))
        columns = [
            ensemble_scores({each: scores[each][:, at] for each in members}, members, idx, seed=seed, name=tie)
            for at, tie in enumerate(names)
        ]
        recipe = with_values(run.recipe, method.settings)
        values |= ranked(run, recipe, name, torch.from_numpy(np.stack(columns, axis=1)))[1]
    return values


def levels_and_noise() -> Values:
    """Noise levels and named random numbers, from which all else follows."""
    return {
        "noise/scoring sigma": scoring_sigmas(100, 0.7),
        "noise/sampling sigma": sampling_sigmas(32),
        "noise/training sigma": training_sigmas(generator(1, "golden/sigma"), 64),
        "noise/unit": normal(generator(1, "golden/noise"), 4, 3, 4, 4),
        "noise/order": batch_rows(1, "golden", 9, num_images=60, batch_size=8).tolist(),
    }


def method_names() -> list[str]:
    """All methods of the registry."""
    return list(METHODS)
