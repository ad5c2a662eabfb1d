"""The way from a command to the network is short: the tests count this package's frames on the stack. No Ray is
started.
"""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import mucs_ray
from mucs_ray.attribution.model_bank import ModelBank
from mucs_ray.data.table import read_unit
from mucs_ray.engine import scoring
from mucs_ray.engine.attempts import AttemptTracker
from mucs_ray.engine.attributors import build
from mucs_ray.engine.models import to_arrays
from mucs_ray.engine.reading import UNIT_COLUMN, with_source
from mucs_ray.errors import RunFailed
from mucs_ray.models.adapters import adapter
from mucs_ray.pipeline.graph import Pipeline, StageRef
from mucs_ray.run import driver
from mucs_ray.run.stages import one_pass
from mucs_ray.run.stages.attribute import attribute_job
from tiny import tiny_dataset
from tiny_run import open_tiny

OURS = Path(mucs_ray.__file__).parent
SCORE = "attribute/mucs/score"
CPU = torch.device("cpu")
Frames = list[tuple[str, str]]


def frames() -> Frames:
    """Return (file, function) of each of this package's frames on the stack, the outermost first."""
    stack = [frame for frame in traceback.extract_stack() if Path(frame.filename).is_relative_to(OURS)]
    return [(str(Path(frame.filename).relative_to(OURS)), frame.name) for frame in stack]


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    return open_tiny(tiny_dataset(tmp_path / "data"), tmp_path / "run")


def on_the_driver(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> Frames:
    """Return the frames while a pass waits for its workers."""
    seen: list[Frames] = []

    @contextmanager
    def pool(*_: object) -> Iterator[Iterator[scoring.Receipt]]:
        def receipts() -> Iterator[scoring.Receipt]:
            seen.append(frames())
            yield from ()

        yield receipts()

    stage = SimpleNamespace(job=SimpleNamespace(stage=pipeline.stages[SCORE]), missing=[1], coordinator=None, bar=None)
    stage.num_failures = 0
    stage.count_failures = lambda *_: stage.missing.clear()
    stage.totals, stage.error = {"worker_seconds": 1.0}, lambda: RunFailed("it was only looked at")
    monkeypatch.setattr(one_pass, "begin_stage", lambda *_, **__: stage)
    monkeypatch.setattr(one_pass, "watching", lambda *_: nullcontext())
    monkeypatch.setattr(one_pass, "scorer_pool", pool)
    monkeypatch.setattr(driver, "check_new_nodes", lambda *_: None)
    monkeypatch.setattr(driver, "current_cluster", lambda *_: SimpleNamespace(engine=pipeline.recipe.engine))
    with pytest.raises(RunFailed, match="it was only looked at"):
        driver.run_stages([StageRef(pipeline, SCORE)])
    return seen[0]


class OneAttempt(SimpleNamespace):
    """This stands in for a coordinator: every unit may begin, and a failure fails the test."""

    def call(self, method: Callable[..., object], *arguments: object) -> str:
        assert method is not AttemptTracker.record_error, arguments
        return "go"


def in_the_worker(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> tuple[Frames, Frames]:
    """Return the frames when the bank of models has forwards to make, and when the network makes one."""
    spec = pipeline.method_stages[SCORE]
    job = attribute_job(pipeline, spec)
    job = replace(job, method_stage=replace(job.method_stage, uses_items=False))  # none is generated
    model = adapter(pipeline.recipe.model).untrained(1, CPU)
    assert model is not None
    method = build(job, to_arrays(model.network.state_dict()), CPU)
    name = method.context.model.names("mlp")[0]
    method.load({}, [{name: method.context.model.network.get_parameter(name) + 1}])
    (unit, *_) = pipeline.dataset.units("train")
    pass_stage = scoring.PassStage(job=job, coordinator=OneAttempt(), units=frozenset([unit.name]))  # type: ignore[arg-type]
    scorer = object.__new__(scoring.Scorer)
    scorer.pass_stages, scorer.units, scorer.methods, scorer.worker = [pass_stage], {unit.name: unit}, [method], None  # type: ignore[assignment]
    monkeypatch.setattr(scoring.metrics, "count_unit", lambda *_, **__: None)

    banks, networks, compute = list[Frames](), list[Frames](), ModelBank._compute_or_replay
    monkeypatch.setattr(ModelBank, "_compute_or_replay", lambda *given: (banks.append(frames()), compute(*given))[1])
    method.context.model.network.register_forward_pre_hook(lambda *_: networks.append(frames()))
    rows = read_unit(unit)
    table = with_source(rows.select([]).append_column(UNIT_COLUMN, [[unit.name] * len(rows)]), job.source, rows)
    assert len(scorer(table)) == 1
    return banks[0], networks[0]


def test_forwards_are_8_frames_in_5_files_from_the_command(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch):
    """The frames are those on the driver, then those in the worker down to where the bank of models makes forwards.

    At most 6 more reach the network.
    """
    on_driver = on_the_driver(pipeline, monkeypatch)
    in_bank, in_network = in_the_worker(pipeline, monkeypatch)
    assert on_driver == [("run/driver.py", "run_stages"), ("run/stages/one_pass.py", "run_pass")]
    assert in_bank == [
        ("engine/scoring.py", "__call__"),
        ("engine/scoring.py", "score_unit"),
        ("attribution/loss_change.py", "columns"),
        ("attribution/loss_change.py", "losses"),
        ("attribution/model_bank.py", "losses"),
        ("attribution/model_bank.py", "_forwards"),
    ]
    assert len(on_driver + in_bank) == 8 and len({file for file, _ in on_driver + in_bank}) == 5
    assert in_network[: len(in_bank)] == in_bank and len(in_network) <= 12
