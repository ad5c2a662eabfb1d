"""benchmarks/gpu/run.sh runs in miniature, without the packages that a bare GPU machine lacks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mucs_ray.diffusion.noise import generator

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu" / "run.sh"
ABSENT = ("ray", "lpips", "open_clip", "timm", "pydantic", "annotated_types", "rich", "typer", "diffusers")
TILES = 20


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the environment of a Python without what that machine lacks; annotated_types has a stand-in."""
    folder = tmp_path_factory.mktemp("bare")
    hidden = [name for name in ABSENT if name != "annotated_types"]
    (folder / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({hidden!r}))\n")
    return {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(folder)}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a sheet of 20 x 20 tiles, laid out as the real one."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "cifar10").mkdir()
    pixels = generator(1, "sheet").integers(0, 256, (32 * TILES, 32 * TILES, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "cifar10" / "data_batch_1.webp", lossless=True)
    return folder


def run(environment: dict[str, str], *arguments: object) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(SCRIPT), *map(str, arguments), "--tiny"]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.slow  # five processes that import torch, each with a training
def test_every_section_runs_in_miniature_and_is_not_run_twice(
    environment: dict[str, str], pictures: Path, tmp_path: Path
):
    done = run(environment, tmp_path, "--data", pictures)
    assert done.returncode == 0, done.stdout + done.stderr
    correct, throughput, cifar10 = (
        json.loads((tmp_path / f"{name}.json").read_text()) for name in ("correct", "throughput", "cifar10")
    )
    assert correct["captured equals eager bit for bit"] is True
    assert correct["turns equal all at once bit for bit"] is True
    assert correct["images arriving equal images there bit for bit"] is True
    assert correct["training, engine, captured"]["twice equal"] is True
    for way in ("published", "eager", "eager, captured"):
        assert throughput[f"cifar10, {way}"]["forwards/s"] > 0
        assert throughput["cifar10, minutes an item"][f"MUCS scoring, {way}"] > 0
    assert set(cifar10["removed"]) == {"random", "mucs"}
    assert len(cifar10["SSIM, mucs"]["each"]) == cifar10["n"] == 2
    page = (tmp_path / "page.md").read_text()
    for heading in ("Is what the GPU computes right?", "How fast are the inner loops?", "A counterfactual test"):
        assert heading in page
    assert str(SCRIPT.name) in page
    assert "failed" not in page
    assert Image.open(tmp_path / "pictures.png").size == (2 * 96, 3 * 96)  # 2 items; as generated, 2 retrainings
    again = run(environment, tmp_path, "--data", pictures)
    assert again.stdout.count("is done") == 3


def test_a_cut_section_is_reported_on_the_page(environment: dict[str, str], tmp_path: Path):
    """The last run left a part file: the page uses it, and has all other sections."""
    machine = {"card": "none", "torch": "2", "python": "3", "cpus": 1}
    facts = {"machine": machine, "started": "2026-11-27 10:00:00", "seconds": 3.0}
    (tmp_path / "throughput.part.json").write_text(json.dumps({**facts, "cifar10, GFLOP a forward": 1.0,
                                                               "cifar10, ceiling TFLOP/s": {"best": 2.0}}))  # fmt: skip
    done = run(environment, tmp_path, "--only", "cifar10")
    assert "cifar10 is left out: no --data" in done.stdout
    assert "It was cut by its time limit" in (tmp_path / "page.md").read_text()


def test_an_unknown_option_is_refused(environment: dict[str, str], tmp_path: Path):
    done = run(environment, tmp_path, "--dta", "x")
    assert done.returncode == 2
    assert "unknown option --dta" in done.stderr
