"""This module reports to Ray's own metrics (Prometheus); cluster/grafana-dashboard.json shows them."""

from functools import cache

from ray.util.metrics import Counter, Gauge, Histogram

NAMES = (
    "mucs_ray_images",
    "mucs_ray_forwards",
    "mucs_ray_failures",
    "mucs_ray_unit_seconds",
    "mucs_ray_workers",
)
SECONDS = [0.1, 0.3, 1, 3, 10, 30, 60, 100, 150, 200, 300, 600, 1000, 3000]
"""The boundaries of the histogram of seconds."""


def count_unit(stage: str, *, images: int, forwards: int, seconds: float) -> None:
    """Count a unit whose result is published."""
    tags = {"stage": stage}
    counter("mucs_ray_images", "Training images done.").inc(images, tags)
    if forwards:
        counter("mucs_ray_forwards", "Forward passes of the network.").inc(forwards, tags)
    unit_seconds().observe(seconds, tags)


def count_failure(stage: str, kind: str) -> None:
    """Count a failed attempt at a unit; its kind is error, hung or lost."""
    counter("mucs_ray_failures", "Failed attempts at a unit.", "kind").inc(1, {"stage": stage, "kind": kind})


def report_worker(stage: str) -> None:
    """Report that this worker holds the methods of a stage.

    It has to be called every 20 seconds, because Ray forgets a gauge that is not set again.
    """
    workers().set(1, {"stage": stage})


@cache
def counter(name: str, description: str, *more_tags: str) -> Counter:
    """Return the counter of this name, which a process makes once."""
    return Counter(name, description=description, tag_keys=("stage", *more_tags))


@cache
def unit_seconds() -> Histogram:
    """Return the histogram of the seconds a unit takes, which a process makes once."""
    return Histogram("mucs_ray_unit_seconds", description="Seconds a unit.", boundaries=SECONDS, tag_keys=("stage",))


@cache
def workers() -> Gauge:
    """Return the gauge of workers, which a process makes once."""
    return Gauge("mucs_ray_workers", description="Workers that hold the method.", tag_keys=("stage",))
