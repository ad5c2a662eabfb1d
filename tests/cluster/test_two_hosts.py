"""Two hosts with addresses of their own (network namespaces) score real CIFAR-10 images; one host's cable is pulled.

The cut host works on for a while and writes to the shared disk late; it writes what the others write.
The test is slow, and needs root and `ip`. `-s` prints the times of the events.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

DATA = Path(os.environ.get("MUCS_RAY_TEST_DATA") or Path(__file__).parents[3] / "shared" / "data")
SCRIPT = DATA / "unpack_cifar10.py"
NET, PORT = "10.77.0", 26379
NOTICED = {"health_check_period_ms": 1000, "health_check_timeout_ms": 5000, "health_check_failure_threshold": 3}
"""With these settings a silent host is noticed after some 18 seconds, not after a minute."""
RECIPE = """
name = "two-hosts"
data = "{data}"
[model]
width = 32
depth = 2
num_heads = 4
condition_channels = 32
patch_size = 4
[train]
updates = 100
updates_per_epoch = 50
batch_size = 32
[generate]
items = 2
controls = 0
steps = 4
[method.mucs]
batch_size = 16
null_batches = 2
max_updates = 5
[score]
noises = 6
[engine]
train_workers = 1
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(
        os.geteuid() != 0 or not shutil.which("ip"), reason="needs root and `ip` for network namespaces"
    ),
    pytest.mark.skipif(not SCRIPT.is_file(), reason=f"no CIFAR-10 at {DATA} (set MUCS_RAY_TEST_DATA)"),
]


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@contextmanager
def bridge() -> Iterator[None]:
    ip("link", "add", "br-mucs", "type", "bridge")
    try:
        ip("addr", "add", f"{NET}.1/24", "dev", "br-mucs")
        ip("link", "set", "br-mucs", "up")
        yield
    finally:
        ip("link", "del", "br-mucs")


@contextmanager
def host(number: int) -> Iterator[str]:
    """Yield the name of a network namespace on the bridge, which is also the name of its cable."""
    name = f"mucs{number}"
    ip("netns", "add", name)
    try:
        ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("link", "set", name, "master", "br-mucs", "up")
        for words in (["addr", "add", f"{NET}.{number}/24", "dev", "eth0"], ["link", "set", "eth0", "up"]):
            ip("-n", name, *words)
        ip("-n", name, "link", "set", "lo", "up")
        yield name
    finally:
        left = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout.split()
        for pid in left:
            os.kill(int(pid), signal.SIGKILL)
        ip("netns", "del", name)


@contextmanager
def ray_node(*words: str, inside: tuple[str, ...] = ()) -> Iterator[None]:
    """Run a Ray node as long as the `with` block runs."""
    command = [*inside, sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *words]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(timeout=60)


def wait_for(nodes: int) -> None:
    """Wait until this many nodes are alive."""
    from ray._raylet import GcsClient

    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with suppress(Exception):
            listed = GcsClient(address=f"{NET}.1:{PORT}").get_all_node_info(timeout=5)
            if sum(node.state == 0 for node in listed.values()) >= nodes:
                return
        time.sleep(0.5)
    raise TimeoutError(f"{nodes} nodes did not come")


@contextmanager
def two_hosts(folder: Path) -> Iterator[str]:
    """Yield the address of a cluster of a head without CPUs and two hosts with one CPU each."""
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        (folder / "ray_bootstrap_config.yaml").write_text("provider: {type: local}\n")
        for name, value in {"HOME": str(folder), "RAY_TMPDIR": str(folder), "OMP_NUM_THREADS": "1"}.items():
            patch.setenv(name, value)
        for name in ("PYTHONDONTWRITEBYTECODE", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"):
            patch.delenv(name, raising=False)
        stack.enter_context(bridge())
        hosts = [stack.enter_context(host(number)) for number in (2, 3)]
        common = ("--object-store-memory=100000000",)
        head = ("--head", f"--port={PORT}", f"--node-ip-address={NET}.1", "--num-cpus=0", "--include-dashboard=false")
        stack.enter_context(ray_node(*head, *common, f"--system-config={json.dumps(NOTICED)}"))
        wait_for(1)
        for number, name in enumerate(hosts, start=2):
            options = (f"--address={NET}.1:{PORT}", f"--node-ip-address={NET}.{number}", "--num-cpus=1", *common)
            stack.enter_context(ray_node(*options, inside=("ip", "netns", "exec", name)))
            wait_for(number)
        yield f"{NET}.1:{PORT}"


def prepare(folder: Path) -> None:
    """Prepare a fifth of CIFAR-10, and a recipe with a small DiT."""
    unpack = [sys.executable, str(SCRIPT), str(folder / "original"), "--batches", "1"]
    subprocess.run(unpack, check=True, capture_output=True)
    (folder / "tiny.toml").write_text(RECIPE.format(data=folder / "data"))
    command = ["data", "prepare", "cifar10", "--source", str(folder / "original"), "--out", str(folder / "data")]
    subprocess.run([sys.executable, "-m", "mucs_ray.cli", *command], check=True, capture_output=True)


def scores(run: Path) -> dict[str, bytes]:
    folder = run / "attribute" / "mucs"
    return {file.name: file.read_bytes() for file in [*sorted((folder / "score").glob("train-*")), folder / "topk.csv"]}


def test_a_host_is_cut_off_in_the_middle(tmp_path: Path):
    prepare(tmp_path)
    short = Path(tempfile.mkdtemp(prefix="two-", dir="/tmp"))
    with pytest.MonkeyPatch.context() as patch, two_hosts(short) as address:
        patch.setenv("MUCS_RAY_CACHE", str(tmp_path / "cache"))
        patch.setenv("RAY_AUTH_MODE", "disabled")
        options = ["--dataset", str(tmp_path / "data"), "--recipe", str(tmp_path / "tiny.toml"), "--address", address]
        command = [sys.executable, "-m", "mucs_ray.cli", "attribute", *options, "--run"]
        started = time.monotonic()
        process = subprocess.Popen(
            [*command, str(tmp_path / "cut")], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        folder = tmp_path / "cut" / "attribute" / "mucs" / "score"
        while len(list(folder.glob("train-*"))) < 8:
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.2)
        ip("link", "set", "mucs3", "down")
        cut_s, num_parts = time.monotonic() - started, len(list(folder.glob("train-*")))
        out, _ = process.communicate(timeout=900)
        assert process.returncode == 0, out
        print(f"\ncut after {cut_s:.0f} s with {num_parts} parts, done after {time.monotonic() - started:.0f} s")
        ip("link", "set", "mucs3", "up")
        calm = subprocess.run([*command, str(tmp_path / "calm")], capture_output=True, text=True, timeout=900)
        assert calm.returncode == 0, calm.stderr
    for file in (tmp_path / "cut" / "events").iterdir():
        print("\n".join(line for line in file.read_text().splitlines() if '"workers"' in line or '"failure"' in line))
    assert scores(tmp_path / "cut") == scores(tmp_path / "calm")
