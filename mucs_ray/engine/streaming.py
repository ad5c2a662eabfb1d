"""The streaming pass: Ray Data reads the units of the training set and sends them through a pool of resident scorers.

One pass serves all stages that stream at the same time: each unit is read and decoded once, and every stage that has no
part of it yet makes its own. A stage fails by itself: its attempts at units are counted by a coordinator of its own.
What has no part after a pass is streamed again: a resumed run, a lost worker and a first run are the same code. The
pool grows when nodes join, and shrinks when the work runs out.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
import ray.data
import ray.exceptions

from mucs_ray import storage
from mucs_ray.data.table import Unit
from mucs_ray.engine.attempts import explain
from mucs_ray.engine.attributors import AttributeJob, Refs
from mucs_ray.engine.coordinator import Coordinator, last_line, new_coordinator
from mucs_ray.engine.pace import PACE, Pace
from mucs_ray.engine.progress import Bar
from mucs_ray.engine.reading import Reader, read_units
from mucs_ray.engine.scoring import Member, Receipt, Scorer
from mucs_ray.engine.session import READER_CPUS, Cluster, quiet_data
from mucs_ray.engine.watch import watching
from mucs_ray.errors import MucsError
from mucs_ray.store.parts import unit_part

TOTALS = ("rows", "forwards", "worker_seconds", "worker_seconds_outside")
"""What the receipts of a stage are added up to."""


@dataclass(slots=True, kw_only=True)
class Streamed:
    """A stage of a pass, on the driver: what is missing of it, and what has come back."""

    job: AttributeJob
    refs: Refs
    bar: Bar
    units: Sequence[Unit]
    """Those without a part before the pass, ..."""
    todo: Sequence[Unit] = ()
    """... and of them those without one now."""
    digests: dict[str, str] = field(default_factory=dict)
    """sha256 by part."""
    totals: dict[str, Any] = field(default_factory=lambda: dict.fromkeys(TOTALS, 0))
    """Over the receipts."""
    coordinator: Coordinator = field(default_factory=new_coordinator)
    pace: Pace = field(init=False)

    def __post_init__(self) -> None:
        """Nothing has come yet."""
        self.todo, self.pace = self.units, Pace(images=self.bar.total)

    @property
    def member(self) -> Member:
        """For the workers of the next pass."""
        return Member(job=self.job, coordinator=self.coordinator, units=frozenset(unit.name for unit in self.todo))

    @property
    def reader(self) -> Reader:
        """What the readers of the next pass need to know of this stage."""
        job = self.job
        return Reader(
            source=job.source,
            features=job.features,
            timeout=job.recipe.engine.timeout,
            coordinator=self.coordinator,
            units=frozenset(unit.name for unit in self.todo),
        )

    def take(self, receipt: Receipt, cluster: Cluster) -> None:
        """A part is there."""
        self.digests[self.job.stage.part(receipt.unit, "parquet")] = receipt.sha256
        for name in TOTALS:
            self.totals[name] += getattr(receipt, name)
        rate = self.totals["forwards"] / self.bar.elapsed
        self.bar.advance(receipt.rows, f"{rate:,.0f} forwards/s" if rate else "")
        if line := self.pace.line(self.totals, at=self.bar.elapsed):
            facts = {**self.totals, "processor": cluster.processor, "fingerprint": self.job.stage.fingerprint}
            self.bar.print_event(line, PACE, **facts)

    def look_again(self, cause: str, known: int) -> None:
        """After a pass: what has no part has failed, by this cause unless one was told after `known` others."""
        there = {*self.digests, *storage.names(self.job.stage.folder)}
        todo = [unit for unit in self.todo if unit_part(self.job.stage, unit) not in there]
        told = {each.unit for each in self.coordinator.failures_since(known)[0]}
        for unit in todo:
            if unit.name not in told:
                self.coordinator.failed(unit.name, cause)
        given_up = self.coordinator.given_up()
        self.todo = [unit for unit in todo if unit.name not in given_up]

    def error(self) -> MucsError | None:
        """What to tell of the units that were given up, if any were."""
        given_up = self.coordinator.given_up()
        return explain(given_up, len(self.units)) if given_up else None


def run_pass(stages: Sequence[Streamed], *, cluster: Cluster) -> None:
    """Stream until every unit has a part of every stage, or is given up.

    What has no part after a pass is streamed again, in new workers.
    """
    by_name = {stage.job.stage.name: stage for stage in stages}
    while todo := [stage for stage in stages if stage.todo]:
        known = [stage.coordinator.failures_since(0)[1] for stage in todo]
        cause = "it has no part, and nobody said why"
        try:
            with watching([(stage.coordinator, stage.bar) for stage in todo], cluster.engine.timeout):
                for receipt in stream(todo, cluster):
                    by_name[receipt.stage].take(receipt, cluster)
        except ray.exceptions.RayError as error:
            cause = last_line(error)
        for stage, before in zip(todo, known, strict=True):
            stage.look_again(cause, before)


def stream(stages: Sequence[Streamed], cluster: Cluster) -> Iterator[Receipt]:
    """One pass over the units that any of the stages lacks; receipts in the order they come."""
    quiet_data()
    members, pool = [stage.member for stage in stages], new_coordinator()
    units = {unit.name: unit for stage in stages for unit in stage.todo}
    least, most = pool_size(cluster, len(units))
    names = ray.data.from_items(list(units), override_num_blocks=len(units))
    rows = names.map_batches(
        read_units,  # pyright: ignore[reportArgumentType]
        fn_args=(units, [stage.reader for stage in stages]),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.TaskPoolStrategy(size=min(num_readers(most), len(units))),
        num_cpus=READER_CPUS,
    )
    done = rows.map_batches(
        Scorer,
        fn_constructor_args=(members, [stage.refs for stage in stages], units, pool),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(min_size=least, max_size=most, max_tasks_in_flight_per_actor=2),
        num_cpus=cluster.worker_options["num_cpus"],
        num_gpus=cluster.worker_options["num_gpus"],
    )
    try:
        for row in done.iter_rows():
            yield Receipt(**row)
    finally:
        # Ray Data ends its pool when nothing refers to it any more, which after a failure may be never; the trainings
        # that follow could then not be placed
        for scorer in pool.take_workers():
            ray.kill(scorer.actor)


def pool_size(cluster: Cluster, num_units: int) -> tuple[int, int]:
    """(smallest, largest) pool: as asked, else all there is room for, and more as nodes join; never more than units.

    All of the smallest pool is asked for at once, which is what makes an autoscaler bring nodes.
    """
    least, most = cluster.engine.actors
    least, most = min(least or cluster.num_workers, num_units), min(most or num_units, num_units)
    return min(least, most), most


def num_readers(most_scorers: int) -> int:
    """The number of tasks that read side by side. Reading a unit takes a fraction of the time of scoring it, and each
    reader is a process of its own, so a small pool needs no more than two.
    """
    return max(2, most_scorers // 4)
