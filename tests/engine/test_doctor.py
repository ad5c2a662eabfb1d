"""`mucs-ray doctor` on one machine: a worker reaches what the command reaches."""

from pathlib import Path

from mucs_ray import doctor
from mucs_ray.data.table import Dataset
from mucs_ray.engine.session import Cluster


def test_a_worker_reads_and_writes_too(cluster: Cluster, data: Dataset, tmp_path: Path):
    findings = list(doctor.same_files(str(tmp_path / "run"), data.url))
    assert [finding.name for finding in findings] == ["shared run", "dataset"]
    assert all(finding.ok for finding in findings)
    assert list(tmp_path.iterdir()) == []


def test_what_a_worker_does_not_reach_is_bad(cluster: Cluster, tmp_path: Path):
    """The folder is in the memory of this process alone, and the data set does not exist."""
    run, dataset = doctor.same_files("memory://doctor/run", str(tmp_path))
    assert not run.ok and not run.optional and "is not seen by node" in run.found
    assert not dataset.ok and "no data set at" in dataset.found
