"""Section c: a counterfactual test on real CIFAR-10 pictures, whole, in minutes.

    python benchmarks/gpu/cifar10.py --out FOLDER --data FOLDER [--tiny]

10,000 real training pictures (DATA/cifar10/data_batch_1.webp, as 100 x 100 tiles), a DiT of about 8 M weights without
conditions, trained in bf16; 10 generated pictures are attributed by MUCS, `mucs/sigma-schedule`, DAS and at random, 2 %
of the set each. The union of a method's lists is removed, the network trained again from the same initial weights, and
the pictures generated again from the same noise. How many updates and noises there are follows from the speed measured
first, so that the section ends in time. The pictures are kept in OUT/pictures.npz; LPIPS is left to page.py.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common import (
    DEVICE,
    SEED,
    TINY,
    Results,
    as_bytes,
    flop_of_a_forward,
    options,
    seconds,
    seconds_a_call,
    settings_of,
)

# isort: split
import numpy as np
import torch
from jaxtyping import Int64
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy.stats import spearmanr
from torch import Tensor

from mucs_ray.attribution.base import Attributor, MethodContext
from mucs_ray.attribution.cards.das import DASConfig
from mucs_ray.attribution.cards.mucs import MUCSConfig
from mucs_ray.attribution.config import RankConfig, ScoreConfig
from mucs_ray.attribution.das import DAS
from mucs_ray.attribution.loss_change import LossChange
from mucs_ray.attribution.mucs import MUCS
from mucs_ray.attribution.ranking import top_k
from mucs_ray.attribution.screening import held_out, noise_counts
from mucs_ray.attribution.skew import skews
from mucs_ray.diffusion.batch import Batch, Item
from mucs_ray.diffusion.edm import EDM
from mucs_ray.diffusion.noise import generator, name_torch_stream, normal
from mucs_ray.diffusion.sampler import sample
from mucs_ray.evaluation.similarity import ssim
from mucs_ray.evaluation.statistics import auc, paired_wilcoxon
from mucs_ray.evaluation.unions import union
from mucs_ray.models.dit import DiT, DiTConfig
from mucs_ray.models.dit_edm import DiTEDM
from mucs_ray.training.config import TrainConfig
from mucs_ray.training.ema import frozen_copy
from mucs_ray.training.numerics import as_in_training
from mucs_ray.training.order import batch_rows
from mucs_ray.training.step import TrainState, WorkerContext, draws_ahead, train_update, training

MODEL = DiTConfig(width=256, depth=8, num_heads=4, registers=4, kernel_size=3, channels=(8, 8), dropout=0.0)
"""A network of 7.9 M weights and 3.6 GFLOP per forward."""
TRAIN = TrainConfig(
    updates=1, batch_size=256, learning_rate=1e-3, warmup_epochs=0, ema_decay=0.99, augment=0.0, patience=0,
    checkpoint="last", precision="bf16",
)  # fmt: skip
PRETRAIN_S, UNLEARN_S, SCORE_S, FEATURES_S = 20.0, 30.0, 25.0, 20.0
"""What each part is planned to take. On an H200 unlearning and features took twice as long as planned, and four
retrainings side by side take up to four times as long as pretraining; with these, all of it fits.
"""
ROWS_A_FORWARD = 256
"""Noised images that a forward takes: with fewer, a small network leaves the GPU idle."""
Facts = dict[str, Any]
STEPS = 18


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision(
        "medium" if DEVICE.type == "cuda" else "highest"
    )  # as the engine trains (spec 5)
    (options.out / "jobs").mkdir(parents=True, exist_ok=True)
    if options.job is not None:
        do_job(options)
        return
    results = Results(options.out, "cifar10")
    scale = Scale.tiny() if options.tiny else Scale()
    images = Images(load_pictures(options.data, scale.images))
    results["weights"] = sum(value.numel() for value in DiT(scale.model).parameters())
    updates, captures = affordable_updates(results, images, scale)
    train = replace(scale.train, updates=updates)
    results["training"] = {"images": len(images), "updates": train.updates, "images an update": train.batch_size}
    denoiser, took = trained(images, train, scale.model, captures=captures)
    results["pretraining, s"] = took
    noise = torch.stack([normal(generator(SEED, f"generate/item={n}"), 3, 32, 32) for n in range(scale.items)])
    pictures = {"generated": generated(denoiser, noise)}
    items = [Item(number=n, idx=n, condition={}, z=value) for n, value in enumerate(pictures["generated"])]
    lists = attributed(results, options, denoiser, items, images, train, scale)
    results["removed"] = {name: len(union(value)) for name, value in lists.items()}
    started = time.monotonic()
    for name, again in retrained(options, lists, train, scale.model, captures=captures).items():
        pictures[name] = generated(again, noise)
    results["retraining side by side, s"] = time.monotonic() - started
    compare(results, pictures)
    np.savez_compressed(options.out / "pictures.npz", **{name: as_bytes(value) for name, value in pictures.items()})
    results.finish()


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The size of the test, or of its miniature on a CPU."""

    model: DiTConfig = MODEL
    train: TrainConfig = TRAIN
    images: int = 10_000
    items: int = 10
    max_noises: int = 100
    max_updates: int = 2000
    null_batches: int = 200
    methods: tuple[str, ...] = ("random", "mucs", "mucs/sigma-schedule", "das")
    unlearn_jobs: int = 5
    """The number of processes for each way to unlearn."""
    dim: int = 4096
    share_of_time: float = 1.0

    @classmethod
    def tiny(cls) -> "Scale":
        """Return the scale that takes a minute on one core."""
        model = replace(TINY, image_size=32, condition_dim=0)
        train = replace(TRAIN, batch_size=16, precision="fp32")
        return cls(
            model=model, train=train, images=64, items=2, max_noises=4, max_updates=3, dim=64, share_of_time=0.02,
            null_batches=2, methods=("random", "mucs"), unlearn_jobs=1,
        )  # fmt: skip


class Images:
    """Real pictures in memory without the removed ones; rows count from 0 without gaps."""

    def __init__(self, pixels: np.ndarray, removed: frozenset[int] = frozenset()) -> None:
        """Keep `pixels`, uint8 [n, 3, 32, 32]; a picture's number is its place there."""
        self.pixels = pixels
        self.kept = np.flatnonzero(~np.isin(np.arange(len(pixels)), list(removed)))

    def __len__(self) -> int:
        """Return the number of pictures that are left."""
        return len(self.kept)

    def batch(self, rows: Int64[np.ndarray, " b"], stream: np.random.Generator | None = None) -> Batch:
        """Return pictures in [-1, 1]."""
        at = self.kept[rows]
        image = torch.from_numpy(self.pixels[at]).float() / 127.5 - 1
        return Batch(idx=torch.from_numpy(at), z=image, condition={})

    def named(self, name: str, size: int) -> Callable[[int], Batch]:
        """Return batches(step), as the engine makes them for unlearning."""
        return lambda step: self.batch(batch_rows(SEED, name, step, num_images=len(self), batch_size=size)).to(DEVICE)


def load_pictures(data: Path | None, count: int) -> np.ndarray:
    """Read the first pictures of the sheet."""
    sheet = None if data is None else data / "cifar10" / "data_batch_1.webp"
    if sheet is None or not sheet.exists():
        raise SystemExit(f"no CIFAR-10 pictures at {sheet}; give the folder that holds cifar10/ with --data")
    Image.MAX_IMAGE_PIXELS = None
    pixels = np.asarray(Image.open(sheet))
    tiles = pixels.reshape(len(pixels) // 32, 32, -1, 32, 3).transpose(0, 2, 4, 1, 3)
    return np.ascontiguousarray(tiles.reshape(-1, 3, 32, 32)[:count])


def fresh(train: TrainConfig, model: DiTConfig, *, captures: bool) -> TrainState:
    """Build a network with the same initial weights for every training."""
    name_torch_stream(SEED, "train/init")
    return TrainState.fresh(DiTEDM(DiT(model)).to(DEVICE), train, captures=captures)


def affordable_updates(results: Results, images: Images, scale: Scale) -> tuple[int, bool]:
    """Return (the updates for which pretraining has time, whether they are captured as a CUDA graph)."""
    if DEVICE.type == "cuda":
        try:
            return updates_in_time(results, images, scale, captures=True), True
        except Exception as error:  # it is told, and the test goes on without
            results["training, captured"] = f"failed: {type(error).__name__}: {error}"
    return updates_in_time(results, images, scale, captures=False), False


def updates_in_time(results: Results, images: Images, scale: Scale, *, captures: bool) -> int:
    """Return the number of updates that fit, from the speed of some."""
    train, state = replace(scale.train, updates=10**6), fresh(scale.train, scale.model, captures=captures)
    worker, count = WorkerContext(), 3 if scale.share_of_time < 1 else 30

    upcoming = draws_ahead(state.live.process, images, train, seed=SEED, first=0)

    def few_updates() -> None:
        for _ in range(count):
            train_update(state, next(upcoming), train, seed=SEED, worker=worker)

    with as_in_training(DEVICE):
        few_updates()
        took = seconds(few_updates) / count
    upcoming.close()
    results["training, updates/s measured"] = 1 / took
    return max(4, int(scale.share_of_time * PRETRAIN_S / took))


def trained(images: Images, train: TrainConfig, model: DiTConfig, *, captures: bool) -> tuple[DiTEDM, float]:
    """Return EMA weights after all updates, and seconds."""
    state = fresh(train, model, captures=captures)

    def work() -> None:
        for _ in training(state, images, Images(images.pixels[:128]), train, seed=SEED, worker=WorkerContext()):
            pass

    with as_in_training(DEVICE):
        took = seconds(work)
    return frozen_copy(state.average), took


def side_by_side(options: argparse.Namespace, jobs: dict[str, Facts]) -> dict[str, tuple[dict[str, Tensor], Facts]]:
    """Run every job in its own process and return its (tensors, facts): small networks leave a GPU idle between
    launches.
    """
    folder = options.out / "jobs"
    processes = {}
    for name, job in jobs.items():
        stem = folder / name.replace("/", "-")
        stem.with_suffix(".json").write_text(json.dumps(job))
        command = [sys.executable, __file__, "--out", str(options.out), "--data", str(options.data), "--job", str(stem)]
        processes[name] = stem, subprocess.Popen([*command, *(["--tiny"] if options.tiny else [])])
    results = {}
    for name, (stem, process) in processes.items():
        if process.wait():
            raise SystemExit(f"{name} failed")
        results[name] = load_file(stem.with_suffix(".safetensors")), json.loads(stem.with_suffix(".done").read_text())
    return results


def do_job(options: argparse.Namespace) -> None:
    """Do one of the jobs that run side by side."""
    job, scale = json.loads(options.job.with_suffix(".json").read_text()), Scale.tiny() if options.tiny else Scale()
    images = Images(load_pictures(options.data, scale.images), frozenset(job.get("removed", ())))
    if "removed" in job:
        train = replace(scale.train, updates=job["updates"])
        average, _ = trained(images, train, scale.model, captures=job["captures"])
        tensors, facts = dict(average.network.state_dict()), {}
    else:
        tensors, facts = unlearn_items(options.out / "jobs", job, images, scale)
    save_file(
        {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, options.job.with_suffix(".safetensors")
    )
    options.job.with_suffix(".done").write_text(json.dumps(facts))


def retrained(
    options: argparse.Namespace,
    lists: dict[str, list[np.ndarray]],
    train: TrainConfig,
    model: DiTConfig,
    *,
    captures: bool,
) -> dict[str, DiTEDM]:
    """Train networks without what each method found."""
    same = {"updates": train.updates, "captures": captures}
    jobs = {name: {"removed": sorted(int(idx) for idx in union(ranked)), **same} for name, ranked in lists.items()}
    return {name: with_weights(model, tensors) for name, (tensors, _) in side_by_side(options, jobs).items()}


def with_weights(model: DiTConfig, tensors: dict[str, Tensor]) -> DiTEDM:
    """Build a trained network, frozen."""
    network = DiT(model)
    network.load_state_dict(tensors)
    return DiTEDM(network).to(DEVICE).eval().requires_grad_(False)


def generated(denoiser: DiTEDM, noise: Tensor) -> Tensor:
    """Generate pictures in about [-1, 1], on the CPU."""
    return sample(EDM(), denoiser, noise.to(DEVICE), num_steps=STEPS).cpu()


def attributed(
    results: Results,
    options: argparse.Namespace,
    denoiser: DiTEDM,
    items: list[Item],
    images: Images,
    train: TrainConfig,
    scale: Scale,
) -> dict[str, list[np.ndarray]]:
    """Return, for each method, the top-k lists of all items."""
    k = top_k(len(images), RankConfig().top_percent)
    stream = generator(SEED, "random")
    lists = {"random": [stream.permutation(len(images))[:k] for _ in items]}
    banks = unlearned(results, options, denoiser, items, scale)
    skews = scored(results, denoiser, [tensors for bank in banks.values() for tensors in bank], images, scale)
    for number, name in enumerate(banks):
        columns = skews[:, number * len(items) : (number + 1) * len(items)]
        lists[name] = [column.topk(k).indices.numpy() for column in columns.T]
    influence = by_das(results, denoiser, items, images, train, scale)
    lists["das"] = [column.topk(k).indices.numpy() for column in influence.T]
    return {name: lists[name] for name in scale.methods}


def in_worker(
    method: type[Attributor],
    denoiser: DiTEDM,
    images: Images,
    settings: Any,
    *,
    captures: bool = DEVICE.type == "cuda",
) -> Attributor:
    """Set up a method as the engine does in a worker."""
    return method(
        MethodContext(
            settings=settings,
            device=DEVICE,
            num_images=len(images),
            denoiser=denoiser,
            batches=images.named,
            captures=captures,
        )
    )


def unlearned(
    results: Results, options: argparse.Namespace, denoiser: DiTEDM, items: list[Item], scale: Scale
) -> dict[str, list[dict[str, Tensor]]]:
    """Return the changed tensors of all items, for both ways to unlearn."""
    folder = options.out / "jobs"
    save_file({name: value.cpu() for name, value in denoiser.network.state_dict().items()}, folder / "f1.safetensors")
    save_file({"items": torch.stack([item.z for item in items])}, folder / "items.safetensors")
    ways = {"mucs": "training", "mucs/sigma-schedule": "schedule"}
    shares = [range(len(items))[start :: scale.unlearn_jobs] for start in range(scale.unlearn_jobs)]
    jobs = {
        f"unlearn {name} {number}": {"sigmas": sigmas, "items": list(share)}
        for name, sigmas in ways.items()
        for number, share in enumerate(shares)
    }
    started = time.monotonic()
    results = side_by_side(options, jobs)
    results["unlearning side by side, s"] = time.monotonic() - started
    banks: dict[str, list[dict[str, Tensor]]] = {}
    for name in ways:
        parts = [results[f"unlearn {name} {number}"] for number in range(len(shares))]
        facts = {number: value for _, item_facts in parts for number, value in item_facts.items()}
        tensors = {key: value for item_tensors, _ in parts for key, value in item_tensors.items()}
        results[f"unlearning, {name}"] = [facts[str(item.number)] for item in items]
        banks[name] = [
            {key.split("/", 1)[1]: value for key, value in tensors.items() if key.startswith(f"{item.number}/")}
            for item in items
        ]
    return banks


def unlearn_items(folder: Path, job: Facts, images: Images, scale: Scale) -> tuple[dict[str, Tensor], Facts]:
    """Unlearn a share of the items in time and return (changed tensors as NUMBER/NAME, facts by number)."""
    denoiser = with_weights(scale.model, load_file(folder / "f1.safetensors"))
    pictures = load_file(folder / "items.safetensors")["items"]
    items = [Item(number=n, idx=n, condition={}, z=pictures[n].to(DEVICE)) for n in job["items"]]
    config = MUCSConfig(
        sigmas=job["sigmas"], batch_size=min(64, len(images)), null_batches=scale.null_batches, fixed_updates=3
    )

    def method(config: MUCSConfig) -> Attributor:
        return in_worker(MUCS, denoiser, images, settings_of(scale.model, train=scale.train, mucs=config))

    bound = method(config).fit({}, iter(()))
    tensors, facts = {}, {}
    with as_in_training(DEVICE):
        trial = method(config)
        took = seconds_a_call(lambda: trial.fit_item(items[0], bound, lambda *_: None), 0.0) / 3
        limit = min(scale.max_updates, max(3, int(scale.share_of_time * UNLEARN_S / took / len(items))))
        ready = method(replace(config, fixed_updates=0, max_updates=limit))
        for item in items:
            state = ready.fit_item(item, bound, lambda *_: None)
            tensors |= {f"{item.number}/{name}": tensor for name, tensor in state.tensors.items()}
            first, last = state.facts["item_loss"][0], state.facts["item_loss"][-1]
            unlearned_facts = {name: state.facts[name] for name in ("outcome", "updates", "null_loss")}
            facts[str(item.number)] = {**unlearned_facts, "limit": limit, "loss": [first, last]}
    return tensors, facts


def scored(results: Results, denoiser: DiTEDM, bank: list[dict[str, Tensor]], images: Images, scale: Scale) -> Tensor:
    """Return skews[images, models] of all pictures, on as many noises as there is time for; record
    the effect of bf16.
    """
    gpu = DEVICE.type == "cuda"
    flop, tried = flop_of_a_forward(denoiser, scale.model), images.batch(np.arange(min(32, len(images)))).to(DEVICE)
    precision = "bf16" if gpu else "fp32"
    config = ScoreConfig(noises=scale.max_noises, images_per_forward=8, precision=precision)

    def change(config: ScoreConfig) -> LossChange:
        return LossChange(denoiser, bank, config=config, seed=SEED, captures=gpu)

    ready = change(config)
    ready.losses(tried)  # captured the second time
    a_forward = seconds_a_call(lambda: ready.losses(tried), 0.0) / (len(tried) * config.noises * (1 + len(bank)))
    whole = len(images) * (1 + len(bank)) * a_forward
    noises = max(4, min(scale.max_noises, int(scale.share_of_time * SCORE_S / whole)))
    config = replace(config, noises=noises, images_per_forward=max(8, ROWS_A_FORWARD // noises))
    ready, pieces, tables = change(config), [], []
    started = time.monotonic()
    for start in range(0, len(images), 500):
        batch = images.batch(np.arange(start, min(start + 500, len(images)))).to(DEVICE)
        losses = ready.losses(batch)
        pieces.append(ready.skew(losses))
        if start < 1000:
            tables.append(skews(losses.before[:, None], losses.after.transpose(0, 1), epsilon=config.epsilon).cpu())
    took = time.monotonic() - started
    forwards = len(images) * config.noises * (1 + len(bank))
    results["scoring"] = {
        "noises": config.noises,
        "forwards/s": forwards / took,
        "TFLOP/s": forwards * flop / took / 1e12,
        "seconds an item": took / len(bank),
    }
    if config.noises >= 10:
        results["screening, told by held-out pictures"] = predict_screening(torch.cat(tables), config)
    if gpu:
        batch = images.batch(np.arange(min(200, len(images)))).to(DEVICE)
        few = replace(config, noises=min(20, config.noises))
        pair = [method.skew(method.losses(batch)) for method in (change(few), change(replace(few, precision="fp32")))]
        results["bf16 beside fp32, trained model"] = agreement(*pair)
    return torch.cat(pieces)


def predict_screening(table: Tensor, config: ScoreConfig) -> dict[str, float]:
    """Return the share of the forwards that `mucs/screen` would make, and the recall it would predict."""
    rounds = (0.1, 0.3)
    expected = held_out(table.numpy(), top_share=0.02, counts=noise_counts(config.noises, rounds), recall=0.98)
    return {"share of forwards": expected.share, "recall": expected.recall, "sample": len(table)}


def agreement(computed: Tensor, exact: Tensor) -> dict[str, float]:
    """Return the rank correlation and common top tenth of skews[images, models], the least of the models."""
    correlations = [float(spearmanr(a, b).statistic) for a, b in zip(computed.T, exact.T, strict=True)]
    k = len(computed) // 10
    tops = [[set(column.topk(k).indices.tolist()) for column in scores.T] for scores in (computed, exact)]
    return {
        "rank correlation": min(correlations),
        "top tenth in common": min(len(a & b) / k for a, b in zip(*tops, strict=True)),
        "largest difference": float((computed - exact).abs().max()),
        "largest skew": float(exact.abs().max()),
    }


def by_das(
    results: Results, denoiser: DiTEDM, items: list[Item], images: Images, train: TrainConfig, scale: Scale
) -> Tensor:
    """Return scores[images, items]."""

    def method(noises: int, *, captures: bool) -> Attributor:
        settings = settings_of(scale.model, train=train, das=DASConfig(noises=noises, dim=scale.dim))
        return in_worker(DAS, denoiser, images, settings, captures=captures)

    def speed(*, captures: bool) -> float:
        ready = method(noises, captures=captures)
        return len(tried) / seconds_a_call(lambda: ready.features(tried), 0.5 * scale.share_of_time)

    tried, captures = images.batch(np.arange(4)).to(DEVICE), DEVICE.type == "cuda"
    noises = min(20, scale.max_noises)
    took = 1 / speed(captures=False)
    results["features of DAS, eager, images/s"] = 1 / took
    if captures:
        try:
            took = 1 / speed(captures=True)
        except Exception as error:  # it is told, and the test goes on without
            results["features of DAS, captured"] = f"failed: {type(error).__name__}: {error}"
            captures = False
    noises = max(2, min(noises, int(noises * scale.share_of_time * FEATURES_S / took / len(images))))
    ready = method(noises, captures=captures)
    started, rows = time.monotonic(), []
    for start in range(0, len(images), 500):
        rows.append(ready.features(images.batch(np.arange(start, min(start + 500, len(images)))).to(DEVICE)))
    results["features of DAS"] = {"noises": noises, "images/s": len(images) / (time.monotonic() - started)}
    on_device = [{name: tensor.to(DEVICE) for name, tensor in row.items()} for row in rows]
    prepared = ready.fit({}, iter(on_device))
    ready.load(prepared, [ready.fit_item(item, prepared, lambda *_: None).tensors for item in items])
    return torch.cat([ready.score(row).cpu() for row in on_device])


def compare(results: Results, pictures: dict[str, Tensor]) -> None:
    """Compute SSIM of every picture and its regeneration, and the AUC of each method against random removal."""
    unit = {name: (batch.clamp(-1, 1) + 1) / 2 for name, batch in pictures.items()}
    similar = {name: ssim(batch, unit["generated"]).numpy() for name, batch in unit.items() if name != "generated"}
    results["n"] = len(unit["generated"])
    for name, values in similar.items():
        results[f"SSIM, {name}"] = {
            "mean": float(values.mean()),
            "AUC": auc(values, similar["random"]),
            "p, paired": paired_wilcoxon(values, similar["random"]),
            "each": [round(float(value), 4) for value in values],
        }


def parse() -> argparse.Namespace:
    """Parse the command line; the last option is for the processes that this one starts."""
    return options(__doc__, ("--job", Path))


if __name__ == "__main__":
    main()
