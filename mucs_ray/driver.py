"""Runs a pipeline's missing stages, one after the other, in one Ray session."""

import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from mucs_ray import __version__, storage
from mucs_ray.engine.session import Cluster, session
from mucs_ray.pipeline import Pipeline


def run(pipeline: Pipeline, target: str) -> list[str]:
    """Do what is needed and missing; returns the stages done now. The same call resumes an interrupted one."""
    todo = [short for short, state in pipeline.plan(target).items() if state.status != "done"]
    if not todo:
        return []
    storage.publish_json(storage.join(pipeline.run_url, "recipe.json"), pipeline.describe())
    if todo == ["report"]:
        do(pipeline, "report", None)
        return todo
    with session(pipeline.address, verbose=pipeline.verbose) as cluster:
        for short in todo:
            do(pipeline, short, cluster)
    return todo


def do(pipeline: Pipeline, short: str, cluster: Cluster | None) -> None:
    """One stage, and its manifest once everything is there."""
    from mucs_ray import steps  # imports Ray's libraries, which a finished run does not need

    started = time.monotonic()
    work: Callable[..., tuple[dict[str, str], dict[str, Any]]] = getattr(steps, short)
    files, facts = work(pipeline, cluster)
    seconds = round(time.monotonic() - started, 2)
    versions = {"mucs-ray": __version__, **{name: version(name) for name in ("ray", "torch")}}
    pipeline.stages[short].finish(files, {**facts, "seconds": seconds, "versions": versions})
    pipeline.console.print(f"[green]done[/]  {short}  [dim]{seconds:.1f} s[/]", highlight=False)
