"""Finding and killing processes of our own, by their titles: Ray names its workers."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def pids_of(title: str) -> list[int]:
    """Descendants of this process whose title holds a text; a raylet that this process started is one of them."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and title in (entry / "cmdline").read_text() and is_ours(int(entry.name)):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def is_ours(pid: int) -> bool:
    """Whether a process descends from this one."""
    while pid > 1:
        pid = parent_of(pid)
        if pid == os.getpid():
            return True
    return False


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@contextmanager
def killing(title: str, when: Callable[[], bool], *, parent: bool = False) -> Iterator[list[int]]:
    """SIGKILL one process of that title as soon as `when` holds; first its parent, if asked: of a worker the raylet."""
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
