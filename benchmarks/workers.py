"""What does Ray cost, and how does scoring scale with workers on one machine?

    python benchmarks/workers.py [--workers 1 2] [--units 4] [--seconds 20] [--rounds 3]

Cuts a synthetic training set into units that take a worker about `seconds` each, by a rate that is measured first. In
every round `units` of them are scored in a plain loop in this process, and then, for each number of workers w, `units`
x w of them by w scorers of a Ray that is started for it. The method is built anew each time.

`wall` is the time from the beginning of the first unit to the last receipt; `start` is what went before: Ray, its
processes, the model in them. Overhead = wall with Ray and 1 worker / wall of the plain loop - 1, and again with the
start counted. Efficiency = rate of w workers / (w x rate of 1 worker), rate = forwards / wall.
"""

import argparse
import io
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from models import DEVICE, Subject, add_options, machine, parts, seconds, subject
from rich.console import Console
from synthetic import SHAPES, write

from mucs_ray.config.recipe import build, with_settings, with_values
from mucs_ray.data.table import Unit, read_unit
from mucs_ray.engine import streaming
from mucs_ray.engine.attributors import build as build_method
from mucs_ray.engine.models import to_arrays, to_tensors
from mucs_ray.engine.progress import Bar
from mucs_ray.engine.scoring import Receipt, score_unit
from mucs_ray.engine.session import session
from mucs_ray.engine.unit_rows import Rows
from mucs_ray.engine.watch import watching
from mucs_ray.pipeline.graph import Pipeline, StageRef
from mucs_ray.run import driver
from mucs_ray.run.stages import attribute
from mucs_ray.store.parts import unit_part

UNLEARN, SCORE = "attribute/mucs/unlearn", "attribute/mucs/score"
BEFORE = ("pretrain", "generate", "attribute/mucs/null", UNLEARN)
QUICK = (
    "train.updates=1",
    "train.batch_size=4",
    "engine.train_workers=1",
    "generate.controls=0",
    "generate.steps=2",
    "method.mucs.max_updates=1",
    "method.mucs.batch_size=4",
    "method.mucs.bound=1.0",
)
"""Settings that make the stages before scoring quick; its speed does not depend on the weights."""
PROBE_S, PROBED = 2.0, 256
"""The seconds of measuring the rate, and the largest number of images for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wall:
    """The wall time of some units."""

    start_s: float
    """The seconds before the first unit was begun."""
    units_s: float
    forwards: int

    @property
    def rate(self) -> float:
        """Return forwards per second."""
        return self.forwards / self.units_s


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MUCS_RAY_CACHE"] = f"{folder}/cache"
        pipeline = unlearned(options, folder)
        units = pipeline.dataset.units("train")
        size = f"{units[0].rows} images x {pipeline.recipe.score.noises} noises x {1 + options.items} models"
        print(f"{pipeline.recipe.name}: units of {size}, {options.units} units a worker")
        print("round  how            start s    wall s  forwards/s  overhead  with start  efficiency")
        measured = [one_round(pipeline, units, options, number) for number in range(1, options.rounds + 1)]
    for name in measured[0]:
        values = [shares[name] for shares in measured]
        print(f"{name}: {statistics.median(values):.2%} ({min(values):.2%} .. {max(values):.2%})")


def one_round(pipeline: Pipeline, units: Sequence[Unit], options: argparse.Namespace, number: int) -> dict[str, float]:
    """Run the plain loop, then Ray with each number of workers; print a line each and return the shares."""
    plain = plain_loop(pipeline, units[: options.units])
    print(line(number, "plain loop", plain), flush=True)
    shares, one = {}, plain
    for workers in sorted({1, *options.workers}):
        wall = with_ray(pipeline, units[: options.units * workers], workers)
        row = line(number, f"Ray, {workers} worker{'s' * (workers > 1)}", wall)
        if workers == 1:
            one = wall
            shares["overhead"] = wall.units_s / plain.units_s - 1
            shares["overhead with start"] = (wall.start_s + wall.units_s) / plain.units_s - 1
            print(f"{row} {shares['overhead']:>9.2%} {shares['overhead with start']:>11.2%}", flush=True)
        else:
            shares[f"efficiency of {workers} workers"] = efficiency = wall.rate / (workers * one.rate)
            print(f"{row} {efficiency:>33.2%}", flush=True)
    return shares


def line(number: int, how: str, wall: Wall) -> str:
    """Format one line of the table."""
    return f"{number:>5}  {how:<14} {wall.start_s:>7.2f} {wall.units_s:>9.2f} {wall.rate:>11,.4g}"


def plain_loop(pipeline: Pipeline, units: Sequence[Unit]) -> Wall:
    """Run the inner loop of a worker and nothing around it."""
    started = time.monotonic()
    job = attribute.attribute_job(pipeline, pipeline.method_stages[SCORE])
    weights, *_ = parts(pipeline.run_url, "pretrain", pipeline.recipe.train.checkpoint)
    method = build_method(job, to_arrays(weights))
    bank = parts(pipeline.run_url, UNLEARN, "item-")
    method.load({}, [to_tensors(to_arrays(tensors), DEVICE) for tensors in bank])
    begun = time.monotonic()
    receipts = [score_unit(method, job, unit, Rows(read_unit(unit))) for unit in units]
    units_s = time.monotonic() - begun
    return Wall(start_s=begun - started, units_s=units_s, forwards=sum(receipt.forwards for receipt in receipts))


def with_ray(pipeline: Pipeline, units: Sequence[Unit], workers: int) -> Wall:
    """Run the pipeline's streaming pass (mucs_ray.run.stages.one_pass), keeping each receipt."""
    pipeline = replace(pipeline, recipe=with_values(pipeline.recipe, {"engine.actors": (workers, workers)}))
    started = over = time.time()
    receipts: dict[str, Receipt] = {}
    with session():
        cluster, spec = driver.current_cluster(pipeline.recipe.engine, pipeline.console), pipeline.method_stages[SCORE]
        job, inputs = attribute.attribute_job(pipeline, spec), attribute.input_refs(pipeline, spec)
        bar = Bar(pipeline.console, SCORE, len(units), "units", None)
        stage = streaming.StreamedStage(job=job, refs=inputs, bar=bar, files=[], units=units)
        watched = [(stage.coordinator, bar)]
        with watching(watched, cluster.engine.timeout), streaming.scorer_pool([stage], cluster) as published:
            for receipt in published:
                receipts[receipt.unit], over = receipt, time.time()
    # a worker has begun a unit so long before it published the part
    files = {unit.name: Path(job.stage.url(unit_part(job.stage, unit))) for unit in units}
    begun = min(file.stat().st_mtime - receipts[name].worker_seconds for name, file in files.items())
    forwards = sum(receipt.forwards for receipt in receipts.values())
    return Wall(start_s=begun - started, units_s=over - begun, forwards=forwards)


def unlearned(options: argparse.Namespace, folder: str) -> Pipeline:
    """Prepare a run with everything that scoring needs, and units of the right size."""
    model = subject(options, f"{folder}/probe", images=PROBED, settings=options.set).tuned(0)
    print(model.how)
    rows = max(1, round(options.seconds * probed_rate(model) / model.forwards_an_image))
    size, classes = SHAPES[options.model]
    count = rows * options.units * max(options.workers)
    dataset = write(f"{folder}/data", count, size=size, classes=classes, unit=rows)
    settings = [f"data={dataset.url}", f"generate.items={options.items}", *QUICK]
    recipe = build(with_settings(model.recipe.to_dict(), settings))
    pipeline = Pipeline.open(recipe, dataset, f"{folder}/run", console=Console(file=io.StringIO()))
    with session():
        driver.run_stages([StageRef(pipeline, name) for name in BEFORE])
    return pipeline


def probed_rate(model: Subject) -> float:
    """Return forwards per second in this process, over PROBE_S or more."""
    change, batch, count, took = model.loss_change(), model.images(PROBED), 1, 0.0
    change.losses(batch[:1])
    while took < PROBE_S and count < len(batch):
        count = min(2 * count, len(batch))
        took = seconds(partial(change.losses, batch[:count]))
    return count * model.forwards_an_image / took


def parse() -> argparse.Namespace:
    """Parse the command line."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(options)
    options.set_defaults(run=None)
    options.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    options.add_argument("--units", type=int, default=4, help="a worker")
    options.add_argument("--seconds", type=float, default=20, help="of a unit, about")
    options.add_argument("--rounds", type=int, default=3)
    return options.parse_args()


if __name__ == "__main__":
    main()
