"""Attempts at units are counted: which failures count, which units are given up, and what the error says."""

import pytest

from mucs_ray.engine.attempts import (
    ATTEMPTS,
    HEARTBEAT_S,
    AttemptTracker,
    Failure,
    Worker,
    given_up_error,
    heartbeat,
    heartbeats,
)
from mucs_ray.errors import InputError, RunFailed

HERE, THERE = Worker(node="a", place="host a"), Worker(node="b", place="host b")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tracker(clock: Clock) -> AttemptTracker:
    return AttemptTracker(is_alive=lambda node: node == "a", clock=clock)


def test_three_errors_are_enough(tracker: AttemptTracker):
    for _ in range(ATTEMPTS):
        assert tracker.begin("u", HERE) == "go"
        tracker.record_error("u", "bang")
    assert tracker.begin("u", HERE) == "given up"
    assert [each.place for each in tracker.given_up()["u"]] == ["host a"] * 3


def test_an_error_of_our_own_is_final_at_once(tracker: AttemptTracker):
    tracker.begin("u", HERE)
    tracker.record_error("u", "corrupt", InputError("corrupt"))
    assert tracker.is_given_up("u") and not tracker.is_given_up("v")


def test_a_worker_that_died_counts_when_its_unit_begins_again(tracker: AttemptTracker):
    for _ in range(ATTEMPTS):
        assert tracker.begin("u", HERE) == "go"
    assert tracker.begin("u", HERE) == "given up"
    assert {each.kind for each in tracker.failures} == {"lost"}


def test_what_has_ended_is_not_begun_again_unless_it_failed_after_all(tracker: AttemptTracker):
    tracker.begin("u", HERE)
    tracker.end("u", "receipt")
    assert tracker.begin("u", HERE) == "done" and tracker.result("u") == "receipt" and not tracker.failures
    tracker.record_error("u", "its part has vanished")
    assert tracker.begin("u", HERE) == "go"


def test_a_lost_node_never_counts(tracker: AttemptTracker):
    for _ in range(10 * ATTEMPTS):
        assert tracker.begin("u", THERE) == "go"
        tracker.record_lost("u")
    assert tracker.begin("u", THERE) == "go" and not tracker.failures


def test_what_dies_before_it_begins_counts(tracker: AttemptTracker):
    """Else a task that cannot even be unpickled would be started for ever."""
    for _ in range(ATTEMPTS):
        tracker.record_lost("u", "crashed")
    assert tracker.is_given_up("u")


def test_silence_is_a_hang_and_a_sign_of_life_is_not(tracker: AttemptTracker, clock: Clock):
    tracker.begin("u", HERE)
    tracker.begin("v", HERE)
    clock.now = 9
    tracker.heartbeat("v")
    clock.now = 11
    assert list(tracker.end_overdue(10)) == ["u"]
    assert tracker.end_overdue(10) == {}, "counted once"
    assert [(each.unit, each.kind, each.cause) for each in tracker.failures] == [
        ("u", "hung", "no sign of life for 11 s")
    ]
    tracker.end("v")
    assert tracker.failures_since(0)[2] == 0, "nobody is at work"


def test_a_draining_node_is_given_nothing():
    tracker = AttemptTracker(is_alive=lambda node: True, is_draining=lambda node: node == "b")
    assert tracker.begin("u", THERE) == "draining" and tracker.begin("u", HERE) == "go"
    assert not tracker.failures


def failure(unit: str, cause: str, error: Exception | None = None) -> Failure:
    return Failure(unit=unit, kind="error", cause=cause, place="host a", error=error)  # type: ignore[arg-type]


def test_the_error_names_one_unit_and_keeps_all():
    error = given_up_error({"u1": [failure("u1", "bang")] * 3, "u2": [failure("u2", "boom")] * 3}, 7)
    assert isinstance(error, RunFailed)
    assert str(error) == (
        "2 of 7 units failed, the others are done; u1, tried 3 times (last on host a): bang;"
        " run the command again to try these again"
    )
    assert error.units == {"u1": "bang", "u2": "boom"}


def test_one_corrupt_file_that_fails_many_units_is_named_once():
    corrupt = InputError("shard 3 is corrupt")
    given_up = {unit: [failure(unit, "InputError", corrupt)] for unit in ("u1", "u2")}
    error = given_up_error(given_up, 7)
    assert isinstance(error, InputError) and str(error) == "shard 3 is corrupt"


def test_signs_of_life_are_seldom_and_end_with_the_unit(monkeypatch: pytest.MonkeyPatch):
    clock, sent = Clock(), []
    monkeypatch.setattr("mucs_ray.engine.attempts.time.monotonic", clock)
    heartbeat()
    with heartbeats(lambda: sent.append(clock.now)):
        for _ in range(100):
            clock.now += HEARTBEAT_S / 10
            heartbeat()
    heartbeat()
    assert len(sent) == 10
