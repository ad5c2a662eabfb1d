"""Facts of manifests are read with their types, and what is absent or wrong is one line that names the key."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from mucs_ray.errors import InputError
from mucs_ray.pipeline.recipe_file import RecordedRun, read_recorded_run
from mucs_ray.storage import publish_json
from mucs_ray.store.facts import (
    FittingFacts,
    GenerationFacts,
    RankingFacts,
    ScoreHistogram,
    StreamingFacts,
    TrainingFacts,
    read_facts,
)
from mucs_ray.store.items import PlannedItem
from mucs_ray.store.run import Stage

TRAINED = {"updates": 12, "best_loss": 0.5, "best_step": 8, "workers": 2, "images_per_second": 3.0, "seconds": 1.5}


def done(folder: Path, facts: dict[str, Any]) -> Stage:
    stage = Stage(run_url=str(folder), name="pretrain", reads={}, inputs={})
    stage.finish({}, facts)
    return stage


def test_a_manifest_may_hold_more_than_is_read(tmp_path: Path):
    facts = read_facts(done(tmp_path, TRAINED), TrainingFacts)
    assert facts == TrainingFacts(updates=12, best_loss=0.5, best_step=8, workers=2)


@pytest.mark.parametrize(
    "facts",
    [
        GenerationFacts(items=[PlannedItem(number=0, row=3, idx=63, role="target")]),
        RankingFacts(k=2, num_images=60, histograms=[ScoreHistogram(edges=[-1.0, 0.5], counts=[60])]),
        FittingFacts(seconds_an_item={0: 1.25, 12: 3.0}),
        StreamingFacts(forwards=900, worker_seconds=2.5, wall_seconds=1.5, processor="GPU"),
    ],
)
def test_facts_are_read_as_they_were_written(tmp_path: Path, facts: Any):
    assert read_facts(done(tmp_path, asdict(facts)), type(facts)) == facts


def test_a_stage_that_called_no_network_has_no_forwards(tmp_path: Path):
    assert read_facts(done(tmp_path, {"rows": 60, "seconds": 0.1}), StreamingFacts).forwards == 0


@pytest.mark.parametrize(
    ("change", "problem"),
    [({"updates": "many"}, r"manifest\.json: updates: .*integer"), ({"workers": None}, r"workers: .*integer")],
)
def test_a_fact_of_a_wrong_type_is_named(tmp_path: Path, change: dict[str, Any], problem: str):
    with pytest.raises(InputError, match=problem) as error:
        read_facts(done(tmp_path, {**TRAINED, **change}), TrainingFacts)
    assert "\n" not in str(error.value) and "run the command again" in str(error.value)


def test_a_fact_that_is_absent_is_named(tmp_path: Path):
    with pytest.raises(InputError, match="best_loss: Field required"):
        read_facts(done(tmp_path, {"updates": 12}), TrainingFacts)


@pytest.mark.parametrize("learned", [{}, {"mucs": 0.7}])
def test_a_run_is_read_as_it_was_recorded(tmp_path: Path, learned: dict[str, float]):
    recorded = RecordedRun(
        recipe={"name": "tiny", "data": "data/tiny", "seed": 3},
        weights_sha256="ab",
        methods=("random", "mucs"),
        weights_dir="weights",
        learned=learned,
    )
    publish_json(str(tmp_path / "recipe.json"), recorded.to_json())
    assert read_recorded_run(str(tmp_path)) == recorded


def test_a_folder_without_a_run(tmp_path: Path):
    assert read_recorded_run(str(tmp_path)) is None
