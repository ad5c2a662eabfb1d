"""Runs what is missing of one or several runs, phase by phase, in one Ray session."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from itertools import groupby
from typing import Any

from rich.console import Console

from mucs_ray import __version__, storage
from mucs_ray.config.engine import EngineConfig
from mucs_ray.engine.session import Cluster, alive_node_ids, await_worker, session
from mucs_ray.errors import MucsError
from mucs_ray.pipeline.graph import PHASES, Pipeline, StageRef
from mucs_ray.pipeline.passes import in_passes
from mucs_ray.store.run import Stage


def run(pipelines: Sequence[Pipeline], command: str) -> list[StageRef]:
    """Do what a command needs and is missing; returns the stages done now. The same call resumes an interrupted one."""
    missing = missing_stages(pipelines, command)
    if not missing:
        return []
    for pipeline in pipelines:
        storage.publish_json(storage.join(pipeline.run_url, "recipe.json"), pipeline.describe())
        pipeline.events.add("command", command=command, version=__version__)
    reports = [ref for ref in missing if ref.name == "report"]
    if others := [ref for ref in missing if ref.name != "report"]:
        with session(pipelines[0].address, verbose=pipelines[0].verbose):
            run_stages(others)
    for pipeline, _ in reports:
        write_report(pipeline)
        pipeline.events.flush()
    return missing


def missing_stages(pipelines: Sequence[Pipeline], command: str) -> list[StageRef]:
    """The stages that are not done, phase by phase: all runs' trainings side by side, then all they generate, ..."""
    plans = [(pipeline, pipeline.plan(command)) for pipeline in pipelines]
    missing = [
        StageRef(pipeline, name) for pipeline, plan in plans for name, state in plan.items() if state.status != "done"
    ]
    return sorted(missing, key=lambda ref: PHASES.index(ref.phase))


def run_stages(refs: Sequence[StageRef]) -> None:
    """Do these stages inside a running session, and publish the manifest of each once all of its files are there.

    Stages of one pass that fail are raised as one error once the others are finished.
    """
    from mucs_ray.run.stages import run_together  # imports Ray's libraries, which a finished run does not need

    checked: dict[str, set[str]] = {}
    for together in batches(refs):
        check_new_nodes([ref.pipeline.run_url for ref in together], checked)
        started, errors = time.monotonic(), dict[str, MucsError]()
        first = together[0].pipeline
        with record_stage_events(together):
            cluster = current_cluster(first.recipe.engine, first.console)
            for ref, output in run_together(together, cluster):
                if isinstance(output, MucsError):
                    errors[ref.name] = output
                    fail(ref, output)
                else:
                    finish(ref.pipeline, ref.pipeline.stage(ref.name), output, started)
        if errors:
            raise combined_error(errors) if len(together) > 1 else errors[together[0].name]


def batches(refs: Sequence[StageRef]) -> Iterator[list[StageRef]]:
    """What is done at once, in order: the trainings of a phase, the stages of a pass over the data, or a single one."""
    for _, phase in groupby(refs, key=lambda ref: ref.phase):
        stages = list(phase)
        if trainings := [ref for ref in stages if ref.is_training]:
            yield trainings
        others = [ref for ref in stages if not ref.is_training]
        for pipeline, of_run in groupby(others, key=lambda ref: ref.pipeline):
            own = {ref.name: ref for ref in of_run}
            inputs = {name: pipeline.stage(name).inputs for name in own}
            streamed = [name for name, ref in own.items() if ref.streams]
            for names in in_passes(inputs, streamed, pipeline.recipe.engine.stages_per_pass):
                yield [own[name] for name in names]


def check_new_nodes(run_urls: Sequence[str], checked: dict[str, set[str]]) -> None:
    """MachineError if a node has come that does not see a run directory: its work would be lost.

    `checked` has the nodes that were looked at before, by run directory, and is brought up to date.
    """
    from mucs_ray.engine.nodes import check_shared

    nodes = alive_node_ids()
    for url in dict.fromkeys(run_urls):
        if len(nodes) > 1 and nodes - checked.get(url, set()):
            check_shared(url)
        checked[url] = nodes


def combined_error(errors: Mapping[str, MucsError]) -> MucsError:
    """The failures of several stages in one line, of the kind of the first one. `status` has the causes of all."""
    (name, first), *others = errors.items()
    more = f"; {len(others)} more stages failed, see mucs-ray status" if others else ""
    error = type(first)(f"{name}: {first}{more}")
    error.units = first.units
    return error


def current_cluster(engine: EngineConfig, console: Console) -> Cluster:
    """The cluster as it stands before a stage: nodes come and go, and there may be none for a while."""
    await_worker(lambda: console.print("waiting for a first worker"))
    return Cluster.now(engine)


@contextmanager
def record_stage_events(refs: Sequence[StageRef]) -> Iterator[None]:
    """Record that stages begin and fail; what failed, and why, is also in the stage's folder for `status`."""
    for pipeline, name in refs:
        pipeline.events.add("stage begun", stage=name)
    try:
        yield
    except MucsError as error:
        for ref in refs:
            if ref.pipeline.stage(ref.name).state().status != "done":
                fail(ref, error)
        raise
    finally:
        for pipeline, _ in refs:
            pipeline.events.flush()


def fail(ref: StageRef, error: MucsError) -> None:
    """Keep in the stage's folder, and in the events, why it could not be finished."""
    pipeline, name = ref
    pipeline.stage(name).fail(str(error), error.units)
    pipeline.events.add("stage failed", stage=name, error=str(error), units=error.units)


def finish(pipeline: Pipeline, stage: Stage, output: tuple[dict[str, str], dict[str, Any]], started: float) -> None:
    """Publish the manifest, and print a line. A stage that others ran beside has its own `seconds` in its facts."""
    files, facts = output
    facts = {"seconds": round(time.monotonic() - started, 2), **facts}
    versions = {"mucs-ray": __version__, **{name: version(name) for name in ("ray", "torch")}}
    stage.finish(files, {**facts, "versions": versions})
    pipeline.events.add("stage done", stage=stage.name, seconds=facts["seconds"])
    line = f"[green]done[/]  {stage.name}  [dim]{facts['seconds']:.1f} s[/]"
    pipeline.console.print(line, highlight=False, soft_wrap=True)


def write_report(pipeline: Pipeline) -> None:
    """Write report.html, and beside it the numbers."""
    from mucs_ray.results import report

    started = time.monotonic()
    finish(pipeline, pipeline.report(), report.write(pipeline), started)
