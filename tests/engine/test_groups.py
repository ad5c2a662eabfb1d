"""Group attribution: all stages but the trainings, with tasks that are called one after the other."""

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console

from mucs_ray import storage
from mucs_ray.cli.terminal import show_groups
from mucs_ray.config.recipe import Recipe, with_values
from mucs_ray.data.local import LocalImages
from mucs_ray.data.table import Dataset
from mucs_ray.diffusion.batch import Item
from mucs_ray.engine import group_models, trainings
from mucs_ray.engine.models import to_arrays
from mucs_ray.engine.session import Cluster
from mucs_ray.evaluation.subsets import repeat_seed
from mucs_ray.pipeline.graph import Pipeline, StageRef
from mucs_ray.pipeline.groups_stages import RESULT
from mucs_ray.results import groups as group_results
from mucs_ray.run.stages import groups, run_stage, train
from mucs_ray.spaces.pixels import PIXELS
from mucs_ray.store import checkpoint
from mucs_ray.store.items import save_item
from mucs_ray.store.run import Stage
from tiny import lively, tiny_recipe
from tiny_run import open_tiny, train_all_plainly, work

GROUPS = {"updates": 2, "batch_size": 8, "learning_rate": 1e-3, "levels": 4, "unlearners": ["zero", "retrack"]}


def opened(data: Dataset, folder: Path, **changes: object) -> Pipeline:
    engine = {"train_workers": 1}
    recipe = tiny_recipe(data.url, evaluate={"metrics": ["mse"]}, engine=engine, groups={**GROUPS, **changes})
    return Pipeline.open(recipe, data, str(folder), console=Console(file=io.StringIO()), methods=("random",))


class Plain:
    """Stands in for Ray: tasks are called one after the other, and weights are handed over as they are."""

    def __init__(self) -> None:
        self.called: list[str] = []

    def run_units(self, function: Any, units: dict[str, tuple[Any, ...]], **_: Any) -> Iterator[tuple[str, Any]]:
        for name, arguments in units.items():
            self.called.append(name)
            yield name, function(*arguments)

    def load_files(self, stage: Stage, files: list[str]) -> list[Any]:
        return [to_arrays(checkpoint.parse(stage.checked(file), file)[0]) for file in files]

    def weights_ref(self, training: Stage, recipe: Recipe) -> Any:
        return self.load_files(training, [training.part(recipe.train.checkpoint, "safetensors")])[0]

    def post(self, key: str, value: object) -> None:
        pass


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Plain:
    instead = Plain()
    monkeypatch.setattr(group_models, "run_units", instead.run_units)
    monkeypatch.setattr(group_models, "new_coordinator", lambda: instead)
    monkeypatch.setattr(groups, "weights_ref", instead.weights_ref)
    monkeypatch.setattr(groups, "load_files", instead.load_files)
    return instead


def run(pipeline: Pipeline, *names: str) -> None:
    """Run these stages, whose work never asks for the cluster."""
    for name in names:
        files, facts = run_stage(StageRef(pipeline, name), None)  # type: ignore[arg-type]
        pipeline.stage(name).finish(files, {**facts, "seconds": 0.0})


def save_weights(pipeline: Pipeline, name: str, factor: float) -> None:
    """Finish a training whose weights are made up."""
    model, stage = lively(pipeline.recipe.model), pipeline.stage(name)  # type: ignore[arg-type]
    for parameter in model.parameters():
        parameter.mul_(factor)
    file = stage.part("last", "safetensors")
    stage.finish({file: checkpoint.save(stage.url(file), model.network.state_dict(), {})}, {})


@pytest.fixture
def scored(data: Dataset, tmp_path: Path, plain: Plain) -> Pipeline:
    """A run whose trainings, items and scores of images are made up."""
    pipeline = opened(data, tmp_path / "run")
    generate, planned = pipeline.stages["generate"], []
    for number in range(2):
        image = torch.linspace(-1, 1, 192).view(3, 8, 8) * (0.5 + number / 4)
        item = Item(number=number, idx=60 + number, condition={"condition": torch.eye(3)[number]}, z=image)
        save_item(generate, item, PIXELS, {})
        planned.append({"number": number, "row": number, "idx": 60 + number, "role": "target"})
    generate.finish({}, {"items": planned})
    for number, name in enumerate(("pretrain", *(name for name in pipeline.group_stages if "/retrain/" in name))):
        save_weights(pipeline, name, 1 + 0.01 * number)
    attribution, buffer = pipeline.stages["attribute/random"], io.BytesIO()
    scores = np.random.default_rng(1).random((60, 2)).astype(np.float32)
    pq.write_table(pa.table({"idx": np.arange(60), "score": list(scores)}), buffer)
    digest = storage.publish(attribution.url("scores.parquet"), buffer.getvalue())
    attribution.finish({"scores.parquet": digest}, {})
    run(pipeline, *(name for name in pipeline.group_stages if "/retrain/" not in name and name != RESULT))
    return pipeline


def test_trainings_leave_their_group_out(data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pipeline = opened(data, tmp_path, golds=2)
    monkeypatch.setattr(train, "workers_for", lambda *_, **__: 1)
    runs = [
        train.prepare_training(StageRef(pipeline, f"groups/retrain/0001{end}"), None, trainings=2).job  # type: ignore[arg-type]
        for end in ("", "-repeat")
    ]
    assert all(job.removed == set(range(1, 60, 3)) for job in runs)  # rows take the classes in turn
    assert [job.seed for job in runs] == [pipeline.recipe.seed, repeat_seed(pipeline.recipe.seed)]


def test_an_interrupted_unlearning_goes_on_with_the_group_that_is_missing(scored: Pipeline, plain: Plain):
    """The files are equal, and another group is not computed again."""
    stage = scored.stage("groups/unlearn/zero")
    files = {file: stage.checked(file) for file in stage.manifest().files}  # type: ignore[union-attr]
    assert len(files) == 3
    storage.remove(stage.url("manifest.json"))
    storage.remove(stage.url(groups.model_file(stage, 1)))
    plain.called.clear()
    run(scored, "groups/unlearn/zero")
    assert plain.called == ["group-0001"]
    assert all(stage.checked(file) == content for file, content in files.items())


def test_the_model_without_a_group_does_not_depend_on_the_other_groups(scored: Pipeline, plain: Plain):
    stage = scored.stage("groups/unlearn/retrack")
    tensors, facts = checkpoint.load(stage.url(groups.model_file(stage, 2)))
    images = LocalImages(scored.dataset, "train")
    full = lively(scored.recipe.model)  # type: ignore[arg-type]
    members = scored.groups.members(2)
    alone = group_models.forget(full, images, members, 2, "retrack", groups.job_of(scored, stage))
    assert all(torch.equal(alone.tensors[name], tensor) for name, tensor in tensors.items())
    assert (facts["group"], facts["updates"], facts["outcome"]) == (2, 2, "fixed")
    assert len(facts["retain_loss"]) == len(facts["forget_loss"]) == 2 and facts["moved"] > 0


def test_a_group_is_unlearned_to_anchors(scored: Pipeline, plain: Plain):
    """The images of a class are seen as others; without dropout, all else is at first seen as it was."""
    stage, images = scored.stage("groups/unlearn/zero"), LocalImages(scored.dataset, "train")
    full, members = lively(scored.recipe.model), scored.groups.members(2)  # type: ignore[arg-type]
    job = replace(groups.job_of(scored, stage), recipe=with_values(scored.recipe, {"groups.dropout": False}))
    forgotten = group_models.forget(full, images, members, 2, "uniform", job)
    assert forgotten.retain_loss[0] < 1e-10 < forgotten.forget_loss[0]
    assert len(forgotten.group_loss) == 2 and forgotten.moved > 0


def test_the_result_has_scores_agreement_and_shares(scored: Pipeline):
    stage = scored.stage(RESULT)
    run(scored, RESULT)
    scores = scores_of(scored)
    methods = {row["method"] for row in scores}
    aggregated = {f"random, {how}" for how in ("sum", "mean", "max", "median", "top-10 mean")}
    assert methods == {"retrained", "zero", "retrack", *aggregated}
    assert len(scores) == len(methods) * 2 * 3 and all(np.isfinite(row["score"]) for row in scores)
    one = next(row for row in scores if row["method"] == "zero")
    assert one["least"] <= one["score"] <= one["largest"] and one["group"] == "red"
    document = json.loads(stage.checked(stage.part("agreement", "json")))
    assert (document["reference"], document["floor"], set(document["methods"])) == (
        "retrained",
        None,
        methods - {"retrained"},
    )
    rows = list(csv.DictReader(io.StringIO(stage.checked(stage.part("shares", "csv")).decode())))
    audit = json.loads(stage.checked(stage.part("audit", "json")))
    assert {row["audit"] for row in rows} == {audit["digest"]}
    assert audit["data"] == scored.dataset.card.fingerprint and audit["method"] == "retrained"
    found = group_results.as_json(scored)
    assert found["sizes"] == [20, 20, 20] and found["chance"]["top-1"] == pytest.approx(1 / 3)
    console = Console(file=io.StringIO(), width=200)
    show_groups(console, found)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "red 20, green 20, blue 20" in printed and "chance" in printed and "shares  by retrained" in printed


def test_the_command_through_ray(finished: Pipeline, copied: Callable[[], Path], cluster: Cluster):
    """A run that is attributed goes on to groups by itself, to the end; the trainings are those of a plain loop."""
    recipe_changes = {"groups": GROUPS, "evaluate": {"metrics": ["mse"]}, "engine": {"train_workers": 1}}
    pipeline = open_tiny(finished.dataset, copied(), **recipe_changes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainings, "train_all", train_all_plainly)
        done = work(pipeline, "groups", cluster)
    assert set(done) >= set(pipeline.group_stages) and work(pipeline, "groups", cluster) == []
    found = group_results.as_json(pipeline)
    assert found["sizes"] == [20, 20, 20] and {"retrained", "zero", "retrack"} <= {
        row["method"] for row in scores_of(pipeline)
    }


def scores_of(pipeline: Pipeline) -> list[dict[str, Any]]:
    """Return the rows of the result's scores."""
    stage = pipeline.stage(RESULT)
    return pq.read_table(io.BytesIO(stage.checked(stage.part("scores", "parquet")))).to_pylist()
