"""`mucs-ray doctor` checks every node of a cluster, and that what must be shared is shared.

The nodes of the tests are on one machine, but each works in a folder of its own. A path through /proc/self/cwd
therefore means another folder on each of them.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from cluster_tools import Nodes
from mucs_ray import doctor, storage
from mucs_ray.engine import host as machine
from mucs_ray.engine.host import Machine
from mucs_ray.engine.nodes import Node, alive_nodes, check_dataset, check_shared, run_on_each_node
from mucs_ray.engine.session import Cluster
from mucs_ray.errors import MachineError
from tiny import tiny_dataset

NODE = Node(id="ab12cd34", host="worker-7", ip="10.0.0.7", cpus=8.0, gpus=2.0)
MACHINE = Machine(
    versions={"python": "3.11", "mucs-ray": "0.1.0 (code 1)", "ray": "2.60.0", "torch": "2.15.0"},
    gpus=("H100", "H100"),
    memory_bytes=64 * 2**30,
    shm_free_bytes=30 * 2**30,
    cache="/cache",
    cache_free_bytes=100 * 2**30,
)


@pytest.fixture
def apart(tmp_path: Path, nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a path to a folder that the driver and the head share, while each other node has its own."""
    if not Path("/proc/self/cwd").exists():
        pytest.skip("needs /proc")
    monkeypatch.chdir(nodes.folder / "head")
    (tmp_path / "here").symlink_to("/proc/self/cwd")
    return tmp_path / "here"


def refused(check: partial[None]) -> str:
    with pytest.raises(MachineError) as error:
        check()
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def in_folders(nodes: Nodes, name: str) -> list[Path]:
    """Return the files of that name in the nodes' working folders."""
    return sorted(nodes.folder.glob(f"*/{name}"))


def test_the_command_looks_at_every_node(nodes: Nodes, apart: Path, tmp_path: Path):
    data = tiny_dataset(tmp_path / "data")
    command = [sys.executable, "-m", "mucs_ray.cli", "doctor", "--address", nodes.address, "--json"]
    command += ["--run", str(apart / "run"), "--dataset", data.url]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 3, done.stderr
    findings = {finding["name"]: finding for finding in json.loads(done.stdout)["findings"]}
    bad = [name for name, finding in findings.items() if not finding["ok"] and not finding["optional"]]
    assert [name for name in bad if not name.startswith("node ")] == ["shared run"]  # nodes: edited code

    assert findings["ray"]["found"] == "3 node(s), 2 CPUs, 0 GPUs"
    lines = sorted(finding["found"] for name, finding in findings.items() if name.startswith("node "))
    assert [line.split(",")[0].split(": ")[1] for line in lines] == ["0 CPUs", "1 CPUs", "1 CPUs"]
    assert all("GiB memory" in line and "cache free" in line for line in lines)
    assert "can be written" in findings["run"]["found"] and "on all nodes" in findings["dataset"]["found"]
    line = findings["shared run"]["found"]
    assert line.startswith(f"what the driver wrote to {apart}/run (a local path) is not seen by node ")
    assert "same path on all nodes" in line and "s3://" in line and line.count("node ") == 2
    assert len(done.stderr.splitlines()) >= len(findings)


def test_a_folder_that_all_nodes_see_is_shared_and_nothing_stays_there(cluster: Cluster, tmp_path: Path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old/recipe.json").write_text("{}")
    check_shared(str(tmp_path / "old"))
    check_shared(str(tmp_path / "new" / "run"))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["old", "recipe.json"]
    torch_is_imported = partial(eval, "'torch' in __import__('sys').modules")
    assert set(run_on_each_node(dict.fromkeys(alive_nodes(), torch_is_imported))[0].values()) == {False}, (
        "importing it would take long"
    )
    (finding,) = doctor.same_files(str(tmp_path / "old"), None)
    assert finding.ok and finding.found.startswith(f"{tmp_path}/old: ")


def test_a_local_path_of_each_nodes_own_is_one_line(cluster: Cluster, nodes: Nodes, apart: Path):
    line = refused(partial(check_shared, str(apart / "own-run")))
    blind = [str(node) for node in alive_nodes() if node.cpus]
    assert len(blind) == 2 and all(node in line for node in blind)
    assert "the driver" in line and f"{apart}/own-run (a local path)" in line and "s3://" in line
    assert in_folders(nodes, "own-run") == []


def test_a_place_of_each_processs_own_is_not_called_a_local_path(cluster: Cluster):
    line = refused(partial(check_shared, "memory://runs/one"))
    assert "memory://runs/one is not seen by node" in line and "local path" not in line
    assert list(storage.names("memory://runs/one")) == []


def test_a_node_that_cannot_write_is_named(cluster: Cluster, nodes: Nodes, apart: Path):
    """The file stands for a disk that is not mounted, or a folder that the user may not create."""
    bad = next(node for node in alive_nodes() if node.cpus)
    folder = Path(run_on_each_node({bad: os.getcwd})[0][bad])
    (folder / "blocked").write_text("in the way")
    line = refused(partial(check_shared, str(apart / "blocked")))
    assert line.startswith(f"{bad} cannot write to {apart}/blocked") and "Error" in line
    assert in_folders(nodes, "blocked") == [folder / "blocked"]
    (folder / "blocked").unlink()


def test_a_data_set_must_be_the_same_on_all_nodes(cluster: Cluster, nodes: Nodes, apart: Path, tmp_path: Path):
    check_dataset(tiny_dataset(tmp_path / "data").url)
    tiny_dataset(nodes.folder / "head" / "own")
    line = refused(partial(check_dataset, str(apart / "own")))
    assert "cannot read" in line and "card.json" in line and line.startswith("node ") and " and node " in line
    for folder in nodes.folder.glob("node-*"):
        shutil.copytree(nodes.folder / "head" / "own", folder / "own")
    check_dataset(str(apart / "own"))
    shutil.rmtree(folder / "own")
    tiny_dataset(folder / "own", rows_per_unit=8)
    assert "another data set than the driver's" in refused(partial(check_dataset, str(apart / "own")))


def test_a_node_that_does_not_answer_in_time_is_named(cluster: Cluster):
    first, *others = alive_nodes()
    questions = {first: partial(time.sleep, 60), **dict.fromkeys(others, os.getpid)}
    run_on_each_node(dict.fromkeys(others, os.getpid))  # so that each has a worker
    answers, problems = run_on_each_node(questions, timeout_s=2)
    assert set(answers) == set(others) and problems == {first: "did not answer in 2 s"}


def test_a_node_that_dies_is_named_and_the_others_answer(
    cluster: Cluster, nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    doomed = nodes.add()
    listed = alive_nodes()
    nodes.kill(doomed)
    started = time.monotonic()
    monkeypatch.setattr("mucs_ray.engine.nodes.alive_nodes", lambda: listed)
    monkeypatch.setattr(machine, "describe_machine", partial(replace, MACHINE, versions=machine.versions()))
    check_shared(str(tmp_path))
    findings = list(doctor.nodes())
    assert [finding.found for finding in findings if not finding.ok] == [f"{listed[0].host} 127.0.0.1: is gone"]
    assert len(findings) == 4 and time.monotonic() - started < 60


def test_the_line_of_a_node():
    finding = doctor.node_finding(NODE, MACHINE, MACHINE.versions)
    assert finding.ok and finding.name == "node ab12cd"
    assert finding.found == (
        "worker-7 10.0.0.7: 8 CPUs, 2 x H100, 64.0 GiB memory, 30.0 GiB shm free, 100.0 GiB cache free"
    )


@pytest.mark.parametrize("package", ["python", "mucs-ray", "ray", "torch"])
def test_a_version_that_differs_from_the_drivers_is_bad(package: str):
    other = replace(MACHINE, versions={**MACHINE.versions, package: "0.9"})
    finding = doctor.node_finding(NODE, other, MACHINE.versions)
    assert not finding.ok and not finding.optional
    assert finding.found.endswith(f"; {package} 0.9, the driver has {MACHINE.versions[package]}")


def test_gpus_that_torch_cannot_use_and_a_cache_that_cannot_be_written_are_bad():
    other = replace(MACHINE, gpus=(), cache_free_bytes=None, cache_problem="Permission denied")
    finding = doctor.node_finding(NODE, other, MACHINE.versions)
    assert not finding.ok
    assert "Ray counts 2 GPUs, torch can use 0" in finding.found
    assert "/cache: Permission denied; set MUCS_RAY_CACHE" in finding.found
    assert doctor.node_finding(replace(NODE, gpus=0.0), replace(MACHINE, gpus=()), MACHINE.versions).ok
