"""The processes of a private Ray inherit the environment of workers, and none of them probes for a cloud."""

import os
from pathlib import Path

import ray

from mucs_ray.engine.session import Cluster, changed_environment
from processes import pids_of


def test_workers_have_the_environment_that_fixes_their_bits_and_the_home_of_the_user(cluster: Cluster):
    names = ("HOME", "OMP_NUM_THREADS", "CUBLAS_WORKSPACE_CONFIG", "MUCS_RAY_CACHE")
    seen = ray.get(ray.remote(num_cpus=0.1)(lambda: [os.environ.get(name) for name in names]).remote())
    assert seen == [os.environ["HOME"], "1", ":4096:8", os.environ["MUCS_RAY_CACHE"]]


def test_no_process_of_ray_looks_for_a_cloud(cluster: Cluster):
    """Ray's dashboard process looks for one unless its HOME has an autoscaler's file, which was there when it began."""
    (dashboard,) = pids_of("dashboard/dashboard.py")
    variables = Path(f"/proc/{dashboard}/environ").read_text().split("\0")
    (home,) = (value for value in variables if value.startswith("HOME="))
    assert "mucs-ray-home-" in home and home != f"HOME={os.environ['HOME']}"


def test_an_environment_is_changed_for_a_while(monkeypatch):
    monkeypatch.setenv("MUCS_RAY_A", "1")
    monkeypatch.delenv("MUCS_RAY_B", raising=False)
    with changed_environment({"MUCS_RAY_A": "2", "MUCS_RAY_B": "3"}):
        assert (os.environ["MUCS_RAY_A"], os.environ["MUCS_RAY_B"]) == ("2", "3")
    assert os.environ["MUCS_RAY_A"] == "1" and "MUCS_RAY_B" not in os.environ
