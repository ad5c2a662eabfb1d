"""A command plans with the resources that are there, or with those that the environment says there can be."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mucs_ray.config.engine import EngineConfig
from mucs_ray.config.recipe import GenerateConfig
from mucs_ray.data.table import Dataset
from mucs_ray.engine import pace
from mucs_ray.engine.generation import plan_items
from mucs_ray.engine.session import Cluster, await_worker
from mucs_ray.engine.streaming import pool_size
from mucs_ray.errors import MachineError
from mucs_ray.planning.speed import facts_of_streams
from mucs_ray.store.events import read_events
from tiny import tiny_dataset
from tiny_run import open_tiny, work


def test_the_environment_says_what_an_autoscaler_can_bring(cluster: Cluster, monkeypatch: pytest.MonkeyPatch):
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


@pytest.mark.parametrize(("share", "workers"), [(1.0, 4), (0.5, 8), (0.3, 12)])
def test_workers_may_share_a_gpu(share: float, workers: int):
    cluster = Cluster(cpus=16, gpus=4, nodes=1, slots=4, engine=EngineConfig(gpu_share=share))
    assert cluster.num_workers == workers and cluster.worker_options["num_gpus"] == share


@pytest.mark.parametrize(
    ("asked", "units", "pool"),
    [((0, 0), 100, (4, 100)), ((0, 0), 3, (3, 3)), ((1, 2), 100, (1, 2)), ((8, 2), 100, (2, 2)), ((0, 6), 100, (4, 6))],
)
def test_the_pool_of_scorers(asked: tuple[int, int], units: int, pool: tuple[int, int]):
    """The pool's sizes are as asked for, else the smallest is what there is room for and the largest the number of
    units.
    """
    cluster = Cluster(cpus=4, gpus=0, nodes=1, slots=4, engine=EngineConfig(actors=asked))
    assert pool_size(cluster, units) == pool


def test_a_cluster_with_workers_is_not_waited_for(cluster: Cluster):
    await_worker(pytest.fail)


def test_a_streamed_stage_prints_its_pace_and_plan_reads_it(
    data: Dataset, copied: Callable[[], Path], cluster: Cluster, monkeypatch: pytest.MonkeyPatch
):
    """The pace comes with the first receipt here, because the test sets the minute to 0 s on the driver, which keeps
    the time.
    """
    monkeypatch.setattr(pace, "MEASURED_S", 0.0)
    pipeline, score = open_tiny(data, copied(), score={"noises": 7}), "attribute/mucs/score"
    before = pipeline.plan("attribute")
    assert before[score].status == "stale"
    work(pipeline, score, cluster)
    (event,) = (event for event in read_events(pipeline.run_url) if event["event"] == pace.PACE)
    assert event["stage"] == score and event["forwards"] == 16 * 7 * 3 and event["processor"] == "CPU"
    so_far = facts_of_streams(pipeline, before)[score]  # as of before it was done
    assert so_far.forwards == event["forwards"] and so_far.worker_seconds == event["worker_seconds"] > 0
    whole = facts_of_streams(pipeline, pipeline.plan("attribute"))[score]
    assert whole.forwards == 60 * 7 * 3 and whole.processor == "CPU"


def test_conditions_may_be_lent_by_training_images(tmp_path: Path) -> None:
    dataset = tiny_dataset(tmp_path)
    config = GenerateConfig(items=50, controls=10, conditions="train")
    planned = plan_items(dataset, config, seed=1)
    assert sorted(each.idx for each in planned) == list(range(60)) and all(each.row == each.idx for each in planned)
    assert {each.idx for each in plan_items(dataset, GenerateConfig(items=12, controls=0), seed=1)} == {*range(60, 72)}
