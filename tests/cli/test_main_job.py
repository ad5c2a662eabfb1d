"""A user runs the main job in a process of its own, interrupts, kills and resumes it, and reads its results."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from mucs_ray.cli.app import app

SMALL = {
    "engine.check_weights": "false",
    "model.width": 16, "model.depth": 1, "model.num_heads": 2, "model.condition_channels": 16,
    "train.updates": 20, "train.updates_per_epoch": 10, "generate.items": 2, "generate.steps": 4,
    "method.mucs.null_batches": 2, "method.mucs.max_updates": 4, "score.noises": 2, "engine.train_workers": 1,
    "engine.trainings": 1, "remove.mode": "union", "engine.actors": "[1, 1]",
}  # fmt: skip
"""Settings that make the demo small."""
TOP = 85
"""The length of a top-k list: 5 % of 1,715 training images."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a user's folder, which has its own cache."""
    return tmp_path_factory.mktemp("user")


def start(place: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "MUCS_RAY_CACHE": str(place / "cache"), "COLUMNS": "120"}
    command = [sys.executable, "-m", "mucs_ray.cli", *arguments]
    return subprocess.Popen(
        command,
        cwd=place,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_ctrl_c,
    )


def hear_ctrl_c() -> None:
    """Let a command receive Ctrl-C, which background jobs of a shell, and so tests that are one, ignore."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def run(place: Path, *arguments: str) -> tuple[int, str, str]:
    process = start(place, *arguments)
    out, err = process.communicate(timeout=400)
    return process.returncode, out, err


def run_here(folder: Path, *arguments: str) -> tuple[int, str, str]:
    """Run a command in `folder` in this process, which has already imported everything.

    Return the exit code, stdout and stderr.
    """
    with pytest.MonkeyPatch.context() as patch, chdir(folder):
        patch.setenv("MUCS_RAY_CACHE", str(folder / "cache"))
        patch.setenv("COLUMNS", "120")
        result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.stdout, result.stderr


def small(*command: str) -> list[str]:
    settings = [part for key, value in SMALL.items() for part in ("--set", f"{key}={value}")]
    return [*command, "--json", *settings]


def small_demo(folder: str) -> list[str]:
    return small("demo", "--full", "--run", folder)


def stop_when(process: subprocess.Popen[str], when: Callable[[], bool], with_signal: int) -> tuple[int, str]:
    """Signal a command as soon as `when` holds, and return its exit code and stderr."""
    deadline = time.monotonic() + 300
    while not when():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(with_signal)
    _, stderr = process.communicate(timeout=100)
    return process.returncode, stderr


def file_exists(folder: Path, pattern: str) -> Callable[[], bool]:
    return lambda: any(folder.glob(pattern))


@pytest.fixture(scope="module")
def undisturbed(place: Path) -> dict[str, object]:
    code, out, err = run(place, *small_demo("calm"))
    assert code == 0, err
    return json.loads(out)


STAGES = [
    "pretrain", "generate", "attribute/random", "attribute/mucs/null", "attribute/mucs/unlearn", "attribute/mucs/score",
    "attribute/mucs", "retrain/random", "retrain/mucs", "regenerate/random", "regenerate/mucs", "evaluate/random",
    "evaluate/mucs", "evaluate/unrelated", "report",
]  # fmt: skip


def answer(document: dict[str, object]) -> dict[str, object]:
    return document["attributions"]["mucs"]


def test_stdout_is_one_json_document(undisturbed: dict[str, object], place: Path):
    assert sorted(undisturbed["done_now"]) == sorted(STAGES) and undisturbed["skipped"] == []
    assert [len(item["top"]) for item in answer(undisturbed)["items"]] == [TOP, TOP]
    table = pq.read_table(str(answer(undisturbed)["scores"]))
    assert len(table) == len(set(table["idx"].to_pylist())) and table.column_names == ["idx", "score"]
    evaluation = undisturbed["evaluation"]
    assert evaluation["metrics"] == ["ssim", "mse"] and evaluation["num_items"] == 2
    assert [tested["method"] for tested in evaluation["methods"]] == ["random", "mucs"]


def test_topk_csv_is_the_top_of_scores(undisturbed: dict[str, object]):
    table = pq.read_table(str(answer(undisturbed)["scores"])).to_pydict()
    for number, item in enumerate(answer(undisturbed)["items"]):
        best = sorted((row[number] for row in table["score"]), reverse=True)[:TOP]
        assert [score for _, score in item["top"]] == pytest.approx(best, abs=1e-6)


def test_what_was_removed_is_the_union_of_the_top_lists(undisturbed: dict[str, object], place: Path):
    (file,) = (place / "calm/retrain/mucs").glob("removed.*.csv")
    removed = {int(line) for line in file.read_text().splitlines()[1:]}
    assert removed == {idx for item in answer(undisturbed)["items"] for idx, _ in item["top"]}
    assert undisturbed["evaluation"]["methods"][1]["removed"] == [len(removed)]


def test_the_numbers_lie_beside_the_report(undisturbed: dict[str, object], place: Path):
    numbers = json.loads((place / "calm/report/report.json").read_text())
    assert numbers["evaluation"] == undisturbed["evaluation"]
    assert "mucs,ssim,auc" in (place / "calm/report/results.csv").read_text()
    assert "\\begin{tabular}" in (place / "calm/report/tables.tex").read_text()


def test_report_is_one_file_without_links(undisturbed: dict[str, object]):
    html = Path(str(undisturbed["report"])).read_text()
    assert not re.findall(r'(?:src|href)="(?!data:|#)', html)
    assert html.count("data:image/png;base64,") >= 2 * 16


def test_the_report_has_a_section_on_hubs(undisturbed: dict[str, object], place: Path):
    assert list(undisturbed["hubs"]) == ["mucs"]  # random lists have none
    assert undisturbed["hubs"]["mucs"]["num_lists"] == 2 and undisturbed["hubs"]["mucs"]["top_k"] == TOP
    assert "Training images that come up again and again" in Path(str(undisturbed["report"])).read_text()


def test_again_does_nothing(undisturbed: dict[str, object], place: Path):
    code, out, _ = run_here(place, *small_demo("calm"))
    again = json.loads(out)
    assert code == 0 and again["done_now"] == [] and again["evaluation"] == undisturbed["evaluation"]


@pytest.mark.slow  # four commands that each start Ray; tests/engine shows the same of stages, units and trainings
def test_interrupted_and_killed_equals_undisturbed(undisturbed: dict[str, object], place: Path):
    """Ctrl-C once the weights are imported, then kill -9 during scoring; the same command resumes each time.

    It ends with the same scores, and nothing that was finished is done again. The weights are those of the undisturbed
    run: tests/engine/test_faults.py shows that an interrupted training resumes.
    """
    (weights,) = (place / "calm/pretrain").glob("last.*.safetensors")
    folder = place / "rough"
    command = small("attribute", "--dataset", "emoji", "--run", "rough", "--weights", str(weights))
    imported = file_exists(folder, "pretrain/manifest.json")
    code, stderr = stop_when(start(place, *command), imported, signal.SIGINT)
    assert code == 130, stderr
    assert "the same command goes on from here" in stderr
    scored = "attribute/mucs/score/train-*.parquet"
    code, stderr = stop_when(start(place, *command), file_exists(folder, scored), signal.SIGKILL)
    assert code == -signal.SIGKILL, stderr
    times = {part: part.stat().st_mtime_ns for part in folder.glob(scored)}
    code, out, err = run(place, *command)
    assert code == 0, err
    resumed = json.loads(out)
    assert "pretrain" in resumed["skipped"]
    assert times and {part: part.stat().st_mtime_ns for part in times} == times
    calm = Path(str(answer(undisturbed)["scores"])).read_bytes()
    assert Path(str(answer(resumed)["scores"])).read_bytes() == calm


@pytest.mark.slow
def test_killed_between_two_retrainings(undisturbed: dict[str, object], place: Path):
    """The same command gives the same similarities, and the finished retraining is not repeated."""
    folder = place / "killed"
    process = start(place, *small_demo("killed"))
    code, stderr = stop_when(process, file_exists(folder, "retrain/*/manifest.json"), signal.SIGKILL)
    assert code == -signal.SIGKILL, stderr
    times = {part: part.stat().st_mtime_ns for part in folder.glob("retrain/random/*.safetensors")}
    assert times and not (folder / "retrain/mucs/manifest.json").exists()
    code, out, err = run(place, *small_demo("killed"))
    assert code == 0, err
    resumed = json.loads(out)
    assert {"pretrain", "attribute/mucs/score", "retrain/random"} <= set(resumed["skipped"])
    assert "retrain/mucs" in resumed["done_now"]
    assert {part: part.stat().st_mtime_ns for part in times} == times
    assert similarities(folder) == similarities(place / "calm")


def similarities(folder: Path) -> list[bytes]:
    return [part.read_bytes() for part in sorted(folder.glob("evaluate/*/similarity.*.parquet"))]


def test_status_and_plan_need_no_ray(undisturbed: dict[str, object], place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ray.init", lambda *_, **__: pytest.fail("Ray was started"))
    code, out, _ = run_here(place, "status", "--run", "calm", "--json")
    assert code == 0
    assert {state["status"] for state in json.loads(out)["stages"].values()} == {"done"}
    code, out, _ = run_here(place, "plan", "--dataset", "emoji", "--run", "new", "--json")
    assert code == 0
    stages = {stage["stage"]: stage for stage in json.loads(out)["stages"]}
    assert stages["attribute/mucs/score"]["forwards"] == 1715 * 20 * 9 and stages["attribute/mucs/score"]["seconds"] > 0
