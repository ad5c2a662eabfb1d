"""Scores, features and samples of any methods run as one pass over the training set.

Each stage keeps its own folder, parts and manifest and resumes on its own; its parts are the same as without others.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict

import ray.exceptions

from mucs_ray.attribution.tuning import AUTO_SETTINGS, has_auto
from mucs_ray.data.table import Unit
from mucs_ray.engine.auto_settings import tuned_job
from mucs_ray.engine.coordinator import last_line
from mucs_ray.engine.progress import Bar, bars
from mucs_ray.engine.session import Cluster
from mucs_ray.engine.streaming import StreamedStage, scorer_pool
from mucs_ray.engine.watch import watching
from mucs_ray.errors import MucsError
from mucs_ray.pipeline.graph import StageRef
from mucs_ray.run.stages.attribute import attribute_job, input_refs
from mucs_ray.run.stages.files import Load, Output, digests, load_once
from mucs_ray.store.facts import StreamingFacts
from mucs_ray.store.parts import unit_part


def run_pass(refs: Sequence[StageRef], cluster: Cluster) -> Iterator[tuple[StageRef, Output | MucsError]]:
    """Stream the training set, or features of it, once for all of these stages, which belong to one run.

    Each stage makes one part of every unit. Yields each with its output, or with the error for which it could not be
    finished. A unit that has no part after a pass, and is not given up, is streamed again by new workers.
    """
    started, pipeline = time.monotonic(), refs[0].pipeline
    units, load = pipeline.encoded_dataset.units("train"), load_once()
    stages, errors = dict[str, StreamedStage](), dict[str, MucsError]()
    num_images = sum(unit.rows for unit in units)
    with bars(pipeline.console, [ref.name for ref in refs], num_images, "images", pipeline.events) as progress:
        for ref, bar in zip(refs, progress, strict=True):
            try:
                stages[ref.name] = begin_stage(ref, units, load, cluster=cluster, bar=bar)
            except MucsError as error:
                errors[ref.name] = error
        while incomplete := [stage for stage in stages.values() if stage.missing]:
            with failures_counted(incomplete, cluster), scorer_pool(incomplete, cluster) as receipts:
                for receipt in receipts:
                    stages[receipt.stage].add(receipt, cluster)
    for name, error in errors.items():
        yield StageRef(pipeline, name), error
    shares = split_seconds(time.monotonic() - started, list(stages.values()))
    for (name, stage), seconds in zip(stages.items(), shares, strict=True):
        yield StageRef(pipeline, name), stage.error() or output_of(stage, seconds, cluster)


def begin_stage(ref: StageRef, units: Sequence[Unit], load: Load, *, cluster: Cluster, bar: Bar) -> StreamedStage:
    """Publish the plan of a stage that joins a pass, and find its "auto" settings by trial."""
    pipeline, name = ref
    spec, stage = pipeline.method_stages[name], pipeline.stages[name]
    assert spec.method_stage is not None
    parts = {unit_part(stage, unit): unit for unit in units}
    tunes = spec.method_stage.compares_losses and has_auto(spec.recipe.score)
    tuning = [stage.part("tuning", "json")] if tunes else []
    absent = stage.begin([*parts, *tuning])
    missing = [unit for file, unit in parts.items() if file in absent]
    bar.start_at(sum(unit.rows for unit in units) - sum(unit.rows for unit in missing))
    job, inputs, new = attribute_job(pipeline, spec), input_refs(pipeline, spec, load), dict[str, str]()
    for file in tuning:
        job, new = tuned_job(job, inputs, missing or units, file, cluster=cluster, bar=bar)
    return StreamedStage(job=job, refs=inputs, bar=bar, files=[*parts, *tuning], units=missing, digests=new)


@contextmanager
def failures_counted(stages: Sequence[StreamedStage], cluster: Cluster) -> Iterator[None]:
    """Watch a pass, which an error of Ray may end early, and count the units that have no part after it as failed."""
    failures_before = [stage.num_failures for stage in stages]
    cause = "it has no part, and no worker reported why"
    try:
        with watching([(stage.coordinator, stage.bar) for stage in stages], cluster.engine.timeout):
            yield
    except ray.exceptions.RayError as error:
        cause = last_line(error)
    for stage, num_failures in zip(stages, failures_before, strict=True):
        stage.count_failures(cause, num_failures)


def split_seconds(seconds: float, stages: Sequence[StreamedStage]) -> list[float]:
    """Split the wall time of a pass over its stages in proportion to the workers' time that each took."""
    worker_seconds = [stage.totals["worker_seconds"] for stage in stages]
    total = sum(worker_seconds)
    return [seconds * (own / total if total else 1 / len(worker_seconds)) for own in worker_seconds]


def output_of(stage: StreamedStage, seconds: float, cluster: Cluster) -> Output:
    """Return the digests of a finished stage's files, and the facts about its work."""
    job = stage.job
    work = StreamingFacts(
        forwards=stage.totals["forwards"],
        worker_seconds=stage.totals["worker_seconds"],
        worker_seconds_outside=stage.totals["worker_seconds_outside"],
        wall_seconds=seconds,
        processor=cluster.processor,
    )
    facts = {"rows": stage.totals["rows"], **asdict(work), "seconds": round(seconds, 2)}
    if job.method_stage.compares_losses:
        facts |= {setting: getattr(job.recipe.score, setting) for setting in AUTO_SETTINGS}
    return digests(job.stage, stage.files, stage.digests), facts
