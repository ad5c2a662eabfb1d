"""Kill a scorer, a node or the driver before and after each step of a unit, and a training: the same bits come out.

Each cell is the command line in a process of its own on a cluster of a head and two nodes, where it scores with given
weights. After a kill of the driver the same command is given again. `-s` prints the table of docs/promises.md. All of
this is slow; `make test` kills a worker in engine/test_attempts and the driver in cli/test_main_job.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import strikes

from cluster_tools import Nodes, two_nodes
from mucs_ray.engine.session import node_infos, session
from processes import killing
from tiny import tiny_dataset, tiny_toml
from tiny_run import trained_weights

pytestmark = pytest.mark.slow

METHOD = "strikes:StruckMUCS"
NUM_IMAGES, NUM_ITEMS = 60, 2
TRAINING = ("train.updates=300", "train.updates_per_epoch=20")


@dataclass(frozen=True, kw_only=True)
class Place:
    """A cluster, a data set, and an undisturbed run on it."""

    nodes: Nodes
    folder: Path

    def command(self, name: str, run: str, *settings: str) -> list[str]:
        told = ["--dataset", str(self.folder / "data"), "--recipe", str(self.folder / "tiny.toml")]
        told += ["--run", f"struck://{self.folder / run}", "--method", METHOD, "--address", self.nodes.address]
        if name == "attribute":
            told += ["--weights", str(self.folder / "weights.safetensors")]
        told += [part for setting in settings for part in ("--set", setting)]
        return [sys.executable, "-m", "mucs_ray.cli", name, *told]

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(self.command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def run(self, *arguments: str) -> str:
        process = self.start(*arguments)
        out, _ = process.communicate(timeout=300)
        assert process.returncode == 0, out
        return out

    def copy(self, run: str) -> None:
        """The undisturbed run without its scores."""
        shutil.copytree(self.folder / "calm", self.folder / run)
        shutil.rmtree(self.folder / run / "attribute" / METHOD / "score")
        for name in ("manifest.json", "plan.json", "scores.parquet", "topk.csv"):
            (self.folder / run / "attribute" / METHOD / name).unlink()

    def parts(self, run: str) -> dict[str, bytes]:
        """What was scored: parts, whole table and lists."""
        folder = self.folder / run / "attribute" / METHOD
        files = [*sorted((folder / "score").glob("train-*")), folder / "scores.parquet", folder / "topk.csv"]
        return {file.name: file.read_bytes() for file in files}

    def workers(self) -> list[str]:
        """Ids of the nodes with a CPU."""
        with session(self.nodes.address):
            return [node["NodeID"] for node in node_infos() if node["Resources"].get("CPU", 0) >= 1]

    def restore(self, count: int = 2) -> None:
        """So many nodes again."""
        for _ in range(count - len(self.workers())):
            self.nodes.add()

    def events(self, run: str, event: str) -> list[dict]:
        files = (self.folder / run / "events").iterdir()
        lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
        return [line for line in lines if line["event"] == event]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("chaos")
    shutil.copy(trained_weights(tiny_dataset(folder / "data"), folder / "trained"), folder / "weights.safetensors")
    (folder / "tiny.toml").write_text(tiny_toml(str(folder / "data"), engine={"train_workers": 1}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MUCS_RAY_CACHE", str(folder / "cache"))
        patch.setenv("MUCS_RAY_STRIKES", str(folder / "strikes"))
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1] / "plugins"), prepend=os.pathsep)
        with two_nodes() as nodes:
            place = Place(nodes=nodes, folder=folder)
            place.run("attribute", "calm")
            yield place


def check(place: Place, run: str) -> dict[str, int]:
    """Pairs lost, pairs doubled, files that differ."""
    idx = [
        number
        for file in sorted((place.folder / run / "attribute" / METHOD / "score").glob("train-*"))
        for number in pq.read_table(file)["idx"].to_pylist()
    ]
    parts, calm = place.parts(run), place.parts("calm")
    differ = sum(parts.get(name) != content for name, content in calm.items()) + len(parts.keys() - calm.keys())
    lost, doubled = NUM_IMAGES - len(set(idx)), len(idx) - len(set(idx))
    scores = np.stack(pq.read_table(place.folder / run / "attribute" / METHOD / "scores.parquet")["score"].to_numpy())
    assert scores.shape == (NUM_IMAGES, NUM_ITEMS)
    return {"lost": lost * NUM_ITEMS, "doubled": doubled * NUM_ITEMS, "differ": differ}


POINTS = ("before-compute", "before-publish", "after-publish")
CELLS = [
    pytest.param(victim, point, id=f"{victim} {point}") for victim in ("worker", "node", "driver") for point in POINTS
]


@pytest.mark.parametrize(("victim", "point"), CELLS)
def test_scoring(place: Place, victim: str, point: str):
    run = f"{victim}-{point}"
    place.restore()
    place.copy(run)
    started = time.monotonic()
    process = place.start("attribute", run)
    strikes.lay(point, victim, about=str(process.pid))
    out, _ = process.communicate(timeout=300)
    assert strikes.left() == 0, out
    if victim == "driver":
        assert process.returncode == -signal.SIGKILL
        place.run("attribute", run)
    else:
        assert process.returncode == 0, out
    found = check(place, run)
    print(f"| {victim} | {point} | {found} | {time.monotonic() - started:.0f} s |")
    assert found == {"lost": 0, "doubled": 0, "differ": 0}


@pytest.mark.parametrize("victim", ["training worker", "node", "driver"])
def test_training(place: Place, victim: str):
    """Killed in the middle of an epoch, with some epochs published: the same weights."""
    run, stage = f"train-{victim.replace(' ', '-')}", "pretrain"
    if not (place.folder / "calm-training").exists():
        place.run("pretrain", "calm-training", *TRAINING)
    place.restore()
    started = time.monotonic()
    process = place.start("pretrain", run, *TRAINING)

    def begun() -> bool:
        return any((place.folder / run / stage).glob("state.*"))

    title = {"training worker": "RayTrainWorker", "node": "RayTrainWorker", "driver": "mucs_ray.cli"}[victim]
    with killing(title, begun, parent=victim == "node") as killed:
        out, _ = process.communicate(timeout=300)
    assert killed, out
    if victim == "driver":
        place.run("pretrain", run, *TRAINING)
    else:
        assert process.returncode == 0, out
    differ = sum(
        file.read_bytes() != (place.folder / run / stage / file.name).read_bytes()
        for file in (place.folder / "calm-training" / stage).glob("*.safetensors")
        if not file.name.startswith("state")
    )
    print(f"| {victim} | mid-epoch | differ {differ} | {time.monotonic() - started:.0f} s |")
    assert differ == 0


def test_a_node_that_is_told_to_go_is_left_in_time(place: Place):
    """Ray's notice of a spot machine: nothing new is begun there, no attempt is lost, and the same bits come out."""
    run = "drained"
    place.restore()
    place.copy(run)
    leaving = place.workers()[0]
    strikes.lay("before-compute", "wait", 4)
    process = place.start("attribute", run)
    while strikes.left() > 2:  # each node has begun a unit
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    drain = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", place.nodes.address]
    drain += ["--node-id", leaving, "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
    subprocess.run([*drain, "--deadline-remaining-seconds", "60"], check=True, capture_output=True)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    assert check(place, run) == {"lost": 0, "doubled": 0, "differ": 0}
    assert place.events(run, "failure") == []
    shutil.rmtree(place.folder / "strikes")


def test_a_head_that_dies_ends_the_command_and_another_cluster_goes_on(place: Place):
    """With the head goes all that Ray knows; the run directory has what is needed."""
    run = "head"
    place.copy(run)
    strikes.lay("before-compute", "wait", 4)
    with two_nodes() as own:
        process = replace(place, nodes=own).start("attribute", run)
        while strikes.left() > 1:
            assert process.poll() is None, process.communicate()
            time.sleep(0.1)
        own.cluster.head_node.kill_all_processes(check_alive=False, allow_graceful=False)
        out, _ = process.communicate(timeout=300)
        assert process.returncode not in (0, None), out
    shutil.rmtree(place.folder / "strikes")
    there = len(list((place.folder / run / "attribute" / METHOD / "score").glob("train-*")))
    assert there >= 1
    place.restore()
    place.run("attribute", run)
    print(f"| head | {there} of 4 units done | {check(place, run)} |")
    assert check(place, run) == {"lost": 0, "doubled": 0, "differ": 0}


@pytest.mark.parametrize("count", [1, 3])
def test_another_number_of_workers_gives_the_same_parts(place: Place, count: int):
    """The undisturbed run had two."""
    run = f"{count}-workers"
    place.restore(3)
    place.copy(run)
    place.run("attribute", run, f"engine.actors=[{count}, {count}]")
    assert check(place, run) == {"lost": 0, "doubled": 0, "differ": 0}


def test_a_storage_that_tears_and_doubles_writes(place: Place):
    """Half a part with an error, an error alone, and a part written again late: the same parts."""
    run = "bad-storage"
    place.restore()
    place.copy(run)
    for point in ("write", "tear", "double"):
        strikes.lay(point, "error")
    place.run("attribute", run)
    assert strikes.left() == 0
    assert check(place, run) == {"lost": 0, "doubled": 0, "differ": 0}
