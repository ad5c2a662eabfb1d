"""Runs what is missing of one or several runs, phase by phase, in one Ray session."""

import time
from collections.abc import Sequence
from importlib.metadata import version
from itertools import groupby
from typing import Any

from mucs_ray import __version__, storage
from mucs_ray.engine.session import Cluster, session
from mucs_ray.pipeline import PHASES, Pipeline
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
    work = [each for each in todo if each[1] != "report"]
    if work:
        with session(pipelines[0].address, verbose=pipelines[0].verbose) as cluster:
            do(work, cluster)
    for pipeline, _ in (each for each in todo if each[1] == "report"):
        write_report(pipeline)
    return todo


def missing(pipelines: Sequence[Pipeline], command: str) -> list[Work]:
    """What is not done, all runs' trainings side by side, then all they generate, and so on."""
    plans = [(pipeline, pipeline.plan(command)) for pipeline in pipelines]
    todo = [(pipeline, name) for pipeline, plan in plans for name, state in plan.items() if state.status != "done"]
    return sorted(todo, key=lambda each: PHASES.index(phase(each)))


def phase(work: Work) -> str:
    """The first folder of a stage's name."""
    return work[1].split("/")[0]


def do(work: Sequence[Work], cluster: Cluster) -> None:
    """These stages, each with its manifest once everything is there."""
    from mucs_ray import steps  # imports Ray's libraries, which a finished run does not need
    from mucs_ray.steps import trainings

    for _, group in groupby(work, key=phase):
        together = list(group)
        started = time.monotonic()
        if side_by_side := [each for each in together if trainings.is_training(*each)]:
            for pipeline, name, output in trainings.train(side_by_side, cluster):
                finish(pipeline, pipeline.stage(name), output, started)
        for pipeline, name in together:
            if not trainings.is_training(pipeline, name):
                started = time.monotonic()
                finish(pipeline, pipeline.stage(name), steps.work(pipeline, name, cluster), started)


def finish(pipeline: Pipeline, stage: Stage, output: tuple[dict[str, str], dict[str, Any]], started: float) -> None:
    """Publish the manifest, and say so. A training tells its own seconds: others ran beside it."""
    files, facts = output
    facts = {"seconds": round(time.monotonic() - started, 2), **facts}
    versions = {"mucs-ray": __version__, **{name: version(name) for name in ("ray", "torch")}}
    stage.finish(files, {**facts, "versions": versions})
    told = f"[green]done[/]  {stage.name}  [dim]{facts['seconds']:.1f} s[/]"
    pipeline.console.print(told, highlight=False, soft_wrap=True)


def write_report(pipeline: Pipeline) -> None:
    """report.html, and beside it the numbers."""
    from mucs_ray import summary

    started = time.monotonic()
    finish(pipeline, pipeline.report(), summary.write(pipeline), started)
