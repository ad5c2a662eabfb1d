"""What a run will cost: forwards and bytes by counting, FLOP by torch's counter, time by measuring here."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from mucs_ray.attribution.base import Passes
from mucs_ray.attribution.das import DAS
from mucs_ray.attribution.forward_inf import ForwardINF
from mucs_ray.diffusion.denoiser import EDMDenoiser
from mucs_ray.diffusion.loss import denoising_loss
from mucs_ray.engine.session import usable_cpus
from mucs_ray.models.dit import DiT, unlearned_names
from mucs_ray.pipeline import Pipeline
from mucs_ray.tasks import Task
from mucs_ray.training.step import autocast

MEASURE_S = 1.5
WORK = {
    "features": "{num_images:,} images",
    "total": "{num_images:,} images",
    "prepare": "once",
    "adapt": "{num_items} items",
    "score": "{num_images:,} images x {num_items} items",
}
"""What the parts of methods go over."""


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

    def cost(name: str, work: str, passes: Passes, written: int = 0) -> StageCost:
        return StageCost(
            stage=name,
            work=work,
            forwards=passes.forwards + passes.backwards,
            flop=speed.forward_flop * (passes.forwards + 3 * passes.backwards),
            written_bytes=written,
            seconds=(passes.forwards * speed.forward_s + passes.backwards * speed.backward_s) / workers,
        )

    samples = recipe.generate.items + recipe.generate.controls
    evaluations = (2 * recipe.generate.steps - 1) * (1 if recipe.generate.guidance == 1 else 2)
    trained = Passes(backwards=recipe.train.updates * recipe.train.batch_size)
    costs = []
    for name in (name for name, state in states.items() if state.status != "done"):
        if name == "pretrain" and not recipe.weights:
            costs.append(cost(name, f"{recipe.train.updates:,} updates (at most)", trained, 5 * every))
        elif name == "generate":
            made = Passes(forwards=samples * evaluations)
            costs.append(cost(name, f"{samples} items", made, samples * 4 * 3 * card.size**2))
        elif (task := pipeline.tasks.get(name)) and task.part and task.method.attributor:
            counts = {"num_images": card.num_images("train"), "num_items": recipe.generate.items}
            passes = task.method.attributor.passes(task.part, task.recipe, **counts)
            written = written_bytes(task, changed=changed, every=every, **counts)
            costs.append(cost(name, WORK[task.part.hook].format(**counts), passes, written))
    basis = (
        f"measured on one worker of this machine: {1 / speed.forward_s:,.3g} forwards/s"
        f" ({speed.forward_flop / speed.forward_s / 1e9:,.0f} GFLOP/s); divided by {workers} workers"
    )
    return Estimate(stages=costs, workers=workers, basis=basis)


def written_bytes(task: Task, *, changed: int, every: int, num_images: int, num_items: int) -> int:
    """About what a part leaves in the run directory; `changed` and `every`: bytes of what MUCS changes, and of all."""
    assert task.part is not None
    if task.part.hook == "score":
        score = task.recipe.score
        kept = 2 * num_images * score.noises * (num_items + 1) if score.keep_losses else 0
        return 8 * num_images * num_items + kept
    if task.part.hook == "adapt":
        return num_items * (every if task.method.attributor is ForwardINF else changed)
    if task.part.hook == "features":
        return 4 * num_images * (task.recipe.das.dim if task.method.attributor is DAS else task.recipe.dtrak.dim)
    return 0


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
