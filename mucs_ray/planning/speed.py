"""How fast one worker is: measured here for a few seconds, or in the run itself once it has streamed for a minute."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from mucs_ray.attribution.tuning import precisions
from mucs_ray.diffusion.loss import denoising_loss
from mucs_ray.engine.pace import PACE
from mucs_ray.models.adapters import adapter
from mucs_ray.pipeline.graph import Pipeline
from mucs_ray.store.events import read_events
from mucs_ray.store.run import State
from mucs_ray.training.config import Precision
from mucs_ray.training.step import autocast

MEASURE_S = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Of one worker; per image."""

    forward_s: float
    backward_s: float
    """Forward and backward together."""
    forward_flop: float
    processor: str
    """What a worker has one of: "GPU" or "CPU"."""
    measured: str
    """Where, for a sentence that begins with "measured"."""


def speed_of(pipeline: Pipeline, states: Mapping[str, State]) -> Speed:
    """As this run has shown it to be, else as measured here. `states`: of the stages that are looked at."""
    here, streamed = measure(pipeline), facts_of_streams(pipeline, states)
    forwards = sum(facts["forwards"] for facts in streamed.values())
    if not forwards:
        return here
    forward_s = sum(facts["worker_seconds"] for facts in streamed.values()) / forwards
    *_, last = streamed.values()
    return replace(
        here,
        forward_s=forward_s,
        backward_s=here.backward_s * forward_s / here.forward_s,  # only forwards are streamed
        processor=last.get("processor", here.processor),
        measured=f"in this run on {', '.join(streamed)}",
    )


def facts_of_streams(pipeline: Pipeline, states: Mapping[str, State]) -> dict[str, Mapping[str, Any]]:
    """`forwards` and `worker_seconds` of stages that were streamed under these settings: at the end, else so far.

    Not of features, where a backward pass comes with each forward.
    """
    so_far = {event["stage"]: event for event in read_events(pipeline.run_url) if event["event"] == PACE}
    found = {}
    scoring = [name for name in states if name in pipeline.tasks and pipeline.tasks[name].hook in ("sample", "score")]
    for name in scoring:
        stage, facts = pipeline.stages[name], so_far.get(name, {})
        if states[name].status == "done":
            facts = stage.facts()
        elif facts.get("fingerprint") != stage.fingerprint:
            continue
        if facts.get("forwards"):
            found[name] = facts
    return found


def measure(pipeline: Pipeline) -> Speed:
    """Time forwards as scoring does them and backwards as training does, with untrained weights."""
    recipe = pipeline.recipe
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a worker has one
    kind = adapter(recipe.model)
    denoiser = (kind.untrained(recipe.seed, device) or kind.model(device)).requires_grad_(True)

    def run(count: int) -> torch.Tensor:
        image, noise = torch.zeros(2, count, *denoiser.shape, device=device)
        level = denoiser.process.scoring_levels(1, 1.0).to(device).expand(count)
        return denoising_loss(denoiser.process, denoiser, image, noise, level).mean()

    def forward(precision: Precision) -> float:
        with torch.no_grad(), autocast(precision, device):
            num = min(recipe.score.noises, max(1, int(MEASURE_S / timed(lambda: run(1), budget_s=0))))
            return timed(lambda: run(num)) / num

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run(1)
    forward_s = min(forward(precision) for precision in precisions(recipe.score, device))
    small = min(recipe.train.batch_size, max(1, int(MEASURE_S / forward_s / 4)))
    backward_s = timed(lambda: run(small).backward()) / small
    torch.set_num_threads(threads)
    processor = "GPU" if device.type == "cuda" else "CPU"
    return Speed(
        forward_s=forward_s,
        backward_s=backward_s,
        forward_flop=counter.get_total_flops(),
        processor=processor,
        measured=f"on one {processor} of this machine",
    )


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
