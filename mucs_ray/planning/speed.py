"""The speed of one worker, measured here in a few seconds, or by the run itself once it has streamed for a minute."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from mucs_ray import storage
from mucs_ray.attribution.tuning import precisions
from mucs_ray.config.recipe import Recipe
from mucs_ray.diffusion.loss import denoising_loss
from mucs_ray.diffusion.model import DiffusionModel
from mucs_ray.engine.pace import PACE
from mucs_ray.models.adapters import adapter
from mucs_ray.pipeline.graph import Pipeline
from mucs_ray.store.events import read_events
from mucs_ray.store.facts import StreamingFacts, read_facts
from mucs_ray.store.run import State
from mucs_ray.store.typed import typed
from mucs_ray.training.config import Precision
from mucs_ray.training.step import autocast

MEASURE_S = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """The speed of one worker, per image."""

    forward_s: float
    backward_s: float
    """The seconds of a forward and its backward pass together."""
    forward_flop: float
    processor: str
    """The kind of processor of which a worker has one: "GPU" or "CPU"."""
    measured: str
    """The place of the measurement, for a sentence that begins with "measured"."""


def speed_of(pipeline: Pipeline, states: Mapping[str, State]) -> Speed:
    """Return the speed that this run has shown in the stages of `states`; if it has shown none, measure it here."""
    local, streamed = measure(pipeline.recipe), facts_of_streams(pipeline, states)
    forwards = sum(facts.forwards for facts in streamed.values())
    if not forwards:
        return local
    forward_s = sum(facts.worker_seconds for facts in streamed.values()) / forwards
    *_, last = streamed.values()
    return replace(
        local,
        forward_s=forward_s,
        backward_s=local.backward_s * forward_s / local.forward_s,  # only forwards are streamed
        processor=last.processor or local.processor,
        measured=f"in this run on {', '.join(streamed)}",
    )


def facts_of_streams(pipeline: Pipeline, states: Mapping[str, State]) -> dict[str, StreamingFacts]:
    """Return, by stage, the work of the stages of `states` that called the network while they streamed.

    The work is that of the whole stage if it is done, else of its first minute under the same settings. Features are
    left out, since a backward pass comes with each of their forwards.
    """
    first_minutes = {pace.stage: pace for pace in read_paces(pipeline.run_url)}
    streamed = {}
    scoring = [
        name
        for name in states
        if name in pipeline.method_stages and pipeline.method_stages[name].hook in ("sample", "score")
    ]
    for name in scoring:
        stage, pace = pipeline.stages[name], first_minutes.get(name)
        if states[name].status == "done":
            facts = read_facts(stage, StreamingFacts)
        elif pace is not None and pace.fingerprint == stage.fingerprint:
            facts = pace.work
        else:
            continue
        if facts.forwards:
            streamed[name] = facts
    return streamed


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstMinute:
    """The work of a streamed stage in its first minute, as its event in the run directory has it."""

    stage: str
    fingerprint: str
    work: StreamingFacts


def read_paces(run_url: str) -> Iterator[FirstMinute]:
    """Yield the first minutes of the stages of a run, the latest last."""
    for event in read_events(run_url):
        if event["event"] == PACE:
            work = typed(event, StreamingFacts, storage.join(run_url, "events"))
            yield FirstMinute(stage=event["stage"], fingerprint=event.get("fingerprint", ""), work=work)


def measure(recipe: Recipe) -> Speed:
    """Time forwards as scoring does them and backwards as training does, with untrained weights."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a worker has one
    kind = adapter(recipe.model)
    denoiser = (kind.untrained(recipe.seed, device) or kind.model(device)).requires_grad_(True)

    def run(count: int) -> torch.Tensor:
        return loss_of_nothing(denoiser, count, device)

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


def loss_of_nothing(denoiser: DiffusionModel, count: int, device: torch.device) -> torch.Tensor:
    """Return the mean loss of some empty images, in one forward."""
    image, noise = torch.zeros(2, count, *denoiser.shape, device=device)
    level = denoiser.process.scoring_levels(1, 1.0).to(device).expand(count)
    return denoising_loss(denoiser.process, denoiser, image, noise, level).mean()


def flop_of_forward(recipe: Recipe) -> float:
    """Return the FLOP of a forward of one image, without doing it."""
    device = torch.device("meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        loss_of_nothing(adapter(recipe.model).model(device), 1, device)
    return counter.get_total_flops()


def timed(call: Callable[[], object], *, budget_s: float = MEASURE_S) -> float:
    """Return the seconds that a call takes, from calls over about `budget_s` seconds; the first call is not counted."""

    def synchronized_clock() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.monotonic()

    call()
    started, calls = synchronized_clock(), 0
    while calls == 0 or synchronized_clock() - started < budget_s:
        call()
        calls += 1
    return (synchronized_clock() - started) / calls
