"""The driver runs the missing stages of one or several runs, phase by phase, in one Ray session."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.markup import escape

from mucs_ray import __version__, storage
from mucs_ray.config.engine import EngineConfig
from mucs_ray.engine.session import Cluster, alive_node_ids, await_worker, session
from mucs_ray.errors import MucsError
from mucs_ray.pipeline.graph import PHASES, Pipeline, StageRef
from mucs_ray.pipeline.lds_stages import LDS
from mucs_ray.pipeline.passes import in_passes
from mucs_ray.pipeline.recipe_file import RECIPE_FILE, read_recorded_run
from mucs_ray.run.notices import notices
from mucs_ray.store.run import Stage

RESULTS = (LDS, "report")
"""The stages that only read what others have made, and need no Ray."""


def run(pipelines: Sequence[Pipeline], command: str) -> list[StageRef]:
    """Run the missing stages that a command needs, and return them. The same call resumes an interrupted one."""
    missing = missing_stages(pipelines, command)
    if not missing:
        return []
    for pipeline in pipelines:
        if pipeline.model_run is not None and read_recorded_run(pipeline.model_run.run_url) is None:
            record(pipeline.model_run)
        record(pipeline)
        pipeline.events.add("command", command=command, version=__version__)
    for pipeline in pipelines:
        for line in notices(pipeline, [ref.name for ref in missing if ref.pipeline is pipeline]):
            pipeline.console.print(f"[dim]{escape(line)}[/]", highlight=False, soft_wrap=True)
    results = [ref for ref in missing if ref.name in RESULTS]
    if others := [ref for ref in missing if ref.name not in RESULTS]:
        with session(pipelines[0].address, verbose=pipelines[0].verbose):
            run_stages(others)
    for ref in results:
        write_result(ref)
        ref.pipeline.events.flush()
    return missing


def record(pipeline: Pipeline) -> None:
    """Publish recipe.json, by which the run directory is understood."""
    storage.publish_json(storage.join(pipeline.run_url, RECIPE_FILE), pipeline.describe())


def missing_stages(pipelines: Sequence[Pipeline], command: str) -> list[StageRef]:
    """Return the stages that are not done, phase by phase: first the trainings of all runs, then what they generate."""
    plans = [(pipeline, pipeline.plan(command)) for pipeline in pipelines]
    missing = [
        StageRef(pipeline, name) for pipeline, plan in plans for name, state in plan.items() if state.status != "done"
    ]
    # a user's pictures are read before anything is trained, so that a bad one is reported at once
    return sorted(
        missing, key=lambda ref: (not (ref.pipeline.queries and ref.name == "generate"), PHASES.index(ref.phase))
    )


def run_stages(refs: Sequence[StageRef]) -> None:
    """Run these stages inside a running session, and publish the manifest of each once all of its files exist.

    If stages of a pass fail, the others are finished first; then one error is raised for all that failed.
    """
    from mucs_ray.run.stages import run_together  # imports Ray's libraries, which a finished run does not need

    checked_nodes: dict[str, set[str]] = {}
    for together in batches(refs):
        check_new_nodes([ref.pipeline.run_url for ref in together], checked_nodes)
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
    """Yield, in order, the stages that run together: a phase's trainings or models, the stages of a pass, or a single
    stage.
    """
    for _, phase in groupby(refs, key=lambda ref: ref.phase):
        stages = list(phase)
        if together := [ref for ref in stages if ref.joins_its_phase]:
            yield together
        others = [ref for ref in stages if not ref.joins_its_phase]
        for pipeline, of_run in groupby(others, key=lambda ref: ref.pipeline):
            own = {ref.name: ref for ref in of_run}
            inputs = {name: pipeline.stage(name).inputs for name in own}
            streamed = [name for name, ref in own.items() if ref.streams]
            for names in in_passes(inputs, streamed, pipeline.recipe.engine.stages_per_pass):
                yield [own[name] for name in names]


def check_new_nodes(run_urls: Sequence[str], checked: dict[str, set[str]]) -> None:
    """Raise MachineError if a node has joined that does not see a run directory, since its work would be lost.

    `checked` holds the nodes that were checked before, by run directory, and is updated.
    """
    from mucs_ray.engine.nodes import check_shared

    nodes = alive_node_ids()
    for url in dict.fromkeys(run_urls):
        if len(nodes) > 1 and nodes - checked.get(url, set()):
            check_shared(url)
        checked[url] = nodes


def combined_error(errors: Mapping[str, MucsError]) -> MucsError:
    """Return one error, of the class of the first, for the failures of several stages; `status` shows all causes."""
    (name, first), *others = errors.items()
    more = f"; {len(others)} more stages failed, see mucs-ray status" if others else ""
    error = type(first)(f"{name}: {first}{more}")
    error.units = first.units
    return error


def current_cluster(engine: EngineConfig, console: Console) -> Cluster:
    """Return the present cluster, after waiting for a worker: nodes join and leave between stages."""
    await_worker(lambda: console.print("waiting for a first worker"))
    return Cluster.now(engine)


@contextmanager
def record_stage_events(refs: Sequence[StageRef]) -> Iterator[None]:
    """Record events when these stages begin and fail; a failure is also recorded in the stage's folder for `status`."""
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
    """Record in the stage's folder, and in the events, why the stage could not be finished."""
    pipeline, name = ref
    pipeline.stage(name).fail(str(error), error.units)
    pipeline.events.add("stage failed", stage=name, error=str(error), units=error.units)


def finish(pipeline: Pipeline, stage: Stage, output: tuple[dict[str, str], dict[str, Any]], started: float) -> None:
    """Publish the manifest and print a line. A stage of a pass has its own share of the `seconds` in its facts."""
    files, facts = output
    facts = {"seconds": round(time.monotonic() - started, 2), **facts}
    versions = {"mucs-ray": __version__, **{name: version(name) for name in ("ray", "torch")}}
    stage.finish(files, {**facts, "versions": versions})
    pipeline.events.add("stage done", stage=stage.name, seconds=facts["seconds"])
    line = f"[green]done[/]  {stage.name}  [dim]{facts['seconds']:.1f} s[/]"
    pipeline.console.print(line, highlight=False, soft_wrap=True)


def write_result(ref: StageRef) -> None:
    """Write the scores of the LDS, or report.html with its numbers in the folder report/."""
    from mucs_ray.results import lds, report

    started, (pipeline, name) = time.monotonic(), ref
    write = lds.write if name == LDS else report.write
    finish(pipeline, pipeline.stage(name), write(pipeline), started)
