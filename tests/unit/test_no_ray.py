"""Only the engine speaks to Ray: the rest is imported without it, in a clean process (house rules 1)."""

import pkgutil
import subprocess
import sys
from collections.abc import Iterable

import pytest

import mucs_ray

OF_THE_ENGINE = ("mucs_ray.engine", "mucs_ray.steps")
"""`steps` runs the stages; the session is in the engine, and is imported to start Ray only when it must."""


def imported_with(modules: Iterable[str]) -> set[str]:
    """Top names in sys.modules of a fresh process that imports these modules."""
    program = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    command = [sys.executable, "-c", program, *modules]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def core_modules() -> list[str]:
    found = pkgutil.walk_packages(mucs_ray.__path__, "mucs_ray.", onerror=lambda name: None)
    return [each.name for each in found if not each.name.startswith(OF_THE_ENGINE)]


def test_the_core_does_not_import_ray():
    modules = core_modules()
    assert {"mucs_ray.pipeline", "mucs_ray.attribution.mucs", "mucs_ray.training.step", "mucs_ray.cli"} <= set(modules)
    imported = imported_with([*modules, "mucs_ray.engine.session"])
    assert "torch" in imported
    assert "ray" not in imported


def test_the_command_line_starts_without_torch_and_ray():
    imported = imported_with(["mucs_ray.cli"])
    assert "typer" in imported
    assert not {"torch", "ray", "numpy", "pyarrow"} & imported


@pytest.mark.parametrize("module", ["mucs_ray.engine.scoring", "mucs_ray.steps"])
def test_the_check_can_fail(module: str):
    assert "ray" in imported_with([module])
