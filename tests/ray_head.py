"""A Ray that this process does not start by `ray.init`, but by `ray start --head` on loopback."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

OBJECT_STORE_BYTES = 100_000_000
PATIENCE_S = 120
SHUTDOWN_S = 10


@contextmanager
def ray_head(*options: str, port: int, environment: Mapping[str, str] | None = None) -> Iterator[Path]:
    """Yield the folder of its sessions; all processes that it has started end with it."""
    folder = Path(tempfile.mkdtemp(prefix="mucs-", dir="/tmp"))  # short: it is part of the names of sockets
    (folder / "ray_bootstrap_config.yaml").write_text("provider: {type: local}\n")  # so that Ray looks for no cloud
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", *options]
    command += ["--node-ip-address=127.0.0.1", f"--port={port}", f"--object-store-memory={OBJECT_STORE_BYTES}"]
    # Ray's processes start three times slower without .pyc files
    ours = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    ours |= {"RAY_TMPDIR": str(folder), "HOME": str(folder), **(environment or {})}
    log = folder / "head.log"
    with log.open("wb") as out:
        head = subprocess.Popen(command, cwd=folder, env=ours, stdout=out, stderr=out)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while "Ray runtime started" not in log.read_text():
            assert head.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield folder
    finally:
        head.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            head.wait(timeout=SHUTDOWN_S)
        for pid in processes_of(folder):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)


def processes_of(folder: Path) -> list[int]:
    """Return the processes of this Ray, whoever their parent is by now: RAY_TMPDIR is in each one's environment."""
    mark = f"RAY_TMPDIR={folder}\0".encode()
    pids = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and mark in (entry / "environ").read_bytes():
                pids.append(int(entry.name))
    return pids


def free_port() -> int:
    """Return a port on which nobody listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
