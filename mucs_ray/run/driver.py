"""Runs what is missing of one or several runs, phase by phase, in one Ray session."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from itertools import groupby
from typing import Any

from mucs_ray import __version__, storage
from mucs_ray.engine.session import Cluster, alive_nodes, await_worker, session
from mucs_ray.errors import MucsError
from mucs_ray.pipeline.graph import PHASES, Pipeline
from mucs_ray.pipeline.passes import in_passes
from mucs_ray.store.run import Stage

Work = tuple[Pipeline, str]
"""A run and the name of one of its stages."""


def run(pipelines: Sequence[Pipeline], command: str) -> list[Work]:
    """Do what a command needs and is missing; returns the stages done now. The same call resumes an interrupted one."""
    todo = missing(pipelines, command)
    if not todo:
        return []
    for pipeline in pipelines:
        storage.publish_json(storage.join(pipeline.run_url, "recipe.json"), pipeline.describe())
        pipeline.events.add("command", command=command, version=__version__)
    work = [each for each in todo if each[1] != "report"]
    if work:
        with session(pipelines[0].address, verbose=pipelines[0].verbose):
            do(work)
    for pipeline, _ in (each for each in todo if each[1] == "report"):
        write_report(pipeline)
        pipeline.events.flush()
    return todo


def missing(pipelines: Sequence[Pipeline], command: str) -> list[Work]:
    """What is not done, all runs' trainings side by side, then all they generate, and so on."""
    plans = [(pipeline, pipeline.plan(command)) for pipeline in pipelines]
    todo = [(pipeline, name) for pipeline, plan in plans for name, state in plan.items() if state.status != "done"]
    return sorted(todo, key=lambda each: PHASES.index(phase(each)))


def checked_nodes(work: Sequence[Work], before: set[str]) -> set[str]:
    """The nodes there are. MachineError if one has come that does not see a run directory: its work would be lost."""
    from mucs_ray.engine.nodes import check_shared

    there = alive_nodes()
    if len(there) > 1 and there - before:
        for url in dict.fromkeys(pipeline.run_url for pipeline, _ in work):
            check_shared(url)
    return there


def phase(work: Work) -> str:
    """The first folder of a stage's name."""
    return work[1].split("/")[0]


def do(work: Sequence[Work]) -> None:
    """These stages inside a running session, each with its manifest once everything is there."""
    from mucs_ray.run.stages import train  # imports Ray's libraries, which a finished run does not need

    nodes: set[str] = set()
    for _, group in groupby(work, key=phase):
        together = list(group)
        nodes = checked_nodes(together, nodes)
        started = time.monotonic()
        if side_by_side := [each for each in together if train.is_training(*each)]:
            with told(side_by_side):
                for pipeline, name, output in train.train(side_by_side, now(side_by_side[0][0])):
                    finish(pipeline, pipeline.stage(name), output, started)
        for pipeline, names in passes([each for each in together if each not in side_by_side]):
            do_together(pipeline, names)


def passes(work: Sequence[Work]) -> Iterator[tuple[Pipeline, tuple[str, ...]]]:
    """What is done together, run by run: the stages of one pass over the training set, or a single stage."""
    for pipeline, those in groupby(work, key=lambda each: each[0]):
        inputs = {name: pipeline.stage(name).inputs for _, name in those}
        streamed = {name for name in inputs if name in pipeline.tasks and pipeline.tasks[name].streams}
        for names in in_passes(inputs, streamed, pipeline.recipe.engine.stages_per_pass):
            yield pipeline, names


def do_together(pipeline: Pipeline, names: Sequence[str]) -> None:
    """The stages of a pass, or a single stage. Those that fail are raised as one error once the others are finished."""
    from mucs_ray.run import stages

    started, errors = time.monotonic(), dict[str, MucsError]()
    with told([(pipeline, name) for name in names]):
        for name, output in stages.together(pipeline, names, now(pipeline)):
            if isinstance(output, MucsError):
                errors[name] = output
                fail(pipeline, name, output)
            else:
                finish(pipeline, pipeline.stage(name), output, started)
    if errors:
        raise joined(errors) if len(names) > 1 else errors[names[0]]


def joined(errors: Mapping[str, MucsError]) -> MucsError:
    """The failures of several stages in one line; of what kind the first is. `status` has the causes of all."""
    (name, first), *others = errors.items()
    more = f"; {len(others)} more stages failed, see mucs-ray status" if others else ""
    error = type(first)(f"{name}: {first}{more}")
    error.units = first.units
    return error


def now(pipeline: Pipeline) -> Cluster:
    """The cluster as it stands before a stage: nodes come and go, and there may be none for a while."""
    await_worker(lambda: pipeline.console.print("waiting for a first worker"))
    return Cluster.now(pipeline.recipe.engine)


@contextmanager
def told(work: Sequence[Work]) -> Iterator[None]:
    """Stages begin and fail in the run's events; what failed, and why, is in the stage's folder for `status`."""
    for pipeline, name in work:
        pipeline.events.add("stage begun", stage=name)
    try:
        yield
    except MucsError as error:
        for pipeline, name in work:
            if pipeline.stage(name).state().status != "done":
                fail(pipeline, name, error)
        raise
    finally:
        for pipeline, _ in work:
            pipeline.events.flush()


def fail(pipeline: Pipeline, name: str, error: MucsError) -> None:
    """Keep in the stage's folder, and in the events, why it could not be finished."""
    pipeline.stage(name).fail(str(error), error.units)
    pipeline.events.add("stage failed", stage=name, error=str(error), units=error.units)


def finish(pipeline: Pipeline, stage: Stage, output: tuple[dict[str, str], dict[str, Any]], started: float) -> None:
    """Publish the manifest, and say so. Where others ran beside it, a stage tells its own seconds."""
    files, facts = output
    facts = {"seconds": round(time.monotonic() - started, 2), **facts}
    versions = {"mucs-ray": __version__, **{name: version(name) for name in ("ray", "torch")}}
    stage.finish(files, {**facts, "versions": versions})
    pipeline.events.add("stage done", stage=stage.name, seconds=facts["seconds"])
    line = f"[green]done[/]  {stage.name}  [dim]{facts['seconds']:.1f} s[/]"
    pipeline.console.print(line, highlight=False, soft_wrap=True)


def write_report(pipeline: Pipeline) -> None:
    """report.html, and beside it the numbers."""
    from mucs_ray.results import report

    started = time.monotonic()
    finish(pipeline, pipeline.report(), report.write(pipeline), started)
