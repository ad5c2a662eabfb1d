"""A cluster without workers starts some when the plain command needs them, and stops them after it; `-s` shows when."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from ray.autoscaler.v2.sdk import get_cluster_status

from autoscaling_tools import autoscaling_cluster
from mucs_ray.engine.session import Cluster, await_worker, node_infos, session
from tiny import tiny_dataset, tiny_toml

MAX_WORKERS = 2
PATIENCE_S = 400

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with autoscaling_cluster(MAX_WORKERS) as running:
        yield running


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Write a recipe without settings of the engine."""
    data = tiny_dataset(tmp_path / "data")
    file = tmp_path / "tiny.toml"
    file.write_text(tiny_toml(data.url))
    return file


def start(recipe: Path, run: str, *options: str) -> subprocess.Popen[bytes]:
    """Start `mucs-ray attribute` in a process of its own."""
    command = [sys.executable, "-m", "mucs_ray.cli", "attribute", "--recipe", str(recipe), *options]
    with recipe.with_name(f"{run}.log").open("wb") as log:
        return subprocess.Popen([*command, "--run", str(recipe.with_name(run))], stdout=log, stderr=log)


def num_workers() -> int:
    return sum(node["Resources"].get("CPU", 0) > 0 for node in node_infos())


def work_waits(address: str) -> bool:
    """Return True if some work cannot be placed until another worker joins."""
    demands = get_cluster_status(address).resource_demands
    return bool(demands.ray_task_actor_demand or demands.placement_group_demand)


def watch(process: subprocess.Popen[bytes], address: str) -> Iterator[tuple[float, str]]:
    """Yield the time and the number of workers when it changes, or when work begins or ceases to wait.

    It ends when the command has ended and no workers are left.
    """
    last, deadline = (-1, False), time.monotonic() + PATIENCE_S
    while process.poll() is None or last[0]:
        assert time.monotonic() < deadline
        if (now := (num_workers(), work_waits(address))) != last:
            last = now
            yield time.time(), f"{now[0]} workers{', work waits' if now[1] else ''}"
        time.sleep(0.2)


def events_of(run: Path) -> Iterator[tuple[float, str]]:
    for file in (run / "events").iterdir():
        for line in file.read_text().splitlines():
            event = json.loads(line)
            when = datetime.fromisoformat(event.pop("time")).timestamp()
            yield when, " ".join(str(value) for value in event.values())


def first_part(run: Path) -> tuple[float, str]:
    """Return the time at which the scores of a first unit were published."""
    return min(file.stat().st_mtime for file in run.glob("attribute/mucs/score/train-*")), "first unit scored"


def results(run: Path) -> dict[str, bytes]:
    """Return the content of the scores and of the files from which they were made."""
    files = [*run.glob("attribute/mucs/**/*.parquet"), *run.glob("**/*.safetensors"), run / "attribute/mucs/topk.csv"]
    return {str(file.relative_to(run)): file.read_bytes() for file in files if "state." not in file.name}


def test_a_first_worker_is_waited_for(address: str):
    """Without MUCS_RAY_MAX_CPUS, the first machine that joins shows what the cluster has: GPUs, say."""
    workers_while_waiting = []
    with session(address) as before:
        assert (before.grows, before.slots) == (False, 0)
        await_worker(lambda: workers_while_waiting.append(num_workers()))
        assert workers_while_waiting == [0] and num_workers() == Cluster.now().slots == 1


def test_the_plain_command_from_no_workers_to_no_workers(address: str, recipe: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MUCS_RAY_CACHE", str(recipe.with_name("cache")))
    alone = start(recipe, "alone")
    assert alone.wait(PATIENCE_S) == 0, recipe.with_name("alone.log").read_text()

    monkeypatch.setenv("MUCS_RAY_MAX_CPUS", str(MAX_WORKERS))
    with session(address) as cluster:
        while num_workers():  # those of the other test
            time.sleep(0.2)
        assert (cluster.cpus, cluster.slots, cluster.grows) == (MAX_WORKERS, MAX_WORKERS, True)
        begun = time.time()
        command = start(recipe, "scaled", "--address", address)
        workers = list(watch(command, address))
    assert command.returncode == 0, recipe.with_name("scaled.log").read_text()
    scaled = recipe.with_name("scaled")
    for when, event in sorted([*workers, *events_of(scaled), first_part(scaled)]):
        print(f"{when - begun:6.1f} s  {event}")
    counts = [text for _, text in workers]
    assert f"{MAX_WORKERS} workers" in counts and counts[0] == counts[-1] == "0 workers"
    assert len(results(scaled)) > 10 and results(scaled) == results(recipe.with_name("alone"))
