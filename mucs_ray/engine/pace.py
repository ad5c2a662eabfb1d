"""The pace of a streamed stage is measured over its first minute; it is printed once, and `mucs-ray plan` reads it."""

from collections.abc import Mapping
from dataclasses import dataclass

PACE = "pace"
"""The name of the event in the run's log."""
MEASURED_S = 60.0


@dataclass(slots=True, kw_only=True)
class Pace:
    """This measures the pace from the totals so far; the first call is at the first receipt."""

    images: float
    """The number of images in the whole stage."""
    started_at: float | None = None
    """The time of the first receipt."""
    printed: bool = False

    def line(self, totals: Mapping[str, float], *, at: float) -> str | None:
        """Return a line on a worker's rate and the duration of the whole stage, once, MEASURED_S after the first call.

        `totals` has the sums "rows", "forwards" and "worker_seconds" so far; `at` is the time in seconds on any clock
        that does not go back. The line is None before that, and after it was returned.
        """
        self.started_at = at if self.started_at is None else self.started_at
        if self.printed or at - self.started_at < MEASURED_S:
            return None
        self.printed = True
        rows, forwards, seconds = totals["rows"], totals["forwards"], totals["worker_seconds"]
        rate = f"{readable(forwards / seconds)} forwards/s" if forwards else f"{readable(rows / seconds)} images/s"
        hours = readable(self.images * seconds / rows / 3600)
        return f"a busy worker does {rate}, so the whole stage will take {hours} worker-hours"


def readable(number: float) -> str:
    """Format a number with three digits or more: "0.0123", "12.3", "12,345"."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
