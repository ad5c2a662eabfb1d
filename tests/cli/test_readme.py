"""Every command of the README runs, in the README's order, on stand-ins for the user's files, with small models."""

import re
import shlex
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from mucs_ray.cli.app import app
from mucs_ray.data.sources import cifar10
from mucs_ray.engine import preparing, trainings
from mucs_ray.engine.session import session
from mucs_ray.models.dit import DiT, DiTConfig
from mucs_ray.run import driver
from tiny_run import train_all_plainly

README = Path(__file__).parents[2] / "README.md"
SMALL = {
    "engine.check_weights": "false",
    "train.updates": 4, "train.updates_per_epoch": 2, "train.batch_size": 8,
    "engine.train_workers": 1, "engine.actors": "[1, 1]",
    "generate.items": 1, "generate.controls": 0, "generate.steps": 2,
    "method.mucs.bound": 1.0, "method.mucs.max_updates": 1, "method.mucs.batch_size": 8, "score.noises": 1,
    "score.images_per_forward": 64,
    "method.dtrak.noises": 1, "method.dtrak.dim": 16, "method.das.noises": 1, "method.das.dim": 16,
}  # fmt: skip
RECORDS = 400
"""The number of images in a stand-in for a batch of CIFAR-10, which has 10,000."""
SMALL_MODEL = {"width": 64, "depth": 1, "num_heads": 1, "registers": 1, "condition_channels": 16}


def commands() -> list[list[str]]:
    """Return the `mucs-ray` lines of the README's shell blocks as lists of arguments."""
    blocks = re.findall(r"```sh\n(.*?)```", README.read_text(), flags=re.DOTALL)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("mucs-ray ")]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Fill a user's folder with CIFAR-10 in its official layout, weights of its model, and some pictures."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MUCS_RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cifar10, "PER_BATCH", RECORDS)
    rng = np.random.default_rng(0)
    batches = tmp_path / "cifar-10-batches-bin"
    batches.mkdir()
    for name in ("data_batch_1.bin", "test_batch.bin"):
        records = rng.integers(0, 256, (RECORDS, 3073), dtype=np.uint8)
        records[:, 0] %= 10
        (batches / name).write_bytes(records.tobytes())
    classes = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (batches / "batches.meta.txt").write_text("\n".join(classes) + "\n")
    network = DiT(DiTConfig(**SMALL_MODEL))
    torch.save({"ema": network.state_dict(), "epoch": 1}, tmp_path / "cifar10.ckpt")
    (tmp_path / "weights").mkdir()  # no weights of similarity metrics, which are therefore left out
    for name in ("cat", "dog"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(20):
            pixels = rng.integers(0, 256, (70, 90, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{number}.png")
    return tmp_path


def small(arguments: list[str]) -> list[str]:
    """Add the settings of SMALL to a command, and those of the model unless weights bring their own."""
    if arguments[0] not in ("attribute", "plan", "demo", "pretrain", "generate", "report", "run", "evaluate"):
        return arguments
    settings = {**SMALL, **({} if "--weights" in arguments else {f"model.{k}": v for k, v in SMALL_MODEL.items()})}
    return [*arguments, *(part for key, value in settings.items() for part in ("--set", f"{key}={value}"))]


def test_there_are_commands():
    named = {arguments[0] for arguments in commands()}
    assert named >= {"data", "plan", "attribute", "status"}


@pytest.fixture
def one_ray(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run all commands in one Ray session, with the trainings in a plain loop.

    Other tests show that each command starts its own session and trains through Ray Train.
    """
    monkeypatch.setattr(trainings, "train_all", train_all_plainly)
    with session() as cluster:
        for module in (driver, preparing):
            monkeypatch.setattr(module, "session", lambda *_, **__: nullcontext(cluster))
        yield


def test_every_command_runs(home: Path, one_ray: None):
    for arguments in commands():
        expanded = [argument.replace("~", str(home)).replace("1..3", "1..1") for argument in arguments]
        if "coco" in arguments:  # it cannot be prepared without CLIP's weights, but its options are checked
            expected, message = 2, "no data set at"
        else:
            expected, message = 0, ""
        result = CliRunner().invoke(app, small(expanded))
        assert result.exit_code == expected, (arguments, result.output)
        assert message in result.stderr
    assert (home / "runs/cifar10/report.html").exists() and (home / "runs/mine/report.html").exists()
    assert {path.name for path in (home / "runs/emoji").iterdir()} >= {"report.html", "report", "seed-1"}
