"""The main job as a user runs it: a process of its own, interrupted, killed, resumed, and looked at."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

SMALL = {
    "model.width": 16, "model.depth": 1, "model.num_heads": 2, "model.condition_channels": 16,
    "train.updates": 60, "train.updates_per_epoch": 10, "generate.items": 2, "generate.steps": 4,
    "unlearn.null_batches": 2, "unlearn.max_updates": 4, "score.noises": 4, "engine.train_workers": 1,
}  # fmt: skip
"""The demo, made small."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder, with a cache of its own."""
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
    """A shell's background jobs, and so tests started as one, ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def run(place: Path, *arguments: str) -> tuple[int, str, str]:
    process = start(place, *arguments)
    out, err = process.communicate(timeout=400)
    return process.returncode, out, err


def small_demo(folder: str) -> list[str]:
    settings = [part for key, value in SMALL.items() for part in ("--set", f"{key}={value}")]
    return ["demo", "--run", folder, "--json", *settings]


def stop_when(process: subprocess.Popen[str], when: Callable[[], bool], with_signal: int) -> tuple[int, str]:
    """Signal a command as soon as `when` holds; its exit code and what it said."""
    deadline = time.monotonic() + 300
    while not when():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(with_signal)
    _, said = process.communicate(timeout=100)
    return process.returncode, said


def some(folder: Path, pattern: str) -> Callable[[], bool]:
    return lambda: any(folder.glob(pattern))


@pytest.fixture(scope="module")
def undisturbed(place: Path) -> dict[str, object]:
    code, out, err = run(place, *small_demo("calm"))
    assert code == 0, err
    return json.loads(out)


def test_stdout_is_one_json_document(undisturbed: dict[str, object], place: Path):
    assert undisturbed["done_now"] == ["pretrain", "generate", "null", "unlearn", "score", "attribute", "report"]
    assert [len(item["top"]) for item in undisturbed["items"]] == [34, 34]
    table = pq.read_table(str(undisturbed["scores"]))
    assert len(table) == len(set(table["idx"].to_pylist())) and table.column_names == ["idx", "score"]


def test_topk_csv_is_the_top_of_scores(undisturbed: dict[str, object]):
    table = pq.read_table(str(undisturbed["scores"])).to_pydict()
    for number, item in enumerate(undisturbed["items"]):
        best = sorted((row[number] for row in table["score"]), reverse=True)[:34]
        assert [score for _, score in item["top"]] == pytest.approx(best, abs=1e-6)


def test_report_is_one_file_without_links(undisturbed: dict[str, object]):
    html = Path(str(undisturbed["report"])).read_text()
    assert not re.findall(r'(?:src|href)="(?!data:|#)', html)
    assert html.count("data:image/png;base64,") >= 2 * 16


def test_again_does_nothing(undisturbed: dict[str, object], place: Path):
    code, out, _ = run(place, *small_demo("calm"))
    again = json.loads(out)
    assert code == 0 and again["done_now"] == [] and again["items"] == undisturbed["items"]


def test_interrupted_and_killed_equals_undisturbed(undisturbed: dict[str, object], place: Path):
    """Ctrl-C in the training, kill -9 in the scoring; then the same command ends with the same scores."""
    folder = place / "rough"
    process = start(place, *small_demo("rough"))
    code, said = stop_when(process, some(folder, "pretrain/state.*.safetensors"), signal.SIGINT)
    assert code == 130, said
    assert "the same command goes on from here" in said
    process = start(place, *small_demo("rough"))
    code, said = stop_when(process, some(folder, "attribute/mucs/score/train-*.parquet"), signal.SIGKILL)
    assert code == -signal.SIGKILL, said
    parts = set((folder / "attribute/mucs/score").glob("train-*.parquet"))
    times = {part: part.stat().st_mtime_ns for part in parts}
    code, out, err = run(place, *small_demo("rough"))
    assert code == 0, err
    resumed = json.loads(out)
    assert "pretrain" in resumed["skipped"] and "score" in resumed["done_now"]
    assert {part: part.stat().st_mtime_ns for part in parts} == times
    calm = Path(str(undisturbed["scores"])).read_bytes()
    assert Path(str(resumed["scores"])).read_bytes() == calm


def test_status_and_plan_need_no_ray(undisturbed: dict[str, object], place: Path):
    code, out, _ = run(place, "status", "--run", "calm", "--json")
    assert code == 0
    assert {state["status"] for state in json.loads(out)["stages"].values()} == {"done"}
    code, out, _ = run(place, "plan", "--dataset", "emoji", "--run", "new", "--json")
    assert code == 0
    stages = {stage["stage"]: stage for stage in json.loads(out)["stages"]}
    assert stages["attribute/mucs/score"]["forwards"] == 1715 * 20 * 9 and stages["attribute/mucs/score"]["seconds"] > 0


def test_a_corrupt_shard_is_one_line_and_exit_code_2(undisturbed: dict[str, object], place: Path):
    shard = place / "data/emoji/train/part-00000.parquet"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    try:
        environment = place / "other"
        environment.mkdir()
        (environment / "data").symlink_to(place / "data")
        code, out, err = run(environment, *small_demo("corrupt"))
    finally:
        shard.write_bytes(whole)
    assert code == 2 and out == "", err
    assert "is corrupt" in err and "part-00000.parquet" in err and "Traceback" not in err
