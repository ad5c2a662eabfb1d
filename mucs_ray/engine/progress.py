"""Workers report progress to the coordinator, and the driver shows it as a bar or as plain lines.

A terminal gets one live line with rate and time left; a log gets a line every 30 seconds and one at the end.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from mucs_ray.store.events import EventLog

LOG_INTERVAL_S = 30.0


class Bar:
    """A bar shows one stage's progress in the stage's own unit; `set` and `advance` change it."""

    def __init__(self, console: Console, stage: str, total: float, unit: str, events: EventLog | None) -> None:
        """Start a bar; callers use the function `bar`."""
        self.console, self.stage, self.total, self.unit, self.events = console, stage, total, unit, events
        self.title = stage.removeprefix("attribute/").replace("/", " ")
        self.done, self.detail, self.done_before = 0.0, "", 0.0
        self.started_at = self.logged_at = time.monotonic()
        self.first_seen: tuple[float, float] | None = None
        """When the first progress came, and how much was done then: what came before was the start of workers."""
        self.live: Progress | None = None
        self.task = TaskID(0)

    def start_at(self, done: float) -> None:
        """Count what an earlier run finished as done; the rate leaves it out."""
        self.done_before = self.done = done
        self._show()

    def set(self, done: float, detail: str = "") -> None:
        """Set the absolute progress, and a short detail to show beside it, e.g. a loss."""
        self.done, self.detail = done, detail or self.detail
        if self.first_seen is None and done > self.done_before:
            self.first_seen = time.monotonic(), done
        self._show()

    def advance(self, more: float, detail: str = "") -> None:
        """Add to the progress."""
        self.set(self.done + more, detail)

    @property
    def elapsed(self) -> float:
        """Return the seconds since the start of this run."""
        return max(time.monotonic() - self.started_at, 1e-9)

    @property
    def rate(self) -> float:
        """Return units a second since the first progress, or since the start of this run if there was but one step."""
        if self.first_seen is not None and self.done > self.first_seen[1]:
            at, done = self.first_seen
            return (self.done - done) / max(time.monotonic() - at, 1e-9)
        return (self.done - self.done_before) / self.elapsed

    def line(self) -> str:
        """Return a line for logs, e.g. "score 512/1713 images, 71.3/s, 0:17 left"."""
        detail = f", {self.detail}" if self.detail else ""
        counts = f"{self.title}  {self.done:g}/{self.total:g} {self.unit}"
        if self.first_seen is None:
            return f"{counts}, starting workers{detail}"
        left = (self.total - self.done) / self.rate if self.rate > 0 else float("inf")
        left_text = f", {int(left // 60)}:{int(left % 60):02d} left" if 0 < left < 1e7 else ""
        return f"{counts}, {self.rate:.3g}/s{left_text}{detail}"

    def log_event(self, event: str, **facts: Any) -> None:  # noqa: ANN401 - JSON values
        """Write an event of this stage to the run's log."""
        if self.events is not None:
            self.events.add(event, stage=self.stage, **facts)

    def print_event(self, line: str, event: str, **facts: Any) -> None:  # noqa: ANN401 - JSON values
        """Print a line for the user, and write it to the run's log as an event."""
        self.console.print(f"[yellow]{self.title}:[/] {escape(line)}", highlight=False, soft_wrap=True)
        self.log_event(event, line=line, **facts)

    def _show(self) -> None:
        if self.live is not None:
            rate = "starting workers" if self.first_seen is None else f"{self.rate:.3g} {self.unit}/s"
            self.live.update(self.task, completed=self.done, detail=self.detail, rate=rate)
        elif time.monotonic() - self.logged_at >= LOG_INTERVAL_S:
            self.logged_at = time.monotonic()
            self.console.print(self.line(), highlight=False, soft_wrap=True)


def shows_widgets(console: Console) -> bool:
    """Return whether this is a notebook in which rich can show a bar, which takes ipywidgets."""
    return console.is_jupyter and find_spec("ipywidgets") is not None


@contextmanager
def bar(console: Console, stage: str, total: float, unit: str, events: EventLog | None = None) -> Iterator[Bar]:
    """Show progress while the block runs, under the stage's name, e.g. "mucs unlearn"."""
    with bars(console, [stage], total, unit, events) as (progress_bar,):
        yield progress_bar


@contextmanager
def bars(
    console: Console, stages: Sequence[str], total: float, unit: str, events: EventLog | None = None
) -> Iterator[list[Bar]]:
    """Show the progress of stages that run together, one line for each."""
    progress_bars = [Bar(console, stage, total, unit, events) for stage in stages]
    if not (console.is_terminal or shows_widgets(console)):
        yield progress_bars
        for stage_bar in progress_bars:
            if stage_bar.done > stage_bar.done_before:
                console.print(stage_bar.line(), highlight=False, soft_wrap=True)
        return
    columns = [TextColumn("{task.description:<10}"), BarColumn(bar_width=28), MofNCompleteColumn()]
    columns += [TextColumn("{task.fields[rate]}"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()]
    columns += [TextColumn("[dim]{task.fields[detail]}")]
    with Progress(*columns, console=console, transient=False) as live:
        for stage_bar in progress_bars:
            stage_bar.live = live
            stage_bar.task = live.add_task(stage_bar.title, total=total, detail="", rate="starting workers")
        yield progress_bars
