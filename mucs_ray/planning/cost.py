"""The cost of a run: its work, at the speed of one worker, in FLOP, wall time, workers' time and money."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil, inf
from typing import Any, Literal

import torch

from mucs_ray.engine.address import cluster_address
from mucs_ray.engine.pace import readable
from mucs_ray.engine.session import usable_cpus
from mucs_ray.errors import InputError
from mucs_ray.pipeline.graph import Pipeline
from mucs_ray.planning.speed import Speed, flop_of_forward, speed_of
from mucs_ray.planning.workload import Work, left_to_do
from mucs_ray.store.run import State

DAY_S = 24 * 3600
QUICK_FLOP = 1e15
"""Less than this is done within a day at 12 GFLOP/s, which a single CPU reaches."""
FORWARD_AND_BACKWARD = 3
"""A backward pass takes about twice the FLOP of its forward pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """The estimated cost of one stage, of all retrainings or regenerations, or of all stages."""

    stage: str
    work: str
    forwards: int
    """The number of forward passes, including those before a backward pass."""
    flop: float
    written_bytes: int
    seconds: float
    """The wall time."""
    worker_seconds: float
    """The time of busy workers, added up."""
    money: float | None
    """The price in its currency; None if none was given."""

    def cells(self) -> list[str]:
        """Return the numbers as texts, for a row of a table."""
        flop = f"{self.flop:.2g}" if self.flop else ""
        forwards = f"{self.forwards:,}" if self.forwards else ""
        times = [hours_text(self.worker_seconds), time_text(self.seconds)]
        money = [] if self.money is None else [f"{self.money:,.2f}"]
        return [forwards, flop, size_text(self.written_bytes), *times, *money]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The cost of all stages that are not done."""

    stages: list[Cost]
    total: Cost
    workers: int
    processor: str
    """"GPU" or "CPU", of which each worker has one."""
    price: float | None
    """The price of one processor for an hour."""
    basis: str
    """A sentence on the measured speed and the number of workers."""

    def titles(self) -> list[str]:
        """Return the titles of the columns of `Cost.cells`."""
        money = [] if self.price is None else ["money"]
        return ["forwards", "FLOP", "written", f"{self.processor}-h", "time", *money]

    @property
    def warning(self) -> str | None:
        """What to do where all of it takes more than a day; None if it does not."""
        if self.total.seconds <= DAY_S:
            return None
        return (
            f"that is {self.total.seconds / DAY_S:,.1f} days with {self.workers} {self.processor}"
            f"{'s' if self.workers > 1 else ''}; for a small machine there is --recipe custom-small, or take a smaller"
            " model.size or fewer score.noises; --workers N tells what a cluster would need"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the estimate as JSON values, for --json."""
        return asdict(self)


def estimate(
    pipeline: Pipeline,
    command: Literal["attribute", "evaluate", "lds", "groups"] = "attribute",
    *,
    workers: int | None = None,
    price: float | None = None,
) -> Estimate:
    """Estimate the cost of every stage that is not done, at the speed of one worker.

    `workers` is their number, None for as many as this machine has room for; `price` is what one GPU, or without GPUs
    one CPU, costs for an hour. InputError if the price is not a positive number.
    """
    if price is not None and not 0 < price < inf:
        raise InputError(f"--price {price:g}: expected a number above 0, what one GPU or CPU costs for an hour")
    states = pipeline.plan(command)
    speed = speed_of(pipeline, states)
    workers = workers or torch.cuda.device_count() or usable_cpus()
    work = left_to_do(pipeline, states, processor=speed.processor)
    stages = [cost(of_stage, speed, workers=workers, price=price) for of_stage in work]
    basis = (
        f"measured {speed.measured}: {readable(1 / speed.forward_s)} forwards/s"
        f" ({readable(speed.forward_flop / speed.forward_s / 1e9)} GFLOP/s); time with {workers} {speed.processor}"
        f"{'s' if workers > 1 else ''} like it"
    )
    return Estimate(
        stages=stages,
        total=total(stages, price=price),
        workers=workers,
        processor=speed.processor,
        price=price,
        basis=basis,
    )


def long_training(pipeline: Pipeline, states: Mapping[str, State]) -> str | None:
    """Return a line if the training that `states` lack would take more than a day on the CPUs of this machine.

    Its speed is measured only if it is so large that it might. None on a GPU, and on a cluster, whose speed is not
    known here.
    """
    recipe = pipeline.recipe
    missing = "pretrain" in states and states["pretrain"].status != "done" and recipe.trains
    if not missing or torch.cuda.is_available() or cluster_address(pipeline.address) != "local":
        return None
    training = next(work for work in left_to_do(pipeline, states, processor="CPU") if work.stage == "pretrain")
    if training.passes.backwards * FORWARD_AND_BACKWARD * flop_of_forward(recipe) < QUICK_FLOP:
        return None
    workers = usable_cpus()
    seconds = cost(training, speed_of(pipeline, {}), workers=workers, price=None).seconds
    if seconds <= DAY_S:
        return None
    return (
        f"the training alone would take about {seconds / DAY_S:,.0f} days on the {workers} CPUs of this machine, if it"
        " does not stop sooner; for a machine without a GPU there is --recipe custom-small"
    )


def cost(work: Work, speed: Speed, *, workers: int, price: float | None) -> Cost:
    """Return the cost of one stage. Workers without a piece in the last round count for wall time, not for money."""
    forwards, backwards = work.passes.forwards, work.passes.backwards
    seconds = forwards * speed.forward_s + backwards * speed.backward_s
    return Cost(
        stage=work.stage,
        work=work.work,
        forwards=forwards + backwards,
        flop=speed.forward_flop * (forwards + FORWARD_AND_BACKWARD * backwards),
        written_bytes=work.written_bytes,
        seconds=seconds * ceil(work.pieces / workers) / work.pieces,
        worker_seconds=seconds,
        money=None if price is None else price * seconds / 3600,
    )


def total(stages: Sequence[Cost], *, price: float | None) -> Cost:
    """Return the cost of all stages, which run one after another."""
    seconds = sum(stage.worker_seconds for stage in stages)
    return Cost(
        stage="in all",
        work="",
        forwards=sum(stage.forwards for stage in stages),
        flop=sum(stage.flop for stage in stages),
        written_bytes=sum(stage.written_bytes for stage in stages),
        seconds=sum(stage.seconds for stage in stages),
        worker_seconds=seconds,
        money=None if price is None else price * seconds / 3600,
    )


def size_text(num_bytes: float) -> str:
    """Format bytes with a decimal unit, e.g. 1234567 as "1.23 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"


def time_text(seconds: float) -> str:
    """Format seconds with a unit."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:,.1f} h"


def hours_text(seconds: float) -> str:
    """Format seconds as hours, without a unit."""
    hours = seconds / 3600
    return f"{hours:.3f}" if hours < 10 else f"{hours:,.1f}"
