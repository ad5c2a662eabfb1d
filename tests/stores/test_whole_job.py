"""The main job runs with its data set and its run directory on S3, while some requests fail."""

import pytest

from mucs_ray import storage
from mucs_ray.engine import trainings
from mucs_ray.engine.session import Cluster
from mucs_ray.pipeline.graph import Pipeline
from stores.conftest import BUCKET
from stores.faulty_proxy import Proxy, Rule
from tiny import tiny_dataset
from tiny_run import open_tiny, train_all_plainly, work

FAULTS = [Rule(fault="busy", every=101), Rule(fault="cut", every=37), Rule(fault="refuse", every=53)]
"""These rules spoil one request in 18, of about a thousand."""


@pytest.fixture(scope="module")
def on_s3(proxy: Proxy, cluster: Cluster) -> Pipeline:
    """Run the job from the data set to the report, through faults."""
    with proxy.spoiling(*FAULTS):
        data = tiny_dataset(f"s3://{BUCKET}/data")
        pipeline = open_tiny(data, f"s3://{BUCKET}/run")
        work(pipeline, "attribute", cluster)
    return pipeline


@pytest.fixture(scope="module")
def on_disk(on_s3: Pipeline, tmp_path_factory: pytest.TempPathFactory, cluster: Cluster) -> Pipeline:
    """Run the same job without faults, with the training in a plain loop.

    It comes after the other, because it leaves the images on this machine, which would then not be read from S3.
    """
    pipeline = open_tiny(tiny_dataset(tmp_path_factory.mktemp("data")), tmp_path_factory.mktemp("run"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainings, "train_all", train_all_plainly)
        work(pipeline, "attribute", cluster)
    return pipeline


def test_every_kind_of_fault_has_happened(on_s3: Pipeline):
    assert all(rule.spoilt >= 3 for rule in FAULTS), FAULTS


def test_the_results_are_those_of_local_files_bit_for_bit(on_s3: Pipeline, on_disk: Pipeline):
    assert on_s3.dataset.card == on_disk.dataset.card
    for name in (
        "pretrain",
        "generate",
        "attribute/mucs/null",
        "attribute/mucs/unlearn",
        "attribute/mucs/score",
        "attribute/mucs",
    ):
        remote, local = on_s3.stage(name), on_disk.stage(name)
        files = local.manifest().files
        assert remote.manifest().files == files
        assert {file: remote.checked(file) for file in files} == {file: local.checked(file) for file in files}
    assert "scores.parquet" in files


def test_the_same_files_exist_as_on_disk(on_s3: Pipeline, on_disk: Pipeline):
    """No files of Ray Train, and none of failed attempts, are left."""
    files = files_under(on_disk.run_url)
    assert files_under(on_s3.run_url) == files
    assert "report.html" in files


def files_under(url: str) -> list[str]:
    """Return all paths, those of event logs without the time in their names."""
    fs, root = storage.filesystem(url)
    paths = [path.removeprefix(f"{root}/") for path in fs.find(root)]
    return sorted("events/*" if path.startswith("events/") else path for path in paths)


def test_again_does_nothing(on_s3: Pipeline, proxy: Proxy, cluster: Cluster):
    before = len(proxy.requests)
    assert work(on_s3, "attribute", cluster) == []
    methods = {request.split()[0] for request in proxy.requests[before:]}
    assert methods and methods <= {"GET", "HEAD"}
