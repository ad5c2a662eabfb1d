"""The driver's eye on units that others work on: what failed is told, what hangs is ended."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import ray

from mucs_ray.engine import metrics
from mucs_ray.engine.attempts import ATTEMPTS, Attempt, Failure
from mucs_ray.engine.board import POLL_S, Board
from mucs_ray.engine.progress import Bar
from mucs_ray.engine.session import alive_nodes

LOOK_S = 2.0


class Watch:
    """Looks every LOOK_S at the sheets of attempts of stages that are done together."""

    def __init__(self, stages: Sequence[tuple[Board, Bar]], timeout_s: float) -> None:
        """`timeout_s` without a sign of life is a hang."""
        self.stages, self.timeout_s = stages, timeout_s
        self.known, self.looked = [0] * len(stages), 0.0
        self.crew = (0, 0)

    def look(self) -> list[tuple[str, Attempt]]:
        """Tell what is new; returns the units whose attempts hang, for whoever asks to end their workers."""
        if time.monotonic() - self.looked < LOOK_S:
            return []
        self.looked = time.monotonic()
        late = [each for board, _ in self.stages for each in board.overdue(self.timeout_s).items()]
        self.tell()
        return late

    def tell(self) -> None:
        """Failures and changes of the crew, on the terminal, in the events and in the metrics."""
        at_work = 0
        for number, (board, bar) in enumerate(self.stages):
            failures, self.known[number], working = board.news(self.known[number])
            at_work += working
            for each in failures:
                tell_failure(bar, each)
        crew = (at_work, len(alive_nodes()))
        for _, bar in self.stages:
            if crew != self.crew:
                bar.log("crew", at_work=crew[0], nodes=crew[1])
            if bar.events is not None:
                bar.events.flush_now_and_then()
        self.crew = crew


def tell_failure(bar: Bar, failure: Failure) -> None:
    """One attempt that did not end well."""
    metrics.attempt_failed(bar.stage, failure.kind)
    place = f" on {failure.place}" if failure.place else ""
    told = "given up" if failure.error else f"tried at most {ATTEMPTS} times"
    line = f"{failure.unit}{place}: {failure.cause} ({told})"
    bar.tell(line, "failure", unit=failure.unit, kind=failure.kind)


@contextmanager
def watching(stages: Sequence[tuple[Board, Bar]], timeout_s: float) -> Iterator[None]:
    """Look on from a thread, and end actors that hang; Ray starts them again and gives them their unit again."""
    over = threading.Event()
    watch = Watch(stages, timeout_s)

    def run() -> None:
        while not over.wait(POLL_S):
            for _, attempt in watch.look():
                ray.kill(attempt.worker.actor, no_restart=False)

    thread = threading.Thread(target=run, daemon=True, name="watch")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        watch.tell()
