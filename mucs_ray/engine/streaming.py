"""In a streaming pass Ray Data reads the units of the training set and sends them through a pool of resident scorers.

One pass serves all stages that stream at the same time: each unit is read and decoded once, and every stage that has no
part of it yet makes its own. Stages fail independently, because each counts its attempts with a coordinator of its own.
Units without a part after a pass are streamed again, so a resumed run, a lost worker and a first run take the same
code. The pool grows when nodes join, and shrinks when the work runs out.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import ray
import ray.data

from mucs_ray import storage
from mucs_ray.data.table import Unit
from mucs_ray.engine.attempts import AttemptTracker, given_up_error
from mucs_ray.engine.attributors import AttributeJob, Refs
from mucs_ray.engine.coordinator import Coordinator, new_coordinator
from mucs_ray.engine.pace import PACE, Pace
from mucs_ray.engine.progress import Bar
from mucs_ray.engine.reading import Reader, read_units
from mucs_ray.engine.scoring import PassStage, Receipt, Scorer
from mucs_ray.engine.session import READER_CPUS, Cluster, configure_ray_data
from mucs_ray.errors import MucsError
from mucs_ray.store.parts import unit_part

TOTALS = ("rows", "forwards", "worker_seconds", "worker_seconds_outside")
"""The fields of receipts that are summed for a stage."""


@dataclass(slots=True, kw_only=True)
class StreamedStage:
    """This is one stage of a pass on the driver: which units are missing, and what has come back."""

    job: AttributeJob
    refs: Refs
    bar: Bar
    files: list[str]
    """All files of the stage: a part for each unit, and the settings that tuning found before the pass."""
    units: Sequence[Unit]
    """The units without a part before the pass."""
    missing: Sequence[Unit] = ()
    """The units without a part now."""
    digests: dict[str, str] = field(default_factory=dict)
    """The sha256 of the files that this command published."""
    totals: dict[str, Any] = field(default_factory=lambda: dict.fromkeys(TOTALS, 0))
    """Sums over the receipts."""
    coordinator: Coordinator = field(default_factory=new_coordinator)
    pace: Pace = field(init=False)

    def __post_init__(self) -> None:
        """Count every unit as missing before the pass."""
        self.missing, self.pace = self.units, Pace(images=self.bar.total)

    @property
    def pass_stage(self) -> PassStage:
        """Return the stage as the scorers of the next pass know it."""
        return PassStage(
            job=self.job, coordinator=self.coordinator, units=frozenset(unit.name for unit in self.missing)
        )

    @property
    def reader(self) -> Reader:
        """Return the stage as the readers of the next pass know it."""
        job = self.job
        return Reader(
            source=job.source,
            features=job.features,
            timeout=job.recipe.engine.timeout,
            coordinator=self.coordinator,
            units=frozenset(unit.name for unit in self.missing),
        )

    @property
    def num_failures(self) -> int:
        """Return the number of attempts at units that have failed so far."""
        return self.coordinator.call(AttemptTracker.failures_since, 0)[1]

    def add(self, receipt: Receipt, cluster: Cluster) -> None:
        """Count a part that is published."""
        self.digests[self.job.stage.part(receipt.unit, "parquet")] = receipt.sha256
        for name in TOTALS:
            self.totals[name] += getattr(receipt, name)
        rate = self.totals["forwards"] / self.bar.elapsed
        self.bar.advance(receipt.rows, f"{rate:,.0f} forwards/s" if rate else "")
        if line := self.pace.line(self.totals, at=self.bar.elapsed):
            facts = {**self.totals, "processor": cluster.processor, "fingerprint": self.job.stage.fingerprint}
            self.bar.print_event(line, PACE, **facts)

    def count_failures(self, cause: str, num_known: int) -> None:
        """After a pass, count units without a part as failed, and keep those that are not given up to be streamed
        again.

        They fail with this cause, unless another was recorded after the first `num_known` failures.
        """
        parts = {*self.digests, *storage.names(self.job.stage.folder)}
        missing = [unit for unit in self.missing if unit_part(self.job.stage, unit) not in parts]
        reported = {failure.unit for failure in self.coordinator.call(AttemptTracker.failures_since, num_known)[0]}
        for unit in missing:
            if unit.name not in reported:
                self.coordinator.call(AttemptTracker.record_error, unit.name, cause)
        given_up = self.coordinator.call(AttemptTracker.given_up)
        self.missing = [unit for unit in missing if unit.name not in given_up]

    def error(self) -> MucsError | None:
        """Return the error for the units that were given up, or None if there are none."""
        given_up = self.coordinator.call(AttemptTracker.given_up)
        return given_up_error(given_up, len(self.units)) if given_up else None


@contextmanager
def scorer_pool(stages: Sequence[StreamedStage], cluster: Cluster) -> Iterator[Iterator[Receipt]]:
    """Run one pass over the units that any of the stages lacks, and give their receipts in the order in which they
    come.
    """
    configure_ray_data()
    pass_stages, pool = [stage.pass_stage for stage in stages], new_coordinator()
    units = {unit.name: unit for stage in stages for unit in stage.missing}
    smallest, largest = pool_size(cluster, len(units))
    names = ray.data.from_items(list(units), override_num_blocks=len(units))
    rows = names.map_batches(
        read_units,  # pyright: ignore[reportArgumentType]
        fn_args=(units, [stage.reader for stage in stages]),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.TaskPoolStrategy(size=min(num_readers(largest), len(units))),
        num_cpus=READER_CPUS,
    )
    receipts = rows.map_batches(
        Scorer,
        fn_constructor_args=(pass_stages, [stage.refs for stage in stages], units, pool),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(min_size=smallest, max_size=largest, max_tasks_in_flight_per_actor=2),
        num_cpus=cluster.worker_options["num_cpus"],
        num_gpus=cluster.worker_options["num_gpus"],
    )
    try:
        yield (Receipt(**row) for row in receipts.iter_rows())
    finally:
        # Ray Data ends its pool when nothing refers to it any more, which after a failure may be never; the trainings
        # that follow could then not be placed
        for scorer in pool.call(AttemptTracker.take_workers):
            ray.kill(scorer.actor)


def pool_size(cluster: Cluster, num_units: int) -> tuple[int, int]:
    """Return the smallest and the largest size of the pool.

    They are those of `engine.actors`, else what there is room for, and more as nodes join, but never more than there
    are units. All of the smallest pool is requested at once, which makes an autoscaler bring nodes.
    """
    smallest, largest = cluster.engine.actors
    smallest, largest = min(smallest or cluster.num_workers, num_units), min(largest or num_units, num_units)
    return min(smallest, largest), largest


def num_readers(max_scorers: int) -> int:
    """Return the number of tasks that read side by side.

    Reading a unit takes a fraction of the time of scoring it, and each reader is a process of its own, so a small pool
    needs no more than two.
    """
    return max(2, max_scorers // 4)
