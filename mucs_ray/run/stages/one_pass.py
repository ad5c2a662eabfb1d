"""Stages that go over the training set at the same time, done in one pass: scores, features and samples of any methods.

Each keeps its own folder, parts, manifest and resumption, and its parts are those that it makes alone.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mucs_ray.attribution.tuning import OPEN, is_open
from mucs_ray.data.table import Unit
from mucs_ray.engine import auto_settings, streaming
from mucs_ray.engine.progress import Bar, bars
from mucs_ray.engine.session import Cluster
from mucs_ray.errors import MucsError
from mucs_ray.pipeline.graph import Pipeline
from mucs_ray.pipeline.method_stages import Task
from mucs_ray.run.stages.attribute import job_of, refs
from mucs_ray.run.stages.files import Load, Output, digests, load_once
from mucs_ray.store.parts import unit_part


def stream(pipeline: Pipeline, tasks: Sequence[Task], cluster: Cluster) -> Iterator[tuple[str, Output | MucsError]]:
    """Stream the training set, or features of it, once for all of these; a part a stage and unit. Each by its name with
    its output, or with why it could not be finished.
    """
    started = time.monotonic()
    units, load, failed = pipeline.dataset.units("train"), load_once(), dict[str, MucsError]()
    names, rows = [task.name for task in tasks], sum(unit.rows for unit in units)
    with bars(pipeline.console, names, rows, "images", pipeline.events) as shown:
        streamed: list[Begun] = []
        for task, bar in zip(tasks, shown, strict=True):
            try:
                streamed.append(begin(pipeline, task, units, load, cluster=cluster, bar=bar))
            except MucsError as error:
                failed[task.name] = error
        streaming.run_pass([each.streamed for each in streamed], cluster=cluster)
    yield from failed.items()
    seconds = shares(time.monotonic() - started, [each.streamed.totals["worker_seconds"] for each in streamed])
    for each, own in zip(streamed, seconds, strict=True):
        yield each.task.name, each.streamed.error() or output(each, own, cluster)


@dataclass(frozen=True, kw_only=True)
class Begun:
    """A stage that has announced its parts."""

    task: Task
    parts: list[str]
    tuning: dict[str, str]
    """sha256 by file of what was found by trying just now."""
    streamed: streaming.Streamed


def begin(pipeline: Pipeline, task: Task, units: Sequence[Unit], load: Load, *, cluster: Cluster, bar: Bar) -> Begun:
    """A stage as it goes into a pass, its open settings found by trying."""
    assert task.part is not None
    stage = pipeline.stages[task.name]
    parts = {unit_part(stage, unit): unit for unit in units}
    tuned = [stage.part("tuning", "json")] if task.part.compares_losses and is_open(task.recipe.score) else []
    missing = stage.begin([*parts, *tuned])
    todo = [unit for name, unit in parts.items() if name in missing]
    bar.start_at(sum(unit.rows for unit in units) - sum(unit.rows for unit in todo))
    job, inputs, made = job_of(pipeline, task), refs(pipeline, task, load), dict[str, str]()
    for file in tuned:
        job, made = auto_settings.tuned(job, inputs, todo or units, file, cluster=cluster, bar=bar)
    streamed = streaming.Streamed(job=job, refs=inputs, bar=bar, units=todo)
    return Begun(task=task, parts=[*parts, *tuned], tuning=made, streamed=streamed)


def shares(seconds: float, worker_seconds: Sequence[float]) -> list[float]:
    """The wall time of a pass, told as that of its stages, by what they took of the workers' time."""
    total = sum(worker_seconds)
    return [seconds * (own / total if total else 1 / len(worker_seconds)) for own in worker_seconds]


def output(begun: Begun, seconds: float, cluster: Cluster) -> Output:
    """The files of a finished stage, and what it took."""
    streamed = begun.streamed
    facts = {**streamed.totals, "processor": cluster.processor, "wall_seconds": seconds, "seconds": round(seconds, 2)}
    if streamed.job.part.compares_losses:
        facts |= {knob: getattr(streamed.job.recipe.score, knob) for knob in OPEN}
    return digests(streamed.job.stage, begun.parts, {**streamed.digests, **begun.tuning}), facts
