"""The pace of a streamed stage, measured over its first minute: told once, and read again by `mucs-ray plan`."""

from collections.abc import Mapping
from dataclasses import dataclass

PACE = "pace"
"""The event."""
MEASURED_S = 60.0


@dataclass(slots=True, kw_only=True)
class Pace:
    """Is fed what has come back so far, and the time; the first call is at the first receipt."""

    images: float
    """In the whole stage."""
    started_at: float | None = None
    """When the first receipt came."""
    printed: bool = False

    def line(self, totals: Mapping[str, float], *, at: float) -> str | None:
        """What a busy worker does, and what the whole stage will therefore take; once, MEASURED_S after the first call.

        `totals`: "rows", "forwards" and "worker_seconds" so far; `at`: seconds on any clock that does not go back.
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
    """Three digits or more: "0.0123", "12.3", "12,345"."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
