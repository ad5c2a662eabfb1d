"""What a command plans with: what is there, or what it is told that there can be."""

import pytest

from mucs_ray.engine.session import Cluster, await_worker
from mucs_ray.errors import MachineError


def test_what_there_can_be_is_told_by_the_environment(cluster: Cluster, monkeypatch: pytest.MonkeyPatch):
    assert not Cluster.now().grows
    monkeypatch.setenv("MUCS_RAY_MAX_CPUS", "100")
    more = Cluster.now()
    assert (more.cpus, more.slots, more.num_workers, more.grows) == (100, 100, 100, True)
    monkeypatch.setenv("MUCS_RAY_MAX_CPUS", "1")
    assert Cluster.now() == cluster
    monkeypatch.setenv("MUCS_RAY_MAX_GPUS", "8")
    gpus = Cluster.now()
    assert (gpus.gpus, gpus.slots, gpus.num_workers, gpus.grows) == (8, 8, 8, True)
    assert gpus.worker_options["num_gpus"] == 1
    monkeypatch.setenv("MUCS_RAY_MAX_GPUS", "many")
    with pytest.raises(MachineError, match="MUCS_RAY_MAX_GPUS is 'many'; expected the number of GPUs"):
        Cluster.now()


def test_a_cluster_with_workers_is_not_waited_for(cluster: Cluster):
    await_worker(pytest.fail)
