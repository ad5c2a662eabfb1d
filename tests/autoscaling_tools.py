"""A Ray cluster that grows and shrinks by itself, on loopback: Ray's autoscaler v2 with machines that are processes.

The wheel's own `AutoscalingCluster` reads a file that is not packaged, and stops every Ray of the machine.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ray.cluster_utils import FAKE_HEAD_NODE_ID

from cluster_tools import OBJECT_STORE_BYTES

IDLE_S = 12
"""A worker without work is taken away after so long."""
PATIENCE_S = 120


@contextmanager
def autoscaling_cluster(max_workers: int = 2) -> Iterator[str]:
    """Its address: a head without CPUs, and 0 to `max_workers` workers with one CPU each, as the work asks for them."""
    folder = Path(tempfile.mkdtemp(prefix="mucs-", dir="/tmp"))  # short: it is part of the names of sockets
    (folder / "ray_bootstrap_config.yaml").write_text("provider: {type: local}\n")  # so that Ray looks for no cloud
    address = f"127.0.0.1:{free_port()}"
    (folder / "autoscaler.json").write_text(json.dumps(autoscaler_config(address, max_workers)))
    head = start_head(folder, address)
    try:
        wait_for_head(head, folder / "head.log")
        yield address
    finally:
        head.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            head.wait(timeout=20)
        for pid in processes_of(folder):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def autoscaler_config(address: str, max_workers: int) -> dict:
    """What `ray up` takes, with a provider of machines that starts processes."""
    worker = {"CPU": 1, "object_store_memory": OBJECT_STORE_BYTES}
    return {
        "cluster_name": "tests",
        "max_workers": max_workers,
        "idle_timeout_minutes": IDLE_S / 60,
        "upscaling_speed": 1.0,
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "launch_multiple": True,
            "head_node_id": FAKE_HEAD_NODE_ID,
            "gcs_address": address,
        },
        "auth": {},
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {"resources": worker, "node_config": {}, "min_workers": 0, "max_workers": max_workers},
        },
        "head_node_type": "ray.head.default",
        "file_mounts": {},
        "cluster_synced_files": [],
        "initialization_commands": [],
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
    }


def start_head(folder: Path, address: str) -> subprocess.Popen[bytes]:
    """Ray's head and the autoscaler, in processes that all have RAY_TMPDIR = `folder`."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | {
        "RAY_TMPDIR": str(folder),
        "HOME": str(folder),
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
    }
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    command += ["--node-ip-address=127.0.0.1", f"--port={address.rpartition(':')[2]}", "--num-cpus=0"]
    command += [f"--object-store-memory={OBJECT_STORE_BYTES}", "--include-dashboard=false"]
    command += [f"--autoscaling-config={folder / 'autoscaler.json'}"]
    with (folder / "head.log").open("wb") as log:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)


def wait_for_head(head: subprocess.Popen[bytes], log: Path) -> None:
    """Until it says that it is there."""
    deadline = time.monotonic() + PATIENCE_S
    while "Ray runtime started" not in log.read_text():
        assert head.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


def processes_of(folder: Path) -> list[int]:
    """What was started for this cluster, whoever its parent is by now."""
    mark = f"RAY_TMPDIR={folder}\0".encode()
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and mark in (entry / "environ").read_bytes():
                found.append(int(entry.name))
    return found
