"""Unit tests run without Ray: not imported when only they run, never started when other tests have imported it."""

import sys
from collections.abc import Generator

import pytest


def _refuse(*_: object, **__: object) -> None:
    raise AssertionError("a unit test started Ray; it belongs in tests/engine")


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """`import ray` fails, or, if another folder's tests have imported it, `ray.init` does."""
    if sys.modules.get("ray") is None:
        monkeypatch.setitem(sys.modules, "ray", None)
    else:
        monkeypatch.setattr(sys.modules["ray"], "init", _refuse)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """A test file that imports Ray at its top, directly or not, is a collection error."""
    before = "ray" in sys.modules
    report = yield
    if not before and "ray" in sys.modules:
        report.outcome = "failed"
        report.longrepr = f"{collector.nodeid} imports Ray; it belongs in tests/engine"
    return report
