"""The events of a run, kept for later: one JSONL file for each command, in the run directory.

    <run>/events/20261122T101500-1a2b3c4d.jsonl   {"time": ..., "event": "stage done", "stage": ..., ...} a line

Object stores cannot append, so the whole file is published again, at most every PUBLISH_S seconds. Units that succeed
have no events: the file stays small however large the training set is.
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
        """Choose the file's name; nothing is written before the first event."""
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid4().hex[:8]}.jsonl"
        self.url = storage.join(run_url, "events", name)
        self.lines: list[str] = []
        self.published, self.at = 0, 0.0
        self.lock = threading.Lock()

    def add(self, event: str, **facts: Any) -> None:  # noqa: ANN401 - JSON values
        """Add one event, which is in the file after the next `flush` at the latest."""
        with self.lock:
            timestamp = datetime.now(UTC).isoformat(timespec="milliseconds")
            self.lines.append(json.dumps({"time": timestamp, "event": event, **facts}, default=str))
        self.flush_now_and_then()

    def flush_now_and_then(self) -> None:
        """Publish new events unless that was done in the last PUBLISH_S seconds."""
        if time.monotonic() - self.at > PUBLISH_S:
            self.flush()

    def flush(self) -> None:
        """Publish new events."""
        with self.lock:
            if len(self.lines) == self.published:
                return
            self.at = time.monotonic()
            with suppress(OSError):  # the next flush tries again; a run must not fail because of its log
                storage.publish(self.url, ("\n".join(self.lines) + "\n").encode())
                self.published = len(self.lines)


def read_events(run_url: str) -> Iterator[dict[str, Any]]:
    """Yield all events of a run, with the commands in the order in which they began."""
    folder = storage.join(run_url, "events")
    for name in sorted(storage.names(folder)):
        yield from map(json.loads, storage.read_bytes(storage.join(folder, name)).splitlines())
