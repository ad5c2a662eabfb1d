"""A watch reports the failures of units, and ends workers that hang."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import ray

from mucs_ray.engine import metrics
from mucs_ray.engine.attempts import ATTEMPTS, Attempt, AttemptTracker, Failure
from mucs_ray.engine.coordinator import POLL_S, Coordinator
from mucs_ray.engine.progress import Bar
from mucs_ray.engine.session import alive_node_ids

CHECK_INTERVAL_S = 2.0


class Watch:
    """A watch checks the attempts of stages that run together, at most every CHECK_INTERVAL_S."""

    def __init__(self, stages: Sequence[tuple[Coordinator, Bar]], timeout_s: float) -> None:
        """Count an attempt as hanging if it sent no heartbeat for `timeout_s` seconds."""
        self.stages, self.timeout_s = stages, timeout_s
        self.num_reported, self.checked_at = [0] * len(stages), 0.0
        self.workers = (0, 0)
        """The units that are worked on, and the nodes of the cluster, as last reported."""

    def check(self) -> list[tuple[str, Attempt]]:
        """Report what is new, and return the units whose attempts hang. The caller has to end their workers."""
        if time.monotonic() - self.checked_at < CHECK_INTERVAL_S:
            return []
        self.checked_at = time.monotonic()
        hanging = [
            item
            for coordinator, _ in self.stages
            for item in coordinator.call(AttemptTracker.end_overdue, self.timeout_s).items()
        ]
        self.report()
        return hanging

    def report(self) -> None:
        """Report failures and changes of the workers, on the terminal, in the events and in the metrics."""
        at_work = 0
        for number, (coordinator, bar) in enumerate(self.stages):
            failures, self.num_reported[number], working = coordinator.call(
                AttemptTracker.failures_since, self.num_reported[number]
            )
            at_work += working
            for failure in failures:
                report_failure(bar, failure)
        workers = (at_work, len(alive_node_ids()))
        for _, bar in self.stages:
            if workers != self.workers:
                bar.log_event("workers", at_work=workers[0], nodes=workers[1])
            if bar.events is not None:
                bar.events.flush_now_and_then()
        self.workers = workers


def report_failure(bar: Bar, failure: Failure) -> None:
    """Report one attempt that did not end well."""
    metrics.count_failure(bar.stage, failure.kind)
    place = f" on {failure.place}" if failure.place else ""
    outlook = "given up" if failure.error else f"tried at most {ATTEMPTS} times"
    line = f"{failure.unit}{place}: {failure.cause} ({outlook})"
    bar.print_event(line, "failure", unit=failure.unit, kind=failure.kind)


@contextmanager
def watching(stages: Sequence[tuple[Coordinator, Bar]], timeout_s: float) -> Iterator[None]:
    """Watch from a thread, and end actors that hang; Ray starts them again and gives them their unit again."""
    stopped = threading.Event()
    watch = Watch(stages, timeout_s)

    def run() -> None:
        while not stopped.wait(POLL_S):
            for _, attempt in watch.check():
                ray.kill(attempt.worker.actor, no_restart=False)

    thread = threading.Thread(target=run, daemon=True, name="watch")
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()
        watch.report()
