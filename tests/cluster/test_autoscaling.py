"""A cluster that has no workers: the plain command makes them come, and when it has ended they go. `-s` shows when."""

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

MOST = 2
PATIENCE_S = 400

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with autoscaling_cluster(MOST) as running:
        yield running


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Says nothing of the engine."""
    data = tiny_dataset(tmp_path / "data")
    file = tmp_path / "tiny.toml"
    file.write_text(tiny_toml(data.url))
    return file


def start(recipe: Path, run: str, *options: str) -> subprocess.Popen[bytes]:
    """mucs-ray attribute, in a process of its own."""
    command = [sys.executable, "-m", "mucs_ray.cli", "attribute", "--recipe", str(recipe), *options]
    with recipe.with_name(f"{run}.log").open("wb") as log:
        return subprocess.Popen([*command, "--run", str(recipe.with_name(run))], stdout=log, stderr=log)


def num_workers() -> int:
    return sum(node["Resources"].get("CPU", 0) > 0 for node in node_infos())


def work_waits(address: str) -> bool:
    """Whether something cannot be placed until another worker comes."""
    demands = get_cluster_status(address).resource_demands
    return bool(demands.ray_task_actor_demand or demands.placement_group_demand)


def watch(process: subprocess.Popen[bytes], address: str) -> Iterator[tuple[float, str]]:
    """(time, workers and whether work waits) whenever it changes, until the command has ended and all have gone."""
    known, deadline = (-1, False), time.monotonic() + PATIENCE_S
    while process.poll() is None or known[0]:
        assert time.monotonic() < deadline
        if (found := (num_workers(), work_waits(address))) != known:
            known = found
            yield time.time(), f"{found[0]} workers{', work waits' if found[1] else ''}"
        time.sleep(0.2)


def events_of(run: Path) -> Iterator[tuple[float, str]]:
    for file in (run / "events").iterdir():
        for line in file.read_text().splitlines():
            event = json.loads(line)
            when = datetime.fromisoformat(event.pop("time")).timestamp()
            yield when, " ".join(str(value) for value in event.values())


def first_part(run: Path) -> tuple[float, str]:
    """When scores of a first unit were there."""
    return min(file.stat().st_mtime for file in run.glob("attribute/mucs/score/train-*")), "first unit scored"


def made(run: Path) -> dict[str, bytes]:
    """The scores, and all they were made from."""
    files = [*run.glob("attribute/mucs/**/*.parquet"), *run.glob("**/*.safetensors"), run / "attribute/mucs/topk.csv"]
    return {str(file.relative_to(run)): file.read_bytes() for file in files if "state." not in file.name}


def test_a_first_worker_is_waited_for(address: str):
    """If nobody says what can come, the first machine shows it: its GPUs, say, if it has some."""
    waits = []
    with session(address) as before:
        assert (before.grows, before.slots) == (False, 0)
        await_worker(lambda: waits.append(num_workers()))
        assert waits == [0] and num_workers() == Cluster.now().slots == 1


def test_the_plain_command_from_no_workers_to_no_workers(address: str, recipe: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MUCS_RAY_CACHE", str(recipe.with_name("cache")))
    alone = start(recipe, "alone")
    assert alone.wait(PATIENCE_S) == 0, recipe.with_name("alone.log").read_text()

    monkeypatch.setenv("MUCS_RAY_MAX_CPUS", str(MOST))
    with session(address) as cluster:
        while num_workers():  # of the other test
            time.sleep(0.2)
        assert (cluster.cpus, cluster.slots, cluster.grows) == (MOST, MOST, True)
        begun = time.time()
        command = start(recipe, "scaled", "--address", address)
        workers = list(watch(command, address))
    assert command.returncode == 0, recipe.with_name("scaled.log").read_text()
    scaled = recipe.with_name("scaled")
    for when, what in sorted([*workers, *events_of(scaled), first_part(scaled)]):
        print(f"{when - begun:6.1f} s  {what}")
    counts = [what for _, what in workers]
    assert f"{MOST} workers" in counts and counts[0] == counts[-1] == "0 workers"
    assert len(made(scaled)) > 10 and made(scaled) == made(recipe.with_name("alone"))
