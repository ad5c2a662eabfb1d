"""Functions that find and kill our own processes by their titles, which Ray gives its workers."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def pids_of(title: str) -> list[int]:
    """Return the descendants of this process whose title contains a text; a raylet that this process started is one."""
    pids = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and title in (entry / "cmdline").read_text() and is_ours(int(entry.name)):
                pids.append(int(entry.name))
        except OSError:
            continue
    return pids


def is_ours(pid: int) -> bool:
    """Return True for a descendant of this process."""
    while pid > 1:
        pid = parent_of(pid)
        if pid == os.getpid():
            return True
    return False


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@contextmanager
def killing(title: str, when: Callable[[], bool], *, parent: bool = False) -> Iterator[list[int]]:
    """Send SIGKILL to one process of this title as soon as `when` holds.

    With `parent`, its parent is killed first: the raylet of a worker.
    """
    killed: list[int] = []
    over = threading.Event()

    def watch() -> None:
        while not over.is_set() and not killed:
            if when() and (pids := pids_of(title)):
                if parent:
                    os.kill(parent_of(pids[0]), signal.SIGKILL)
                with suppress(ProcessLookupError):
                    os.kill(pids[0], signal.SIGKILL)
                killed.append(pids[0])
            time.sleep(0.01)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()
