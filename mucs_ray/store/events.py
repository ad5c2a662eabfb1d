"""What happened in a run, for those who ask later: one JSONL file a command, in the run directory.

    <run>/events/20261122T101500-1a2b3c4d.jsonl   {"time": ..., "event": "stage done", "stage": ..., ...} a line

Object stores cannot append, so the file is published again whole, at most every PUBLISH_S. There is no event for each
unit that went well: the file stays small however large the training set is.
"""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from mucs_ray import storage

PUBLISH_S = 10.0


class EventLog:
    """The events of one command on one run."""

    def __init__(self, run_url: str) -> None:
        """Writes nothing before the first event."""
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid4().hex[:8]}.jsonl"
        self.url = storage.join(run_url, "events", name)
        self.lines: list[str] = []
        self.published, self.at = 0, 0.0
        self.lock = threading.Lock()

    def add(self, event: str, **facts: Any) -> None:  # noqa: ANN401 - JSON values
        """One event; in the file at the latest with the next `flush`."""
        with self.lock:
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            self.lines.append(json.dumps({"time": now, "event": event, **facts}, default=str))
        self.flush_now_and_then()

    def flush_now_and_then(self) -> None:
        """Publish what is new if that has not been done lately."""
        if time.monotonic() - self.at > PUBLISH_S:
            self.flush()

    def flush(self) -> None:
        """Publish what is new."""
        with self.lock:
            if len(self.lines) == self.published:
                return
            self.at = time.monotonic()
            with suppress(OSError):  # the next one tries again; no run ends because of its log
                storage.publish(self.url, ("\n".join(self.lines) + "\n").encode())
                self.published = len(self.lines)


def read_events(run_url: str) -> Iterator[dict[str, Any]]:
    """All events of a run, the commands in the order they began."""
    folder = storage.join(run_url, "events")
    for name in sorted(storage.names(folder)):
        yield from map(json.loads, storage.read_bytes(storage.join(folder, name)).splitlines())
