"""The main job with its data set and its run on S3, while the server fails now and then."""

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
"""One request in 18, of about a thousand."""


@pytest.fixture(scope="module")
def on_s3(proxy: Proxy, cluster: Cluster) -> Pipeline:
    """From the data set to the report, through faults."""
    with proxy.spoiling(*FAULTS):
        data = tiny_dataset(f"s3://{BUCKET}/data")
        pipeline = open_tiny(data, f"s3://{BUCKET}/run")
        work(pipeline, "attribute", cluster)
    return pipeline


@pytest.fixture(scope="module")
def on_disk(on_s3: Pipeline, tmp_path_factory: pytest.TempPathFactory, cluster: Cluster) -> Pipeline:
    """The same without faults, and trained in a plain loop.

    After the other: its images are then on this machine, and would not be read from S3.
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
        there, here = on_s3.stage(name), on_disk.stage(name)
        files = here.manifest()["files"]
        assert there.manifest()["files"] == files
        assert {file: there.checked(file) for file in files} == {file: here.checked(file) for file in files}
    assert "scores.parquet" in files


def test_what_is_there_is_what_is_there_on_disk(on_s3: Pipeline, on_disk: Pipeline):
    """Nothing is left of Ray Train's own files, nor of what was tried on the way."""
    here = files_under(on_disk.run_url)
    assert files_under(on_s3.run_url) == here
    assert "report.html" in here


def files_under(url: str) -> list[str]:
    """All paths; those of event logs without the time that is in their names."""
    fs, root = storage.filesystem(url)
    found = [path.removeprefix(f"{root}/") for path in fs.find(root)]
    return sorted("events/*" if path.startswith("events/") else path for path in found)


def test_again_does_nothing(on_s3: Pipeline, proxy: Proxy, cluster: Cluster):
    before = len(proxy.requests)
    assert work(on_s3, "attribute", cluster) == []
    asked = {request.split()[0] for request in proxy.requests[before:]}
    assert asked and asked <= {"GET", "HEAD"}
