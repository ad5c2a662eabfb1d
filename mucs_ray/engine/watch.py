"""The driver's eye on units that others work on: what failed is told, what hangs is ended."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from mucs_ray.engine import metrics
from mucs_ray.engine.attempts import ATTEMPTS, Attempt
from mucs_ray.engine.board import POLL_S, Board
from mucs_ray.engine.progress import Bar
from mucs_ray.engine.session import alive_nodes

LOOK_S = 2.0


class Watch:
    """Looks at a board's sheet of attempts every LOOK_S."""

    def __init__(self, board: Board, bar: Bar, timeout_s: float) -> None:
        """`timeout_s` without a sign of life is a hang."""
        self.board, self.bar, self.timeout_s = board, bar, timeout_s
        self.known, self.looked = 0, 0.0
        self.crew = (0, 0)

    def look(self) -> dict[str, Attempt]:
        """Tell what is new; returns the attempts that hang, for whoever asks to end their workers."""
        if time.monotonic() - self.looked < LOOK_S:
            return {}
        self.looked = time.monotonic()
        late = self.board.overdue(self.timeout_s)
        self.tell()
        return late

    def tell(self) -> None:
        """Failures and changes of the crew, on the terminal, in the events and in the metrics."""
        failures, self.known, at_work = self.board.news(self.known)
        for each in failures:
            metrics.attempt_failed(self.bar.stage, each.kind)
            place = f" on {each.place}" if each.place else ""
            told = "given up" if each.error else f"tried at most {ATTEMPTS} times"
            self.bar.tell(f"{each.unit}{place}: {each.cause} ({told})", "failure", unit=each.unit, kind=each.kind)
        crew = (at_work, len(alive_nodes()))
        if crew != self.crew:
            self.crew = crew
            self.bar.log("crew", at_work=crew[0], nodes=crew[1])
        if self.bar.events is not None:
            self.bar.events.flush_now_and_then()


@contextmanager
def watching(board: Board, bar: Bar, timeout_s: float) -> Iterator[None]:
    """Look on from a thread, and end actors that hang; Ray starts them again and gives them their unit again."""
    over = threading.Event()
    watch = Watch(board, bar, timeout_s)

    def run() -> None:
        while not over.wait(POLL_S):
            for attempt in watch.look().values():
                ray.kill(attempt.worker.actor, no_restart=False)

    thread = threading.Thread(target=run, daemon=True, name="watch")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        watch.tell()
