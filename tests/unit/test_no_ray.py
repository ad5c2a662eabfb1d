"""Only the engine imports Ray, and commands that only read import no torch either (house rules 1)."""

import io
import os
import pkgutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from rich.console import Console

import mucs_ray
from mucs_ray import storage
from mucs_ray.pipeline.graph import Pipeline
from tiny import tiny_dataset, tiny_recipe

OF_THE_ENGINE = ("mucs_ray.engine", "mucs_ray.run.stages")
"""`stages` runs them; the session is in the engine, and is imported to start Ray only when it must."""


def imported_with(modules: Iterable[str]) -> set[str]:
    """Return the top names in sys.modules of a fresh process that imports these modules."""
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
    modules = pkgutil.walk_packages(mucs_ray.__path__, "mucs_ray.", onerror=lambda name: None)
    return [
        module.name
        for module in modules
        if not module.name.startswith(OF_THE_ENGINE) and not module.name.endswith(".__main__")
    ]


def test_the_core_does_not_import_ray():
    modules = core_modules()
    assert {
        "mucs_ray.pipeline.graph",
        "mucs_ray.attribution.mucs",
        "mucs_ray.training.step",
        "mucs_ray.cli.app",
    } <= set(modules)
    imported = imported_with([*modules, "mucs_ray.engine.session"])
    assert "torch" in imported
    assert "ray" not in imported


def test_the_command_line_starts_without_torch_and_ray():
    imported = imported_with(["mucs_ray.cli.app"])
    assert "typer" in imported
    assert not {"torch", "ray", "numpy", "pyarrow"} & imported


def imported_by(*commands: str) -> set[str]:
    """Return the top names in sys.modules of a fresh process after these commands, which may be refused."""
    program = (
        "import shlex, sys\n"
        "from mucs_ray.cli.app import app\n"
        "for command in sys.argv[1:]: app(shlex.split(command), standalone_mode=False)\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", program, *commands], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def begun_run(folder: Path, method: str = "mucs") -> str:
    """Write a run directory that holds only the recipe, and return its path."""
    data = tiny_dataset(folder / "data")
    recipe = tiny_recipe(data.url, evaluate={"metrics": ["mse"]})
    run = Pipeline.open(recipe, data, str(folder / "run"), console=Console(file=io.StringIO()), methods=(method,))
    storage.publish_json(storage.join(run.run_url, "recipe.json"), run.describe())
    return run.run_url


def test_what_only_looks_loads_neither_torch_nor_ray(tmp_path: Path):
    """Listing the methods, the state of a run, and bad input need neither."""
    run = begun_run(tmp_path)
    typed = f"attribute --run {tmp_path}/other --dataset {tmp_path}/data"
    looked = ("methods", f"status --run {run}", f"status --run {tmp_path}/nowhere")
    imported = imported_by(*looked, f"{typed} --set score.nosies=5", f"{typed} --method magic")
    assert {"mucs_ray", "pyarrow"} <= imported
    assert not {"torch", "ray", "scipy"} & imported


def test_the_check_sees_torch_once_somebody_needs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A method from outside the package is imported when a run names it."""
    (tmp_path / "somebodys.py").write_text("from mucs_ray.attribution.pixel import Pixel\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    assert "torch" in imported_by(f"status --run {begun_run(tmp_path, 'somebodys:Pixel')}")


@pytest.mark.parametrize("module", ["mucs_ray.engine.scoring", "mucs_ray.run.stages"])
def test_the_check_can_fail(module: str):
    assert "ray" in imported_with([module])
