"""These tests check which group of workers does which training; Ray Train is replaced here, test_faults.py uses it."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from mucs_ray.config.engine import EngineConfig
from mucs_ray.engine import trainings
from mucs_ray.engine.ray_train import TrainRun
from mucs_ray.engine.session import Cluster
from mucs_ray.engine.trainings import Training, train_all
from mucs_ray.errors import InputError, MucsError, RunFailed


class Group:
    """This group finishes a training at each second poll, unless `script` has an error for its next one."""

    started: list["Group"]
    script: dict[tuple[int, int], MucsError | str]
    """By number of the group and of the training: an error of ours, "gave up" or "hangs"."""

    def __init__(self, training: Training, cluster: Cluster) -> None:
        self.num_workers, self.number, self.trained = training.run.num_workers, len(self.started), list[int]()
        self.num_finished, self.gave_up, self.stopped, self.ended = 0, False, False, False
        self.started.append(self)
        self.assign(training)

    def assign(self, training: Training | None) -> None:
        self.training, self.polls, self.ended = training, 0, training is None
        self.trained += [] if training is None else [training.number]

    def poll(self) -> dict[str, Any] | None:
        assert not self.stopped
        self.polls += 1
        if self.training is None or self.polls < 2:
            return None
        what = self.script.get((self.number, self.training.number))
        if what == "hangs":
            return None
        if what is not None:
            self.gave_up = what == "gave up"
            raise RunFailed("training failed") if isinstance(what, str) else what
        self.num_finished += 1
        return {"updates": 5}

    def hangs(self, timeout_s: float) -> bool:
        return self.training is not None and self.script.get((self.number, self.training.number)) == "hangs"

    def stop(self, timeout_s: float = 0.0) -> None:
        self.stopped = True


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Group]:
    Group.started, Group.script = [], {}
    monkeypatch.setattr(trainings, "WorkerGroup", Group)
    monkeypatch.setattr(trainings, "POLL_S", 0.0)
    return Group.started


def train(num_workers: list[int], *, slots: int, limit: int = 0) -> tuple[list[int], MucsError | None, list[str]]:
    """Train stand-ins, and return the numbers that were done, the error, and what was printed."""
    job = SimpleNamespace(train=SimpleNamespace(updates=5, batch_size=2), stage=SimpleNamespace(name="retrain/x"))
    runs: Any = [TrainRun(job=job, num_workers=count) for count in num_workers]  # pyright: ignore[reportArgumentType]
    said: list[str] = []
    bar: Any = SimpleNamespace(set=lambda *_: None, print_event=lambda line, *_, **__: said.append(line))
    engine = replace(EngineConfig(), trainings=limit, max_failures=2)
    cluster: Any = SimpleNamespace(slots=slots, engine=engine)
    done: list[int] = []
    try:
        for number, _ in train_all(runs, cluster, bar=bar):
            done.append(number)
    except MucsError as error:
        return done, error, said
    assert all(group.stopped for group in Group.started)
    return done, None, said


def test_as_many_groups_as_there_is_room_for_take_all_trainings(started: list[Group]):
    done, error, _ = train([1] * 7, slots=3)
    assert sorted(done) == list(range(7)) and error is None
    assert [group.trained for group in started] == [[0, 3, 6], [1, 4], [2, 5]]


def test_at_most_the_asked_number_at_once(started: list[Group]):
    assert train([1] * 4, slots=9, limit=1)[0] == [0, 1, 2, 3] and len(started) == 1


def test_a_training_with_other_workers_starts_a_group_of_its_own(started: list[Group]):
    done, _, _ = train([2, 2, 4, 4], slots=4)
    assert sorted(done) == [0, 1, 2, 3]
    assert [(group.num_workers, group.trained) for group in started] == [(2, [0]), (2, [1]), (4, [2, 3])]


def test_after_a_failure_those_beside_it_are_finished_and_no_other_is_begun(started: list[Group]):
    Group.script = {(0, 0): InputError("no such file")}
    done, error, _ = train([1] * 5, slots=2)
    assert done == [1] and isinstance(error, InputError) and len(started) == 2


def test_a_training_is_not_charged_with_the_failures_of_earlier_ones(started: list[Group]):
    Group.script = {(0, 2): "gave up"}
    assert train([1] * 4, slots=1)[0] == [0, 1, 2, 3]
    assert [group.trained for group in started] == [[0, 1, 2], [2, 3]]
    started.clear()
    Group.script = {(0, 0): "gave up"}
    done, error, _ = train([1] * 2, slots=1)
    assert done == [] and isinstance(error, RunFailed) and len(started) == 1


def test_a_training_that_hangs_is_begun_again_so_many_times(started: list[Group]):
    Group.script = {(0, 0): "hangs", (1, 0): "hangs"}
    done, error, said = train([1, 1], slots=1)
    assert done == [0, 1] and error is None and [group.trained for group in started] == [[0], [0], [0, 1]]
    assert len(said) == 2 and said[0].startswith("retrain/x gave no sign of life")
    started.clear()
    Group.script = {(number, 0): "hangs" for number in range(3)}
    done, error, _ = train([1], slots=1)
    assert done == [] and "3 times" in str(error)
