"""`ray job submit --working-dir . -- python cli.py ...` runs this working tree on a Ray that somebody else started."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ray_head import free_port, ray_head
from tiny import tiny_dataset, tiny_toml

ROOT = Path(__file__).parents[2]
UPLOAD_BYTES = 20_000_000
"""The largest upload that is still quick to send; Ray refuses 500 MiB."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@dataclass(frozen=True, kw_only=True)
class Place:
    """A Ray with a dashboard, to which jobs are submitted, and a folder that both it and this process see."""

    dashboard: str
    sessions: Path
    folder: Path

    def submit(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Submit a command from the root of the repository, and return when the job has ended."""
        submit = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", self.dashboard]
        command = [*submit, "--working-dir", ".", "--", "python", "cli.py", *words]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)

    def uploaded(self) -> dict[Path, int]:
        """Return the files that the last job had in its working folder, with sizes in bytes, but not compiled ones."""
        unpacked = self.sessions.glob("ray/session_2*/runtime_resources/working_dir_files/_ray_pkg_*/")
        last = max(unpacked, key=lambda folder: folder.stat().st_mtime)
        files = [path for path in last.rglob("*") if path.is_file() and path.suffix != ".pyc"]
        return {path.relative_to(last): path.stat().st_size for path in files}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder, dashboard = tmp_path_factory.mktemp("shared"), free_port()
    (folder / "tiny.toml").write_text(tiny_toml(tiny_dataset(folder / "data").url, engine={"train_workers": 1}))
    environment = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # "python" is this one
        "MUCS_RAY_CACHE": str(folder / "cache"),
    }
    options = ["--num-cpus=2", "--include-dashboard=true", f"--dashboard-port={dashboard}"]
    options += [f"--dashboard-agent-listen-port={free_port()}"]  # takes the jobs; fixed unless told otherwise
    with ray_head(*options, port=free_port(), environment=environment) as sessions:
        yield Place(dashboard=f"http://127.0.0.1:{dashboard}", sessions=sessions, folder=folder)


def scores(run: Path) -> dict[str, bytes]:
    files = [*run.glob("attribute/mucs/score/train-*.parquet"), run / "attribute/mucs/topk.csv"]
    return {file.name: file.read_bytes() for file in files}


def test_a_job_gives_the_scores_of_the_local_command(place: Place, monkeypatch: pytest.MonkeyPatch):
    words = ["attribute", "--recipe", str(place.folder / "tiny.toml"), "--run"]
    job = place.submit(*words, str(place.folder / "job"))
    assert job.returncode == 0, job.stdout + job.stderr
    assert "done  report" in job.stdout
    assert any(place.sessions.glob("ray/*/runtime_resources/working_dir_files/*/mucs_ray/**/*.pyc"))  # the upload ran

    monkeypatch.setenv("MUCS_RAY_CACHE", str(place.folder / "cache"))
    local = [sys.executable, "-m", "mucs_ray.cli", *words, str(place.folder / "local")]
    subprocess.run(local, check=True, capture_output=True, timeout=400)
    assert len(scores(place.folder / "job")) == 5 and scores(place.folder / "job") == scores(place.folder / "local")


def test_bad_input_is_one_line_and_a_failed_job(place: Place):
    job = place.submit("attribute", "--dataset", str(place.folder / "nowhere"), "--run", str(place.folder / "bad"))
    assert job.returncode == 1 and "failed with exit code 2" in job.stdout
    output = job.stdout + job.stderr
    (line,) = {line for line in output.splitlines() if "error:" in line}  # Ray shows the end of the log once more
    assert f"no data set at {place.folder}/nowhere" in line
    assert "Traceback" not in output and not (place.folder / "bad").exists()


def test_what_is_uploaded(place: Place):
    """Code and package data are uploaded; the history and files that `.gitignore` names are not."""
    assert "mucs-ray " in place.submit("--version").stdout
    files = place.uploaded()
    assert {Path("cli.py"), Path("mucs_ray/cli/app.py"), Path("mucs_ray/report/template.html.j2")} <= files.keys()
    assert not {".venv", ".git", "runs", "data"} & {file.parts[0] for file in files}
    print(f"{len(files)} files, {sum(files.values()):,} bytes")
    assert sum(files.values()) < UPLOAD_BYTES
