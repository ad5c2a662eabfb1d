"""What a run will cost: forwards and bytes by counting, FLOP by torch's counter, time by measuring here."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from mucs_ray.diffusion.denoiser import EDMDenoiser
from mucs_ray.diffusion.loss import denoising_loss
from mucs_ray.engine.session import usable_cpus
from mucs_ray.models.dit import DiT, unlearned_names
from mucs_ray.pipeline import Pipeline
from mucs_ray.training.step import autocast

EXPECTED_UPDATES = 109
"""Unlearning updates an item, as the paper observed on COCO; the true number is known only afterwards."""
MEASURE_S = 1.5
UNLEARN, SCORE = "attribute/mucs/unlearn", "attribute/mucs/score"


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCost:
    """One stage's cost; `seconds` is for one worker of this machine's kind, 0 where it is negligible."""

    stage: str
    work: str
    forwards: int
    flop: float
    written_bytes: int
    seconds: float

    def cells(self) -> list[str]:
        """For a table."""
        flop = f"{self.flop:.2g}" if self.flop else ""
        forwards = f"{self.forwards:,}" if self.forwards else ""
        return [self.stage, self.work, forwards, flop, size_text(self.written_bytes), time_text(self.seconds)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Of all stages that are not done."""

    stages: list[StageCost]
    workers: int
    basis: str

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Measured on one worker; per image."""

    forward_s: float
    backward_s: float
    """Forward and backward together."""
    forward_flop: float


def estimate(pipeline: Pipeline) -> Estimate:
    """Count the work of every stage that is not done, and measure one worker for a few seconds."""
    recipe, card = pipeline.recipe, pipeline.dataset.card
    states = pipeline.plan("attribute")
    speed = measure(pipeline)
    workers = torch.cuda.device_count() or usable_cpus()
    network = DiT(recipe.model)
    parameters = {name: parameter.numel() for name, parameter in network.named_parameters()}
    every, changed = 4 * sum(parameters.values()), 4 * sum(parameters[name] for name in unlearned_names(network))
    num_train, num_items = card.num_images("train"), recipe.generate.items

    def stage(name: str, work: str, forwards: int, written: int, *, backwards: int = 0) -> StageCost:
        flop = speed.forward_flop * (forwards + 3 * backwards)
        seconds = (forwards * speed.forward_s + backwards * speed.backward_s) / workers
        return StageCost(
            stage=name, work=work, forwards=forwards + backwards, flop=flop, written_bytes=written, seconds=seconds
        )

    images = recipe.train.updates * recipe.train.batch_size
    samples = recipe.generate.items + recipe.generate.controls
    evaluations = (2 * recipe.generate.steps - 1) * (1 if recipe.generate.guidance == 1 else 2)
    draws = num_items * EXPECTED_UPDATES * 2 * recipe.unlearn.batch_size
    pairs = num_train * recipe.score.noises * (num_items + 1)
    kept = 2 * pairs if recipe.score.keep_losses else 0
    pixels = 4 * 3 * card.size**2
    costs = [
        stage("pretrain", f"{recipe.train.updates:,} updates (at most)", 0, 5 * every, backwards=images),
        stage("generate", f"{samples} items", samples * evaluations, samples * pixels),
        stage(UNLEARN, f"{num_items} items x ~{EXPECTED_UPDATES} updates", 0, num_items * changed, backwards=draws),
        stage(SCORE, f"{num_train:,} images x {recipe.score.noises} noises", pairs, 4 * num_train * num_items + kept),
    ]
    if recipe.weights:
        costs = costs[1:]
    basis = (
        f"measured on one worker of this machine: {1 / speed.forward_s:,.3g} forwards/s"
        f" ({speed.forward_flop / speed.forward_s / 1e9:,.0f} GFLOP/s); divided by {workers} workers"
    )
    return Estimate(
        stages=[cost for cost in costs if states[cost.stage].status != "done"], workers=workers, basis=basis
    )


def measure(pipeline: Pipeline) -> Speed:
    """Time forwards as scoring does them and backwards as training does, with untrained weights."""
    recipe = pipeline.recipe
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a worker has one
    denoiser = EDMDenoiser(DiT(recipe.model)).to(device)
    side = recipe.model.image_size

    def run(count: int) -> torch.Tensor:
        image, noise = torch.zeros(2, count, 3, side, side, device=device)
        return denoising_loss(denoiser, image, noise, torch.ones(count, device=device), None).mean()

    with torch.no_grad(), autocast(recipe.score.precision, device):
        with FlopCounterMode(display=False) as counter:
            run(1)
        affordable = max(1, int(MEASURE_S / timed(lambda: run(1), budget_s=0)))
        num = min(recipe.score.noises, affordable)
        forward_s = timed(lambda: run(num)) / num
    small = min(recipe.train.batch_size, max(1, affordable // 4))
    backward_s = timed(lambda: run(small).backward()) / small
    torch.set_num_threads(threads)
    return Speed(forward_s=forward_s, backward_s=backward_s, forward_flop=counter.get_total_flops())


def timed(work: Callable[[], object], *, budget_s: float = MEASURE_S) -> float:
    """Seconds a call, over about `budget_s` seconds and at least once after a first call to warm up."""

    def finished() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.monotonic()

    work()
    started, calls = finished(), 0
    while calls == 0 or finished() - started < budget_s:
        work()
        calls += 1
    return (finished() - started) / calls


def size_text(num_bytes: float) -> str:
    """1234567 -> "1.2 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"


def time_text(seconds: float) -> str:
    """Seconds for reading."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
