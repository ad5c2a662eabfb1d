"""Section a: is what a GPU computes right? A small model on the CPU and on the GPU, from the same named draws.

    python benchmarks/gpu/correct.py --out FOLDER [--tiny]

The CPU in fp32 is the reference. Without a GPU the same comparisons run CPU against CPU.
"""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from common import DEVICE, SEED, TINY, Results, noise_set, options, random_batch, seconds, settings_of

# isort: split
import torch
from common import random_denoiser
from scipy.stats import spearmanr
from torch import Tensor

from mucs_ray.attribution.arriving import arriving
from mucs_ray.attribution.base import MethodContext
from mucs_ray.attribution.cards.das import DASConfig
from mucs_ray.attribution.cards.dtrak import DTRAKConfig
from mucs_ray.attribution.cards.mucs import MUCSConfig
from mucs_ray.attribution.config import ScoreConfig
from mucs_ray.attribution.das import DAS
from mucs_ray.attribution.dtrak import DTRAK
from mucs_ray.attribution.model_bank import ModelBank
from mucs_ray.attribution.skew import normalized_skew
from mucs_ray.attribution.unlearn import Unlearned, unlearn
from mucs_ray.diffusion.batch import Batch, Item
from mucs_ray.diffusion.condition import moved, one_by_one
from mucs_ray.diffusion.edm import EDM
from mucs_ray.diffusion.sampler import sample
from mucs_ray.models.dit import DiTConfig
from mucs_ray.models.dit_edm import DiTEDM
from mucs_ray.training.config import TrainConfig
from mucs_ray.training.numerics import as_in_training
from mucs_ray.training.step import TrainState, UpdateDraws, WorkerContext, train_update

CPU = torch.device("cpu")
SMALL = replace(TINY, width=128, depth=4, num_heads=4, condition_channels=64, registers=4)
IMAGES, ITEMS, NOISES, TOP = 100, 3, 50, 20
ITEM_UPDATES, TRAIN_UPDATES = 20, 30
LITTLE_BYTES = 2**28
ARRIVING = "fp32, captured, images arriving meanwhile"


def main() -> None:
    arguments = options(__doc__)
    torch.set_num_threads(1 if DEVICE.type == "cpu" else len(os.sched_getaffinity(0)))  # the reference need not be slow
    results = Results(arguments.out, "correct")
    model, scale = (TINY, 8) if arguments.tiny else (SMALL, 1)
    images, noises = random_batch(model, IMAGES // scale, CPU), noise_set(model, NOISES // scale, CPU)
    results["sizes"] = {"images": len(images), "noises": len(noises.level), "items": ITEMS}
    results["named noise equal"] = torch.equal(noise_set(model, NOISES // scale).unit.cpu(), noises.unit)
    compare_training(results, model, TRAIN_UPDATES // scale)
    bank = compare_unlearning(results, model, images, ITEM_UPDATES // scale)
    compare_scores(results, model, images, bank, NOISES // scale)
    compare_features(results, model, images)
    compare_generation(results, model)
    if DEVICE.type == "cuda":
        results["too little memory"] = scores_with_little_memory(model, images, bank)
    results.finish()


def difference(computed: Tensor, exact: Tensor) -> float:
    """Return the norm of the difference over the norm."""
    computed, exact = computed.detach().cpu().double(), exact.detach().cpu().double()
    return float((computed - exact).norm() / exact.norm())


@contextmanager
def matrices(precision: str) -> Iterator[None]:
    """Set torch's precision of fp32 matrix products, or "engine": all as the engine trains and unlearns on a GPU."""
    if precision == "engine":
        with as_in_training(DEVICE):
            yield
        return
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


def train(model: DiTConfig, device: torch.device, updates: int, *, captured: bool = False) -> tuple[Tensor, DiTEDM]:
    """Return (losses, EMA weights) after some updates."""
    config = TrainConfig(batch_size=32, learning_rate=1e-3, warmup_epochs=0, augment=0.0, flip=False)
    state = TrainState.fresh(random_denoiser(model, device).requires_grad_(True), config, captures=captured)
    losses = []
    for step in range(updates):
        batch, noise = (random_batch(model, 32, CPU, f"{name}/{step}") for name in ("train", "noise"))
        draws = UpdateDraws(
            z=batch.z,
            condition={**batch.condition, "augmented": torch.zeros(32, dtype=torch.long)},
            level=noise.z.flatten(1).std(dim=1),
            noise=noise.z,
        )
        losses.append(train_update(state, draws, config, seed=SEED, worker=WorkerContext()).cpu())
    return torch.stack(losses), state.average


def compare_training(results: Results, model: DiTConfig, updates: int) -> None:
    exact, _ = train(model, CPU, updates)
    train(model, DEVICE, 2)  # to warm up
    ways = {"highest": ("highest", False), "engine": ("engine", False), "engine, captured": ("engine", True)}
    for name, (precision, captured) in ways.items():
        train_again = partial(train, model, DEVICE, updates, captured=captured)
        with matrices(precision):
            (losses, one), (_, other) = train_again(), train_again()
            took = seconds(train_again)
        results[f"training, {name}"] = {
            "losses off by": difference(losses, exact),
            "the first": difference(losses[:1], exact[:1]),
            "twice equal": same(dict(one.named_parameters()), dict(other.named_parameters())),
            "updates/s": updates / took,
        }


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Return True if tensors are equal bit for bit."""
    return all(torch.equal(one[name], other[name]) for name in one)


def unlearned(model: DiTConfig, images: Batch, device: torch.device, number: int, updates: int) -> Unlearned:
    """Return F2 of an item after some updates."""
    item, batch = random_batch(model, 1, device, f"item/{number}"), images[:32].to(device)
    return unlearn(
        random_denoiser(model, device),
        Item(number=number, idx=number, z=item.z[0], condition=one_by_one(item.condition, 1)[0]),  # pyright: ignore[reportOptionalSubscript]
        lambda _: batch,
        bound=1e6,
        config=MUCSConfig(fixed_updates=updates, batch_size=32),
        learning_rate=1e-3,
        seed=SEED,
    )


def compare_unlearning(results: Results, model: DiTConfig, images: Batch, updates: int) -> list[dict[str, Tensor]]:
    exact = [unlearned(model, images, CPU, number, updates) for number in range(ITEMS)]
    for precision in ("highest", "engine"):
        with matrices(precision):
            computed, again = (unlearned(model, images, DEVICE, 0, updates) for _ in range(2))
            took = seconds(lambda: unlearned(model, images, DEVICE, 0, updates))
        results[f"unlearning, {precision}"] = {
            "trace off by": difference(torch.tensor(computed.item_loss), torch.tensor(exact[0].item_loss)),
            "twice equal": same(computed.tensors, again.tensors),
            "updates/s": updates / took,
        }
    return [state.tensors for state in exact]


def skews(
    model: DiTConfig, images: Batch, bank: list[dict[str, Tensor]], device: torch.device, count: int, **way: Any
) -> tuple[Tensor, Tensor]:
    """Return (losses of every model, skews[images, items]), after a first call, so that captured
    forwards are replayed.
    """
    settings = {name: way.pop(name) for name in ("precision", "compile") if name in way}
    config = ScoreConfig(noises=count, images_per_forward=4, **settings)
    moved = [{name: tensor.to(device) for name, tensor in tensors.items()} for tensors in bank]
    arrives = way.pop("arrives", False)
    models = ModelBank(random_denoiser(model, device), moved, config, **way)
    noises = noise_set(model, count, device)
    models.losses(images[:8].to(device), noises)
    batch = arriving(len(images), images.__getitem__, device, rows_at_once=6) if arrives else images.to(device)
    table = models.losses(batch, noises).cpu()
    return table, torch.stack([normalized_skew(table[0], losses) for losses in table[1:]], dim=1)


def compare_scores(
    results: Results, model: DiTConfig, images: Batch, bank: list[dict[str, Tensor]], count: int
) -> None:
    exact_losses, exact = skews(model, images, bank, CPU, count)
    ways: dict[str, dict[str, Any]] = {
        "fp32": {},
        "fp32, captured": {"captures": True},
        "fp32, one F2 at a time": {"resident": 1, "captures": True},
        ARRIVING: {"captures": True, "arrives": True},
        "fp32, compiled": {"compile": "on"},
        "fp32, compiled and captured": {"compile": "on", "captures": True},
        "bf16": {"precision": "bf16"},
        "bf16, captured": {"precision": "bf16", "captures": True},
    }
    if DEVICE.type == "cpu":  # a compiler is not to be had everywhere
        ways = {name: way for name, way in ways.items() if "compile" not in way}
    tables = {}
    for name, way in ways.items():
        try:
            tables[name], computed = skews(model, images, bank, DEVICE, count, **way)
        except Exception as error:  # a way that fails is told, and the others go on
            results[f"scores, {name}"] = failure(error)
            continue
        results[f"scores, {name}"] = {
            "losses off by": difference(tables[name], exact_losses),
            "skews off by": difference(computed, exact),
            "rank correlation": min(float(spearmanr(a, b).statistic) for a, b in zip(computed.T, exact.T, strict=True)),
            f"top {TOP} in common": common_top(computed, exact),
        }
    if not {"fp32, captured", "bf16, captured", "fp32, one F2 at a time", ARRIVING} <= tables.keys():
        return
    captured = [
        torch.equal(tables["fp32"], tables["fp32, captured"]),
        torch.equal(tables["bf16"], tables["bf16, captured"]),
    ]
    results["captured equals eager bit for bit"] = all(captured)
    results["turns equal all at once bit for bit"] = torch.equal(tables["fp32"], tables["fp32, one F2 at a time"])
    results["images arriving equal images there bit for bit"] = torch.equal(tables["fp32"], tables[ARRIVING])


def failure(error: Exception) -> dict[str, str]:
    """Describe an error in one line."""
    return {"failed": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"}


def common_top(computed: Tensor, exact: Tensor) -> float:
    """Return the share of the highest scores that both have, the least of the items."""
    k = min(TOP, len(computed) // 2)
    tops = [[set(column.topk(k).indices.tolist()) for column in scores.T] for scores in (computed, exact)]
    return min(len(a & b) / k for a, b in zip(*tops, strict=True))


def compare_features(results: Results, model: DiTConfig, images: Batch) -> None:
    settings = settings_of(model, dtrak=DTRAKConfig(noises=10, dim=512), das=DASConfig(noises=10, dim=512))
    for method in (DTRAK, DAS):
        exact = method(context(settings, model, CPU, captures=False)).features(images[:4])["feature"]
        for captures in (False, True):
            name = f"features of {method.card.label}{', captured' if captures else ''}"
            try:
                ready = method(context(settings, model, DEVICE, captures=captures))
                computed = ready.features(images[:4].to(DEVICE))["feature"]
            except Exception as error:
                results[name] = failure(error)
                continue
            results[name] = {"off by": difference(computed, exact)}


def context(settings: Any, model: DiTConfig, device: torch.device, *, captures: bool) -> MethodContext:
    """Build the context of a method."""
    denoiser = random_denoiser(model, device)
    return MethodContext(settings=settings, device=device, num_images=IMAGES, denoiser=denoiser, captures=captures)


def compare_generation(results: Results, model: DiTConfig) -> None:
    start = random_batch(model, 2, CPU, "generate")
    pictures = [
        sample(
            EDM(),
            random_denoiser(model, device),
            start.z.to(device),
            moved(start.condition, device),
            num_steps=4,
        )
        for device in (CPU, DEVICE)
    ]
    results["generation"] = {"off by": difference(pictures[1], pictures[0])}


def scores_with_little_memory(model: DiTConfig, images: Batch, bank: list[dict[str, Tensor]]) -> dict[str, Any]:
    """Score with forwards of all images at once, where the memory holds only a part of them."""
    noises, config = noise_set(model, NOISES), ScoreConfig(noises=NOISES, images_per_forward=len(images))
    plenty, _ = skews(model, images, bank, DEVICE, NOISES)
    gc.collect()
    torch.cuda.empty_cache()
    total, used = torch.cuda.get_device_properties(0).total_memory, torch.cuda.memory_reserved()
    torch.cuda.set_per_process_memory_fraction((used + LITTLE_BYTES) / total)
    results: dict[str, Any] = {}
    for name, captures in (("eager", False), ("captured", True)):
        moved = [{n: tensor.to(DEVICE) for n, tensor in tensors.items()} for tensors in bank]
        models = ModelBank(random_denoiser(model), moved, config, captures=captures)
        tables = [models.losses(images.to(DEVICE), noises).cpu() for _ in range(3)]
        pairs = len(images) * NOISES
        results[name] = {"pairs a forward": [pairs, models.max_pairs], "off by": difference(tables[-1], plenty)}
    torch.cuda.set_per_process_memory_fraction(1.0)
    return results


if __name__ == "__main__":
    main()
