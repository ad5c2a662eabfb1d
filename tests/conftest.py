"""Every test process computes with one thread, for the same numbers on every machine, and Ray stays on loopback."""

import os

from mucs_ray.engine.session import LOCAL_ENVIRONMENT

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"
os.environ.update(LOCAL_ENVIRONMENT)  # before any test file imports Ray, which reads it then
# Ray ends a worker that has had nothing to do for a second; the next one imports torch and Ray once more, in 5 s of CPU
os.environ["RAY_idle_worker_killing_time_threshold_ms"] = "600000"  # noqa: SIM112 - Ray reads this spelling

import hypothesis  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402  (OpenMP reads the variables when it starts)

torch.set_num_threads(1)
hypothesis.settings.register_profile("untimed", deadline=None)  # on a busy machine a moment is long
hypothesis.settings.load_profile("untimed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow"):
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))
