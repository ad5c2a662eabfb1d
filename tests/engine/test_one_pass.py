"""Stages that stream at the same time are one pass, and each makes what it makes alone."""

from collections.abc import Callable
from pathlib import Path

import pytest
import strikes

from mucs_ray import storage
from mucs_ray.data.table import Dataset
from mucs_ray.engine.session import Cluster
from mucs_ray.errors import RunFailed
from mucs_ray.pipeline.graph import Pipeline
from mucs_ray.store.events import read_events
from tiny_run import open_tiny, work

SMALL = {"das": {"dim": 32, "noises": 4}, "abu": {"draws": 8, "draws_per_forward": 4, "fisher_draws": 2}}
FULL = "mucs/full-schedule"
TOGETHER = ("pixel", "das", "abu", FULL)
"""AbU takes the full schedule too."""
PASS = [f"attribute/{name}" for name in ("pixel/score", "das/features", "abu/score", f"{FULL}/score")]
UNDEFINED, STRUCK = "users:Undefined", "strikes:StruckMUCS"
FORWARDS = 60 * 5
"""Of one model: images x noises."""


@pytest.fixture(scope="module")
def together(data: Dataset, copied: Callable[[], Path], cluster: Cluster) -> Pipeline:
    pipeline = open_tiny(data, copied(), methods=TOGETHER, method=SMALL)
    work(pipeline, "attribute", cluster)
    return pipeline


def parts(pipeline: Pipeline, name: str) -> dict[str, bytes]:
    """Return the files of a stage by name."""
    stage = pipeline.stages[name]
    manifest = stage.manifest()
    assert manifest is not None
    return {file: storage.read_bytes(stage.url(file)) for file in manifest.files}


def test_stages_of_one_level_are_one_pass(together: Pipeline):
    events = [(each["event"], each.get("stage")) for each in read_events(together.run_url)]
    events = events[events.index(("stage begun", PASS[0])) :]  # the copy has those of an earlier command
    begun = [events.index(("stage begun", name)) for name in PASS]
    assert begun == list(range(begun[0], begun[0] + len(PASS)))
    assert max(begun) < min(events.index(("stage done", name)) for name in PASS)


@pytest.mark.parametrize("method", ["abu", FULL])
def test_the_parts_are_those_of_the_method_alone(
    together: Pipeline, method: str, data: Dataset, copied: Callable[[], Path], cluster: Cluster
):
    """They are equal to the last byte, though the losses of F1 were computed by only one of the methods."""
    alone = open_tiny(data, copied(), methods=(method,), method=SMALL)
    work(alone, "attribute", cluster)
    names = [name for name in alone.stages_of(method) if name in together.stages]
    assert f"attribute/{method}/score" in names
    for name in names:
        assert parts(alone, name) == parts(together, name), name
    assert alone.stages[f"attribute/{method}/score"].facts()["forwards"] == 3 * FORWARDS


def test_the_losses_of_f1_are_computed_once(together: Pipeline):
    """With two items the first method computes F1 and two F2s, the other two F2s; the seconds add up to the pass."""
    facts = {name: together.stages[name].facts() for name in PASS}
    assert sorted(facts[name]["forwards"] for name in PASS[2:]) == [2 * FORWARDS, 3 * FORWARDS]
    assert all(each["rows"] == 60 and each["wall_seconds"] > 0 for each in facts.values())
    shares = [each["wall_seconds"] / each["worker_seconds"] for each in facts.values()]
    assert max(shares) == pytest.approx(min(shares))


def test_only_what_is_missing_is_made_again(together: Pipeline, data: Dataset, cluster: Cluster):
    """A part of two stages, one of features, and two of a third are missing: those alone are computed."""
    expected = {name: parts(together, name) for name in PASS}
    kept, incomplete = {}, ["attribute/das/features", "attribute/abu/score", f"attribute/{FULL}/score"]
    for name, lost in zip(incomplete, (1, 1, 2), strict=True):
        stage, files = together.stages[name], sorted(expected[name])
        for file in [*files[:lost], "manifest.json"]:
            storage.remove(stage.url(file))
        kept |= {file: Path(file).stat().st_mtime_ns for file in map(stage.url, files[lost:])}
    assert work(together, "attribute", cluster) == incomplete
    assert {name: parts(together, name) for name in PASS} == expected
    assert {file: Path(file).stat().st_mtime_ns for file in kept} == kept
    assert [together.stages[name].facts()["rows"] for name in PASS] == [60, 16, 16, 32]


@pytest.fixture(scope="module")
def struck(data: Dataset, copied: Callable[[], Path], cluster: Cluster) -> Pipeline:
    """Run a pass of which one stage fails, while another kills the worker once."""
    pipeline = open_tiny(data, copied(), methods=(UNDEFINED, "pixel", STRUCK))
    strikes.lay("before-compute@32", "worker")
    message = rf"^attribute/{UNDEFINED}/score: 1 of 4 units failed.* train-part-00000-0001: `score` .* idx=21"
    with pytest.raises(RunFailed, match=message):
        work(pipeline, "attribute", cluster)
    assert strikes.left() == 0
    return pipeline


def test_a_stage_that_fails_does_not_stop_the_others(struck: Pipeline):
    """What is not a number is not published, and its unit and image are named."""
    for method in ("pixel", STRUCK):
        assert struck.stages[f"attribute/{method}/score"].state().status == "done"
    failed = struck.stages[f"attribute/{UNDEFINED}/score"].state()
    assert (failed.status, failed.parts_there, list(failed.failed)) == ("failed", 3, ["train-part-00000-0001"])


def test_a_killed_worker_loses_only_the_stage_it_was_at(struck: Pipeline):
    """The parts of the unit that it had published are not computed again, and are counted once."""
    failures = [each for each in read_events(struck.run_url) if each["event"] == "failure"]
    lost = {(each["stage"], each["unit"]) for each in failures if each["kind"] == "lost"}
    assert lost == {(f"attribute/{STRUCK}/score", "train-part-00001-0000")}
    for method in ("pixel", STRUCK):
        assert struck.stages[f"attribute/{method}/score"].facts()["rows"] == 60
