"""A command plans with the resources that are there, or with those that the environment says there can be."""

from dataclasses import replace
from pathlib import Path

import pytest

from mucs_ray.config.engine import EngineConfig
from mucs_ray.config.recipe import GenerateConfig
from mucs_ray.engine import pace
from mucs_ray.engine.generation import plan_items
from mucs_ray.engine.session import Cluster, await_worker
from mucs_ray.engine.streaming import pool_size
from mucs_ray.errors import MachineError
from mucs_ray.pipeline.graph import Pipeline
from mucs_ray.planning.speed import facts_of_streams
from mucs_ray.store.events import read_events
from tiny import tiny_dataset


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


def test_a_streamed_stage_prints_its_pace_and_plan_reads_it(finished: Pipeline):
    """The pace came with the first receipt, because the fixture has set the minute to 0 s."""
    score, states = "attribute/mucs/score", finished.plan("attribute")
    (event,) = (event for event in read_events(finished.run_url) if event["event"] == pace.PACE)
    assert event["stage"] == score and event["forwards"] == event["rows"] * 5 * 3 and event["processor"] == "CPU"
    so_far = facts_of_streams(finished, {score: replace(states[score], status="missing")})[score]
    assert so_far.forwards == event["forwards"] < 60 * 5 * 3 and so_far.worker_seconds == event["worker_seconds"] > 0
    whole = facts_of_streams(finished, states)[score]
    assert whole.forwards == 60 * 5 * 3 and whole.processor == "CPU"


def test_conditions_may_be_lent_by_training_images(tmp_path: Path) -> None:
    dataset = tiny_dataset(tmp_path)
    config = GenerateConfig(items=50, controls=10, conditions="train")
    planned = plan_items(dataset, config, seed=1)
    assert sorted(each.idx for each in planned) == list(range(60)) and all(each.row == each.idx for each in planned)
    assert {each.idx for each in plan_items(dataset, GenerateConfig(items=12, controls=0), seed=1)} == {*range(60, 72)}
