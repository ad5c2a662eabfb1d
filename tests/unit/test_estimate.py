"""`mucs-ray plan` computes costs from counts and a speed; the tests give the speed and work out each number by hand.

The tiny set has 60 training images in 4 units, 2 items and 1 control, 12 updates of 8 images.
"""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from mucs_ray.attribution.base import Passes
from mucs_ray.cli.app import app
from mucs_ray.data.table import Dataset
from mucs_ray.engine.pace import PACE
from mucs_ray.errors import InputError
from mucs_ray.pipeline.graph import Pipeline
from mucs_ray.planning import cost as estimating
from mucs_ray.planning import speed as speeds
from mucs_ray.planning.cost import Estimate, cost, estimate, hours_text, total
from mucs_ray.planning.speed import Speed
from mucs_ray.planning.workload import Work, left_to_do
from tiny import tiny_dataset, tiny_recipe, tiny_toml

HERE = Speed(forward_s=0.5, backward_s=2.0, forward_flop=100.0, processor="CPU", measured="on one CPU of this machine")
SCORE = "attribute/mucs/score"
UPDATES = 12 * 8
"""Images that a training sees."""
SCORED = 60 * 5 * (1 + 2)
"""Forwards: images, noises, and networks."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def known_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speeds, "measure", lambda pipeline: HERE)
    monkeypatch.setattr(estimating, "usable_cpus", lambda: 2)
    monkeypatch.setattr(estimating.torch.cuda, "device_count", lambda: 0)


def opened(data: Dataset, folder: Path, **changes: object) -> Pipeline:
    recipe = tiny_recipe(data.url, **{"evaluate": {"metrics": ["mse"]}, **changes})
    return Pipeline.open(recipe, data, str(folder), console=Console(file=io.StringIO()))


def rows(pipeline: Pipeline, command: Any = "attribute", *, processor: str = "CPU") -> dict[str, Work]:
    return {work.stage: work for work in left_to_do(pipeline, pipeline.plan(command), processor=processor)}


@pytest.mark.parametrize(
    ("pieces", "workers", "wall"),
    [(4, 1, 7200), (4, 2, 3600), (4, 3, 3600), (4, 4, 1800), (4, 100, 1800), (1, 8, 7200)],
)
def test_more_workers_take_less_time_and_as_many_hours(pieces: int, workers: int, wall: float):
    """2 hours of work in 4 pieces take 3 workers two rounds; in the second one two of them wait."""
    work = Work(
        stage="s", work="", passes=Passes(forwards=4000, backwards=2600), written_bytes=0, pieces=pieces
    )  # 4000 x 0.5 s + 2600 x 2 s = 7200 s
    actual = cost(work, HERE, workers=workers, price=2.5)
    assert (actual.seconds, actual.worker_seconds, actual.money) == (wall, 7200, 5.0)
    assert actual.forwards == 6600 and actual.flop == 100 * (4000 + 3 * 2600)


def test_no_price_is_no_money(data: Dataset, tmp_path: Path):
    actual = estimate(opened(data, tmp_path))
    assert actual.price is None and actual.total.money is None and "money" not in actual.titles()
    assert {stage.money for stage in actual.stages} == {None}
    assert len(actual.titles()) == len(actual.total.cells())


def test_the_total_is_of_one_stage_after_another(data: Dataset, tmp_path: Path):
    """Pretraining and scoring (4 units) keep both of 2 workers busy."""
    actual = estimate(opened(data, tmp_path), price=3600.0)
    stages = {stage.stage: stage for stage in actual.stages}
    assert stages["pretrain"].worker_seconds == UPDATES * 2.0 and stages["pretrain"].seconds == UPDATES * 1.0
    assert stages[SCORE].worker_seconds == SCORED * 0.5 and stages[SCORE].seconds == SCORED * 0.25
    assert actual.total.worker_seconds == sum(stage.worker_seconds for stage in actual.stages) == actual.total.money
    assert actual.total.seconds == sum(stage.seconds for stage in actual.stages)
    assert actual.processor == "CPU" and "CPU-h" in actual.titles() and "money" in actual.titles()
    assert len(actual.titles()) == len(actual.total.cells())
    assert "measured on one CPU of this machine: 2 forwards/s" in actual.basis and "2 CPUs" in actual.basis


def test_workers_of_another_place(data: Dataset, tmp_path: Path):
    """There are 4 units, so that the other workers have nothing to score."""
    actual = {stage.stage: stage for stage in estimate(opened(data, tmp_path), workers=1000).stages}
    assert actual[SCORE].seconds == SCORED * 0.5 / 4 and actual[SCORE].worker_seconds == SCORED * 0.5


@pytest.mark.parametrize(("backward_s", "days"), [(2.0, None), (1800.5, "1"), (90_000.0, "50")])
def test_a_training_of_days_is_told_before_it_begins(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backward_s: float, days: str | None
):
    """96 images take 2 workers 48 times the seconds of one; more than a day from 1,800 s on."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(estimating, "QUICK_FLOP", 1.0)
    monkeypatch.setattr(speeds, "measure", lambda recipe: replace(HERE, backward_s=backward_s))
    pipeline = opened(data, tmp_path)
    line = estimating.long_training(pipeline, pipeline.plan("attribute"))
    assert line is None if days is None else line and f"about {days} days on the 2 CPUs" in line
    assert line is None or "--recipe custom-small" in line
    # neither on a cluster, nor for what is quick, nor where the model is there
    cluster = replace(pipeline, address="auto")
    assert estimating.long_training(cluster, cluster.plan("attribute")) is None
    monkeypatch.setattr(estimating, "QUICK_FLOP", 1e15)
    assert estimating.long_training(pipeline, pipeline.plan("attribute")) is None
    monkeypatch.setattr(estimating, "QUICK_FLOP", 1.0)
    pipeline.stages["pretrain"].finish({}, {})
    assert estimating.long_training(pipeline, pipeline.plan("attribute")) is None


@pytest.mark.parametrize("price", [0.0, -1.0, float("nan"), float("inf")])
def test_a_price_is_a_number_above_0(data: Dataset, tmp_path: Path, price: float):
    with pytest.raises(InputError, match=r"--price .* expected a number above 0"):
        estimate(opened(data, tmp_path), price=price)


def test_into_how_many_pieces_work_falls(data: Dataset, tmp_path: Path):
    pieces = {name: work.pieces for name, work in rows(opened(data, tmp_path)).items()}
    assert pieces == {"pretrain": 2, "generate": 3, "attribute/mucs/null": 1, "attribute/mucs/unlearn": 2, SCORE: 4}
    assert rows(opened(data, tmp_path), processor="GPU")["pretrain"].pieces == 1  # 8 images at least for a GPU
    assert rows(opened(data, tmp_path, engine={"train_workers": 4}))["pretrain"].pieces == 4


def test_the_counterfactual_test_is_counted_for_run(data: Dataset, tmp_path: Path):
    """Two retrainings, without random's and MUCS's images, run side by side; both networks generate images again."""
    attribution, whole = rows(opened(data, tmp_path)), rows(opened(data, tmp_path), "evaluate")
    assert set(whole) - set(attribution) == {"retrain", "regenerate"}
    assert whole["retrain"].passes == Passes(backwards=2 * UPDATES) and whole["retrain"].pieces == 2 * 2
    assert whole["generate"].passes == Passes(forwards=3 * 7 * 2)  # 4 steps take 7 evaluations, guided ones two each
    assert whole["regenerate"].passes == Passes(forwards=2 * 3 * 7 * 2) and whole["regenerate"].pieces == 2 * 3


def test_a_retraining_an_item(data: Dataset, tmp_path: Path):
    whole = rows(opened(data, tmp_path, remove={"mode": "per-item"}), "evaluate")
    assert whole["retrain"].passes == Passes(backwards=2 * 2 * UPDATES)
    assert whole["regenerate"].passes == Passes(forwards=2 * 2 * 7 * 2)  # no control


def test_models_of_subsets_are_counted_for_lds(data: Dataset, tmp_path: Path):
    """Five models of subsets make 2 targets each, by 14 forwards, and have their losses at 60 noises."""
    changes = {"lds": {"subsets": 4, "repeats": 1}}
    attribution, whole = rows(opened(data, tmp_path)), rows(opened(data, tmp_path, **changes), "lds")
    assert set(whole) - set(attribution) == {"lds/train", "lds/outputs"}
    assert whole["lds/train"].passes == Passes(backwards=5 * UPDATES) and whole["lds/train"].pieces == 5 * 2
    assert whole["lds/outputs"].passes == Passes(forwards=5 * 2 * (7 * 2 + 60)) and whole["lds/outputs"].pieces == 5


def test_models_without_groups_are_counted_for_groups(data: Dataset, tmp_path: Path):
    """Three groups, each trained without twice; 5 updates of 8 images of the group and 8 others; 2 items by 2 noises of
    4 levels.
    """
    changes = {"golds": 2, "unlearners": ["zero", "esd", "retain-only"], "updates": 5, "batch_size": 8, "levels": 4}
    attribution, whole = rows(opened(data, tmp_path)), rows(opened(data, tmp_path, groups=changes), "groups")
    unlearn, score = "groups/unlearn", "groups/score"
    assert whole["groups/retrain"].passes == Passes(backwards=6 * UPDATES) and whole["groups/retrain"].pieces == 6 * 2
    assert whole[f"{unlearn}/zero"].passes == Passes(backwards=3 * 5 * 16) and whole[f"{unlearn}/zero"].pieces == 3
    assert whole[f"{unlearn}/esd"].passes == Passes(backwards=3 * 5 * 16, forwards=3 * 5 * 16)  # with and without class
    assert whole[f"{unlearn}/retain-only"].passes == Passes(backwards=3 * 5 * 8)
    assert whole[f"{unlearn}/zero"].written_bytes == 3 * whole["pretrain"].written_bytes // 5
    assert whole[f"{score}/full"].passes == Passes(forwards=2 * 2 * 4) and whole[f"{score}/full"].pieces == 1
    assert whole[f"{score}/retrained-repeat"].passes == Passes(forwards=3 * 2 * 2 * 4)
    assert whole[f"{score}/zero"].written_bytes == 3 * 2 * 2 * 4 * 8
    assert set(whole) - set(attribution) == {
        "groups/retrain", *(f"{unlearn}/{name}" for name in ("zero", "esd", "retain-only")),
        *(f"{score}/{name}" for name in ("full", "retrained", "retrained-repeat", "zero", "esd", "retain-only")),
    }  # fmt: skip
    anchored = rows(opened(data, tmp_path, groups={**changes, "unlearners": ["uniform"]}), "groups")
    assert anchored[f"{unlearn}/uniform"].passes == Passes(backwards=3 * 5 * 16, forwards=3 * 5 * 16)
    taught = rows(opened(data, tmp_path, groups={**changes, "retain": "distil"}), "groups")
    assert taught[f"{unlearn}/zero"].passes == Passes(backwards=3 * 5 * 16, forwards=3 * 5 * 8)


def test_what_is_done_costs_nothing(data: Dataset, tmp_path: Path):
    pipeline = opened(data, tmp_path)
    for name in ("pretrain", "retrain/random"):
        pipeline.stage(name).finish({}, {})
    whole = rows(pipeline, "evaluate")
    assert "pretrain" not in whole and whole["retrain"].passes == Passes(backwards=UPDATES)


def begun(pipeline: Pipeline, **facts: object) -> None:
    """Write the event by which scoring reports its pace."""
    work = {"forwards": 1000, "worker_seconds": 250.0, "processor": "GPU"}
    fingerprint = pipeline.stages[SCORE].fingerprint
    pipeline.events.add(PACE, **{"stage": SCORE, "fingerprint": fingerprint, **work, **facts})
    pipeline.events.flush()


def test_a_run_is_planned_by_the_pace_that_it_has_recorded(data: Dataset, tmp_path: Path):
    """4 forwards a second instead of 2; a backward pass takes 4 times as long as a forward, as here."""
    pipeline = opened(data, tmp_path)
    begun(pipeline, forwards=1, worker_seconds=99.0)
    begun(pipeline)  # the last one counts
    actual = estimate(pipeline)
    stages = {stage.stage: stage for stage in actual.stages}
    assert stages[SCORE].worker_seconds == SCORED * 0.25 and stages["pretrain"].worker_seconds == UPDATES * 1.0
    assert actual.basis.startswith(f"measured in this run on {SCORE}: 4 forwards/s")
    assert actual.processor == "GPU" and "GPU-h" in actual.titles()


@pytest.mark.parametrize("facts", [{"fingerprint": "of other settings"}, {"forwards": 0}, {"stage": "attribute/gone"}])
def test_a_pace_that_says_nothing_of_this_run(data: Dataset, tmp_path: Path, facts: dict[str, object]):
    pipeline = opened(data, tmp_path)
    begun(pipeline, **facts)
    assert estimate(pipeline).basis.startswith("measured on one CPU of this machine")


def test_a_finished_stage_shows_its_speed(data: Dataset, tmp_path: Path):
    """Its manifest counts, and not its first minute; here only `mucs` is attributed, and the test is still to come."""
    pipeline = opened(data, tmp_path)
    begun(pipeline)
    pipeline.stage(SCORE).finish({}, {"forwards": 900, "worker_seconds": 90.0})
    actual = estimate(pipeline, "evaluate")
    (retrained,) = (stage for stage in actual.stages if stage.stage == "retrain")
    assert retrained.worker_seconds == pytest.approx(2 * UPDATES * 0.4)
    assert actual.basis.startswith(f"measured in this run on {SCORE}: 10 forwards/s")


def test_the_command_prints_the_same_numbers(data: Dataset, tmp_path: Path):
    """Scoring takes 450 s of workers, two rounds of 4 units on 3 workers, at 2.5 an hour."""
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(tiny_toml(data.url, evaluate={"metrics": ["mse"]}))
    options = ["--recipe", str(recipe), "--run", str(tmp_path / "run"), "--price", "2.5", "--workers", "3"]
    result = CliRunner().invoke(app, ["plan", *options, "--for", "run", "--json"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    (score,) = (stage for stage in document["stages"] if stage["stage"] == SCORE)
    assert (score["worker_seconds"], score["seconds"], score["money"]) == (450.0, 225.0, 0.3125)
    assert (document["workers"], document["processor"], document["price"]) == (3, "CPU", 2.5)
    assert "retrain" in [stage["stage"] for stage in document["stages"]] and document["total"]["money"] > 0.3125
    shown = CliRunner().invoke(app, ["plan", *options]).stdout
    (line,) = (line for line in shown.splitlines() if line.startswith("mucs score"))
    assert "0.125" in line and "3.8 min" in line and line.endswith(" 0.31")
    assert "in all" in shown and "CPU-h" in shown and "with 3 CPUs like it" in shown and "regenerate" not in shown


@pytest.mark.parametrize(("seconds", "text"), [(36, "0.010"), (3600 * 18.8, "18.8"), (3600 * 796e3, "796,000.0")])
def test_hours_for_reading(seconds: float, text: str):
    assert hours_text(seconds) == text


@pytest.mark.parametrize(("hours", "told"), [(23, None), (36, "that is 1.5 days with 2 CPUs; for a small machine")])
def test_a_run_of_more_than_a_day_is_warned_of(hours: float, told: str | None):
    """1 s a forward on one of two workers, and as many forwards as fill the time."""
    speed = replace(HERE, forward_s=1.0)
    passes = Passes(forwards=int(2 * hours * 3600))
    work = cost(Work(stage="s", work="", passes=passes, written_bytes=0, pieces=2), speed, workers=2, price=None)
    found = Estimate(
        stages=[work], total=total([work], price=None), workers=2, processor="CPU", price=None, basis=""
    ).warning
    assert found is None if told is None else found is not None and found.startswith(told)
