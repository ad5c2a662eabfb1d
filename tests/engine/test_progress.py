"""What a log says of long work, and what it does not say while workers start."""

import io

import pytest
from rich.console import Console

from mucs_ray.engine import progress
from mucs_ray.engine.progress import Bar


def test_the_start_of_workers_is_left_out_of_the_rate(monkeypatch: pytest.MonkeyPatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    bar = Bar(Console(file=io.StringIO()), "attribute/mucs/score", 1000, "images", None)
    bar.start_at(100)
    now[0] = 130.0
    assert bar.line() == "mucs score  100/1000 images, starting workers"
    bar.set(200)  # the first receipt, after 30 s of starting
    assert bar.line() == "mucs score  200/1000 images, 3.33/s, 4:00 left"
    now[0] = 140.0
    bar.set(400, "5 forwards/s")
    assert bar.line() == "mucs score  400/1000 images, 20/s, 0:30 left, 5 forwards/s"
    bar.set(1000)
    assert "left" not in bar.line()


def test_work_in_one_step_has_the_rate_since_the_start(monkeypatch: pytest.MonkeyPatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    bar = Bar(Console(file=io.StringIO()), "generate", 8, "items", None)
    now[0] = 4.0
    bar.set(8)
    assert bar.line() == "generate  8/8 items, 2/s"
