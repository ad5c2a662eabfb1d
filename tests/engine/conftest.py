"""All tests of this folder share one real Ray, and one tiny run made through it."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mucs_ray.data.table import Dataset
from mucs_ray.engine import pace, trainings
from mucs_ray.engine.session import Cluster, session
from mucs_ray.pipeline.graph import Pipeline
from tiny import tiny_dataset
from tiny_run import open_tiny, train_all_plainly, work


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MUCS_RAY_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1] / "plugins"), prepend=os.pathsep)
        patch.setenv("MUCS_RAY_STRIKES", str(tmp_path_factory.mktemp("strikes")))
        yield


@pytest.fixture(scope="session")
def cluster(own_cache: None) -> Iterator[Cluster]:
    with session() as running:
        yield running


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory, own_cache: None) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def copied(finished: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Return a function that copies the finished run, for tests that go on from its network and images."""

    def copy() -> Path:
        return Path(shutil.copytree(finished.run_url, tmp_path_factory.mktemp("copy") / "run"))

    return copy


@pytest.fixture(scope="session")
def finished(data: Dataset, tmp_path_factory: pytest.TempPathFactory, cluster: Cluster) -> Pipeline:
    """Do the whole main job through Ray except for the training, with two scorers, and keep the loss table.

    What Ray Train trains is compared with the plain loop in test_faults.py and test_ray_equals_plain.py.
    """
    pipeline = open_tiny(data, tmp_path_factory.mktemp("run"), engine={"train_workers": 1})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainings, "train_all", train_all_plainly)
        patch.setattr(pace, "MEASURED_S", 0.0)  # for test_planning.py; the driver keeps this time
        work(pipeline, "attribute", cluster)
    return pipeline
