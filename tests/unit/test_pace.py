"""The duration of a stage is printed once, after the first minute. The tests pass the clock in."""

import pytest

from mucs_ray.engine.pace import Pace, readable


def so_far(rows: int, forwards: int, worker_seconds: float) -> dict[str, float]:
    return {"rows": rows, "forwards": forwards, "worker_seconds": worker_seconds, "worker_seconds_outside": 0.0}


def test_no_line_in_the_first_minute_after_the_first_receipt():
    pace = Pace(images=1000)
    assert pace.line(so_far(10, 100, 5.0), at=300.0) is None
    assert pace.line(so_far(90, 900, 45.0), at=359.9) is None


def test_the_pace_is_returned_once():
    """100 of 5,000 images took 120 s of workers: all of them take 50 times as long."""
    pace = Pace(images=5000)
    assert pace.line(so_far(10, 120, 12.0), at=0.0) is None
    line = pace.line(so_far(100, 1200, 120.0), at=60.0)
    assert line == "a busy worker does 10 forwards/s, so the whole stage will take 1.67 worker-hours"
    assert pace.line(so_far(200, 2400, 240.0), at=120.0) is None


def test_a_method_without_the_model_is_counted_in_images():
    pace = Pace(images=720_000, started_at=0.0)
    line = pace.line(so_far(1000, 0, 50.0), at=61.0)
    assert line == "a busy worker does 20 images/s, so the whole stage will take 10 worker-hours"


@pytest.mark.parametrize(
    ("number", "text"), [(0.01234, "0.0123"), (12.34, "12.3"), (1748.2, "1,748"), (8e5, "800,000")]
)
def test_numbers_for_reading(number: float, text: str):
    assert readable(number) == text
