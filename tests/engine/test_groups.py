"""Group attribution: all stages but the trainings, with tasks that are called one after the other."""

import csv
import io
import json
import os
import signal
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
from mucs_ray.engine import group_models, progress, trainings
from mucs_ray.engine.models import build_denoiser, to_arrays
from mucs_ray.engine.progress import Bar
from mucs_ray.engine.session import Cluster
from mucs_ray.evaluation.subsets import repeat_seed
from mucs_ray.pipeline.graph import Pipeline, StageRef
from mucs_ray.pipeline.groups_stages import RESULT
from mucs_ray.results import groups as group_results
from mucs_ray.run import driver
from mucs_ray.run.stages import groups, run_stage, train
from mucs_ray.spaces.pixels import PIXELS
from mucs_ray.store import checkpoint
from mucs_ray.store.items import save_item
from mucs_ray.store.run import Stage
from processes import pids_of
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


def random_scores(pipeline: Pipeline) -> tuple[dict[str, str], dict[str, Any]]:
    """Publish made-up scores of the method random."""
    attribution, buffer = pipeline.stages["attribute/random"], io.BytesIO()
    scores = np.random.default_rng(1).random((60, 2)).astype(np.float32)
    pq.write_table(pa.table({"idx": np.arange(60), "score": list(scores)}), buffer)
    return {"scores.parquet": storage.publish(attribution.url("scores.parquet"), buffer.getvalue())}, {}


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
    pipeline.stages["attribute/random"].finish(*random_scores(pipeline))
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
    told = json.loads((Path(pipeline.run_url) / "report/report.json").read_text())["group_attribution"]
    assert told["groups"] == ["red", "green", "blue"] and [image["query"] for image in told["images"]] == [0, 1]
    page = (Path(pipeline.run_url) / "report.html").read_text()
    assert 'id="groups"' in page and "unlearning, retrack" in page and "20 images" in page


def test_a_run_killed_in_the_middle_of_group_7_goes_on_with_group_7(
    finished: Pipeline, copied: Callable[[], Path], cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Ten groups; a worker is really killed, and the command interrupted, when the first seven are published."""
    by = tmp_path / "groups.csv"
    by.write_text("idx,group\n" + "".join(f"{idx},{idx % 10}\n" for idx in range(60)))
    changes = {**GROUPS, "by": str(by), "golds": 0, "unlearners": ["zero"], "updates": 20, "batch_size": 6}
    pipeline = open_tiny(finished.dataset, copied(), groups=changes, engine={"train_workers": 1})
    stage, units = pipeline.stage("groups/unlearn/zero"), list[list[str]]()
    files = [groups.model_file(stage, number) for number in range(10)]

    class Interrupted(Bar):
        def set(self, done: float, detail: str = "") -> None:
            if set(files[:7]) <= set(storage.names(stage.folder)):
                os.kill(pids_of("ray::run_attempt")[0], signal.SIGKILL)
                raise KeyboardInterrupt
            super().set(done, detail)

    def run_units(function: Any, tasks: dict[str, Any], **options: Any) -> Iterator[tuple[str, Any]]:
        units.append(list(tasks))
        return units_of_ray(function, tasks, **options)

    units_of_ray = group_models.run_units
    monkeypatch.setattr(group_models, "run_units", run_units)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(progress, "Bar", Interrupted)
        driver.run_stages([StageRef(pipeline, "groups/members"), StageRef(pipeline, "groups/unlearn/zero")])
    published = {file: stat(stage, file) for file in files if file in storage.names(stage.folder)}
    assert set(published) >= set(files[:7]) and files[7] not in published
    driver.run_stages([StageRef(pipeline, "groups/unlearn/zero")])
    assert units == [
        [f"group-{n:04d}" for n in range(10)],
        [f"group-{n:04d}" for n in range(10) if files[n] not in published],
    ]
    assert all(stat(stage, file) == before for file, before in published.items())
    tensors, _ = checkpoint.load(stage.url(files[7]))
    full = build_denoiser(pipeline.recipe.model, last_weights(pipeline.stages["pretrain"]), torch.device("cpu"))
    job = groups.job_of(pipeline, stage)
    alone = group_models.forget(
        full, LocalImages(finished.dataset, "train"), pipeline.groups.members(7), 7, "zero", job
    )
    assert all(torch.equal(alone.tensors[name], tensor) for name, tensor in tensors.items())


def stat(stage: Stage, file: str) -> int:
    """Return when a file was published."""
    return Path(stage.url(file)).stat().st_mtime_ns


def last_weights(stage: Stage) -> Any:
    return to_arrays(checkpoint.load(stage.url(stage.part("last", "safetensors")))[0])


def scores_of(pipeline: Pipeline) -> list[dict[str, Any]]:
    """Return the rows of the result's scores."""
    stage = pipeline.stage(RESULT)
    return pq.read_table(io.BytesIO(stage.checked(stage.part("scores", "parquet")))).to_pylist()
