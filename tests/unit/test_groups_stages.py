"""The stages of group attribution: their order, what they depend on, and what is refused."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from mucs_ray import storage
from mucs_ray.cli import app as cli
from mucs_ray.cli.app import app
from mucs_ray.data.table import Dataset
from mucs_ray.errors import InputError
from mucs_ray.pipeline.graph import Pipeline, StageRef
from mucs_ray.pipeline.groups_stages import RESULT
from mucs_ray.pipeline.lds_stages import training_number
from tiny import tiny_dataset, tiny_recipe, tiny_toml

TRAININGS = [f"groups/retrain/{number:04d}" for number in range(3)]
GROUPS = {"updates": 2, "batch_size": 8, "learning_rate": 1e-3, "levels": 4, "unlearners": ["zero", "retrack"]}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("data"))


def opened(data: Dataset, folder: Path, **changes: Any) -> Pipeline:
    sections = {"evaluate": {"metrics": ["mse"]}, **changes, "groups": {**GROUPS, **changes.get("groups", {})}}
    recipe = tiny_recipe(data.url, **sections)
    return Pipeline.open(recipe, data, str(folder), console=Console(file=io.StringIO()), methods=("random",))


def test_the_stages_in_their_order(data: Dataset, tmp_path: Path):
    pipeline = opened(data, tmp_path)
    assert list(pipeline.plan("groups")) == [
        "pretrain", "generate", "attribute/random", "groups/members", *TRAININGS, "groups/unlearn/zero",
        "groups/unlearn/retrack", "groups/score/full", "groups/score/retrained", "groups/score/zero",
        "groups/score/retrack", "groups/result", "report",
    ]  # fmt: skip
    refs = [StageRef(pipeline, name) for name in pipeline.group_stages]
    assert [ref.name for ref in refs if ref.is_training] == TRAININGS
    assert list(dict.fromkeys(ref.phase for ref in refs)) == [
        "groups/members", "groups/retrain", "groups/unlearn", "groups/score", "groups/result",
    ]  # fmt: skip
    assert training_number("groups/retrain/0012-repeat") == 12
    assert not any(name.startswith("groups") for name in pipeline.plan("attribute"))


def test_a_second_gold_is_trained_with_another_seed(data: Dataset, tmp_path: Path):
    pipeline = opened(data, tmp_path, groups={"golds": 2, "unlearners": []})
    names = list(pipeline.group_stages)
    assert names[1:7] == [*TRAININGS, *(f"{name}-repeat" for name in TRAININGS)]
    repeat = pipeline.stage("groups/score/retrained-repeat")
    assert set(repeat.inputs) == {"generate", *names[4:7]}


def stale(first: Pipeline, second: Pipeline) -> list[str]:
    before, after = first.group_stages, second.group_stages
    return [name for name in before if name in after and before[name].fingerprint != after[name].fingerprint]


def test_a_changed_setting_makes_exactly_its_stages_stale(data: Dataset, tmp_path: Path):
    first = opened(data, tmp_path / "a")
    scored = [f"groups/score/{name}" for name in ("full", "retrained", "zero", "retrack")]
    forgotten = ["groups/unlearn/zero", "groups/unlearn/retrack"]
    assert stale(first, opened(data, tmp_path / "b", groups={"updates": 3})) == [*forgotten, *scored[2:], RESULT]
    assert stale(first, opened(data, tmp_path / "c", groups={"levels": 5})) == [*scored, RESULT]
    assert stale(first, opened(data, tmp_path / "d", groups={"unlearners": ["zero"]})) == [RESULT]
    assert stale(first, opened(data, tmp_path / "e", groups={"golds": 2})) == [RESULT]
    assert stale(first, opened(data, tmp_path / "f", score={"noises": 7})) == []
    by_skew = opened(data, tmp_path / "g", groups={"score": "skew"})
    assert stale(by_skew, opened(data, tmp_path / "h", groups={"score": "skew"}, score={"noises": 7})) == [
        *scored,
        RESULT,
    ]


def test_misplaced_images_are_other_groups(data: Dataset, tmp_path: Path):
    """One image of each of three groups of 20 changes places, and only the full model does not see it."""
    right, wrong = (opened(data, tmp_path / str(share), groups={"misplaced": share}) for share in (0.0, 0.05))
    assert (right.groups.group != wrong.groups.group).sum() == 3 and wrong.groups.sizes == [20, 20, 20]
    assert [name for name in right.group_stages if name not in stale(right, wrong)] == ["groups/score/full"]


def test_a_report_shows_groups_that_are_done_with_other_methods(data: Dataset, tmp_path: Path):
    by_two = Pipeline.open(
        opened(data, tmp_path).recipe,
        data,
        str(tmp_path),
        console=Console(file=io.StringIO()),
        methods=("random", "pixel"),
    )
    assert by_two.groups_result() is None and RESULT not in by_two.report().inputs
    assert RESULT in by_two.report(planned=[RESULT]).inputs
    by_two.stage(RESULT).finish({}, {})
    done = opened(data, tmp_path).groups_result()
    assert done is not None and done.fingerprint == by_two.stage(RESULT).fingerprint
    assert RESULT in opened(data, tmp_path).report().inputs
    assert opened(data, tmp_path, groups={"levels": 5}).groups_result() is None  # stale
    assert opened(data, tmp_path, groups={"by": "gone.csv"}).groups_result() is None


def test_only_unlearning_to_anchors_reads_their_settings(data: Dataset, tmp_path: Path):
    both = {"unlearners": ["zero", "awss"]}
    first = opened(data, tmp_path / "a", groups=both)
    for number, change in enumerate(({"beta": 1.0}, {"words": 2}, {"descriptors": {"red": ["warm", "bright"]}})):
        second = opened(data, tmp_path / f"b{number}", groups={**both, **change})
        assert stale(first, second) == ["groups/unlearn/awss", "groups/score/awss", RESULT]


def test_other_groups_make_everything_stale_but_the_full_model(data: Dataset, tmp_path: Path):
    files = []
    for number, moved in enumerate((5, 6)):
        files.append(tmp_path / f"{number}.csv")
        files[-1].write_text(
            "idx,group\n" + "".join(f"{idx},{'a' if idx < 20 else 'b'}\n" for idx in range(40) if idx != moved)
        )
    first, second = (opened(data, tmp_path / "run", groups={"by": str(file)}) for file in files)
    assert [name for name in first.group_stages if name not in stale(first, second)] == ["groups/score/full"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"groups": {"by": "artist"}}, "no column 'artist'"),
        ({"groups": {"golds": 0, "unlearners": []}}, "nothing to score groups with"),
        ({"groups": {"unlearners": ["matched"]}}, "matched, which needs groups.content"),
        ({"groups": {"unlearners": ["uniform"], "by": "text"}}, "uniform, which shows images as another class"),
        ({"train": {"batch_size": 50}}, "without its largest group the training set has 40 images"),
    ],
)
def test_what_cannot_be_compared_is_one_line(data: Dataset, tmp_path: Path, changes: Any, told: str):
    with pytest.raises(InputError, match=told):
        opened(data, tmp_path, **changes).plan("groups")


@pytest.mark.parametrize(
    ("by", "told"), [("artist", "no column 'artist'"), ("gone.csv", "no file of groups at gone.csv")]
)
def test_the_command_refuses_bad_groups_in_one_line(
    data: Dataset, tmp_path: Path, by: str, told: str, capsys: pytest.CaptureFixture[str]
):
    pipeline = opened(data, tmp_path)
    storage.publish_json(storage.join(pipeline.run_url, "recipe.json"), pipeline.describe())
    result = CliRunner().invoke(app, ["groups", "--run", pipeline.run_url, "--by", by])
    printed = " ".join((result.output + capsys.readouterr().err).split())
    assert result.exit_code == 2 and told in printed and "Traceback" not in printed


@pytest.mark.parametrize("several", [[], ["--seeds", "1..2"]])
def test_run_refuses_bad_groups_before_it_trains(data: Dataset, tmp_path: Path, several: list[str]):
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(tiny_toml(data.url, evaluate={"metrics": ["mse"]}))
    command = ["run", "--recipe", str(recipe), "--run", str(tmp_path / "run"), "--by", "artist", *several]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2 and "no column 'artist'" in result.output
    assert not list((tmp_path / "run").rglob("plan.json"))


def test_run_goes_on_to_groups_and_prints_one_document(data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(tiny_toml(data.url, evaluate={"metrics": ["mse"]}))
    commands = {
        "evaluate": {"done_now": ["pretrain"], "skipped": ["generate"], "seed": 1},
        "groups": {"done_now": ["groups/members"], "skipped": ["pretrain", "generate"], "groups": ["red"]},
    }
    ran: list[str] = []

    def instead(command: str, output: object, pipeline: Pipeline) -> dict[str, Any]:
        assert pipeline.recipe.groups.by == "label"
        ran.append(command)
        return commands[command]

    monkeypatch.setattr(cli, "run_command", instead)
    options = ["--recipe", str(recipe), "--run", str(tmp_path / "run"), "--json"]
    result = CliRunner().invoke(app, ["run", *options, "--by", "label"])
    assert ran == ["evaluate", "groups"]
    assert json.loads(result.stdout) == {
        "done_now": ["pretrain", "groups/members"], "skipped": ["generate"], "seed": 1, "groups": ["red"],
    }  # fmt: skip
    assert CliRunner().invoke(app, ["run", *options]).exit_code == 0 and ran[2:] == ["evaluate"]
