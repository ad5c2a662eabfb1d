"""A machine describes itself, and small files show whether a folder is shared."""

import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from mucs_ray import __version__, doctor, storage
from mucs_ray.engine import host, shared_folder
from mucs_ray.storage import StoreError


def test_a_machine_describes_versions_memory_and_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MUCS_RAY_CACHE", str(tmp_path / "cache"))
    machine = host.describe_machine()
    assert machine.versions["ray"] == version("ray") and machine.versions["mucs-ray"].startswith(__version__)
    assert machine.memory_bytes > 2**28
    assert machine.cache == str(tmp_path / "cache") and machine.cache_free_bytes and not machine.cache_problem
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cache_that_cannot_be_written_has_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("MUCS_RAY_CACHE", str(tmp_path / "file" / "cache"))
    machine = host.describe_machine()
    assert machine.cache_free_bytes is None and machine.cache_problem == "Not a directory"


@pytest.mark.parametrize(("limit", "expected"), [("1048576\n", 2**20), ("max\n", None), (None, None)])
def test_memory_is_what_the_container_may_have(
    limit: str | None, expected: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(host, "MEMORY_LIMIT", tmp_path / "none")
    whole = host.memory_bytes()
    if limit is not None:
        (tmp_path / "memory.max").write_text(limit)
        monkeypatch.setattr(host, "MEMORY_LIMIT", tmp_path / "memory.max")
    assert host.memory_bytes() == (expected or whole)


def test_builds_of_torch_are_one_version(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(host, "version", lambda name: {"torch": "2.15.0+cpu", "ray": "2.60.0"}[name])
    assert host.versions()["torch"] == "2.15.0"


def test_probes_take_away_the_folders_made_for_them_and_no_others(tmp_path: Path):
    probe = storage.join(str(tmp_path), "run", "one", ".probe-")
    (tmp_path / "run").mkdir()
    folders = shared_folder.write(probe + "a")
    assert folders == [str(tmp_path / "run/one")] and shared_folder.write(probe + "b") == []
    assert shared_folder.unreadable_probes(probe, ["a", "b", "c"]) == ["c"]
    shared_folder.remove(probe + "a", folders)
    assert shared_folder.unreadable_probes(probe, ["a", "b"]) == ["a"]
    shared_folder.remove(probe + "b", folders)
    shared_folder.remove(probe + "never", [])
    assert [path.name for path in tmp_path.rglob("*")] == ["run"]


def test_a_probe_with_other_content_is_not_ours(tmp_path: Path):
    (tmp_path / ".probe-a").write_bytes(b"")
    assert shared_folder.unreadable_probes(storage.join(str(tmp_path), ".probe-"), ["a"]) == ["a"]


def test_doctor_goes_on_where_a_store_fails(monkeypatch: pytest.MonkeyPatch):
    """The failure is one line of the doctor's output, and the others follow."""

    def fails(url: str) -> str:
        raise StoreError(f"{url}: no answer")

    monkeypatch.setattr("mucs_ray.store.run.open_run", fails)
    assert doctor.run_directory("s3://b/run") == doctor.Finding(name="run", ok=False, found="s3://b/run: no answer")


FORWARDS = """
import resource, sys, threading
import torch
from mucs_ray.engine.host import keep_freed_memory
from mucs_ray.models.dit import DiT, DiTConfig
if sys.argv[1] == "kept":
    keep_freed_memory()
shape = dict(image_size=16, channels=(8, 8), kernel_size=3, patch_size=4, width=96, depth=3, num_heads=4, registers=0)
network = DiT(DiTConfig(**shape)).eval()
def forwards():
    with torch.inference_mode():
        for _ in range(2):
            network(torch.zeros(160, 3, 16, 16), torch.zeros(160))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(5):
            network(torch.zeros(160, 3, 16, 16), torch.zeros(160))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
worker = threading.Thread(target=forwards)  # as in Ray's workers
worker.start()
worker.join()
"""
"""Five of a network and batch of the emoji's size."""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators are left as they are")
def test_freed_memory_is_kept_for_the_next_forward():
    """By default every forward takes thousands of fresh pages."""

    def faults(how: str) -> int:
        done = subprocess.run([sys.executable, "-c", FORWARDS, how], capture_output=True, text=True, check=True)
        return int(done.stdout)

    given_back = faults("given back")
    assert given_back > 5000
    assert 5 * faults("kept") < given_back  # on some CPUs a library takes a fresh megabyte of its own for each forward
