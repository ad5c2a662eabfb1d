"""What goes through Ray equals, to the last bit, the plain loop over the same pure functions (fp32, CPU)."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from mucs_ray.attribution.loss_change import LossChange
from mucs_ray.data.local import LocalImages
from mucs_ray.data.table import Dataset, read_unit
from mucs_ray.engine import fitting, generation
from mucs_ray.engine.attributors import build
from mucs_ray.engine.models import build_denoiser, to_arrays
from mucs_ray.engine.ray_train import TrainJob
from mucs_ray.engine.session import Cluster
from mucs_ray.pipeline.graph import Pipeline
from mucs_ray.run.stages.attribute import attribute_job
from mucs_ray.run.stages.rank import rank, score_parts
from mucs_ray.store import checkpoint
from mucs_ray.store.items import item_file, load_item
from mucs_ray.store.parts import unit_part
from mucs_ray.store.run import Stage
from tiny_run import open_tiny, train_plainly, work

CPU = torch.device("cpu")


def job_of(pipeline: Pipeline, folder: Path, removed: frozenset[int] = frozenset()) -> TrainJob:
    """Return the job of the same training, into another folder."""
    recipe, stage = pipeline.recipe, pipeline.stages["pretrain"]
    elsewhere = Stage(run_url=str(folder), name="pretrain", reads=stage.reads, inputs=stage.inputs)
    return TrainJob(
        dataset=pipeline.dataset,
        stage=elsewhere,
        model=recipe.model,
        train=recipe.train,
        seed=recipe.seed,
        removed=removed,
    )


def tensors_of(stage: Stage, file: str) -> dict[str, Tensor]:
    return checkpoint.load(stage.url(file))[0]


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def denoiser_of(pipeline: Pipeline):
    stage = pipeline.stages["pretrain"]
    tensors = tensors_of(stage, stage.part("last", "safetensors"))
    return build_denoiser(pipeline.recipe.model, to_arrays(tensors), CPU)


def test_retraining_with_nothing_removed_is_pretraining(finished: Pipeline, tmp_path: Path):
    again = train_plainly(job_of(finished, tmp_path / "a", removed=frozenset()))
    without = train_plainly(job_of(finished, tmp_path / "b", removed=frozenset({3, 4})))
    first = train_plainly(job_of(finished, tmp_path / "c"))
    assert_equal(dict(first.live.network.state_dict()), dict(again.live.network.state_dict()))
    assert not torch.equal(first.live.network.last.proj.weight, without.live.network.last.proj.weight)


def test_two_workers_see_the_same_batches_as_one(data: Dataset, tmp_path: Path, cluster: Cluster):
    """DDP averages the gradients of the halves, so without dropout the weights agree but for rounding."""
    model, train = {"dropout": 0.0, "condition_drop": 0.0}, {"updates": 4}
    pipeline = open_tiny(data, tmp_path / "two", model=model, train=train, engine={"train_workers": 2})
    work(pipeline, "pretrain", cluster)
    stage = pipeline.stages["pretrain"]
    two = tensors_of(stage, stage.part("last", "safetensors"))
    one = train_plainly(job_of(pipeline, tmp_path / "one")).average.network.state_dict()
    for name, tensor in two.items():
        torch.testing.assert_close(tensor, one[name], rtol=1e-3, atol=1e-4)


def test_generation(finished: Pipeline):
    recipe = finished.recipe
    denoiser, test = denoiser_of(finished), LocalImages(finished.dataset, "test")
    for planned in generation.plan_items(finished.dataset, recipe.generate, recipe.seed):
        (item,) = generation.generate_batch(
            denoiser, generation.lent(test, [planned]), [planned], recipe.generate, recipe.seed
        )
        stored = load_item(finished.stages["generate"], planned.number)
        assert torch.equal(item.z, stored.z)
        assert torch.equal(item.condition["condition"], stored.condition["condition"])


def test_unlearning(finished: Pipeline, tmp_path: Path):
    stages, spec = finished.stages, finished.method_stages["attribute/mucs/unlearn"]
    stage = stages[spec.name]
    job = replace(attribute_job(finished, spec), stage=replace(stage, run_url=str(tmp_path)))
    null = stages["attribute/mucs/null"]
    prepared = to_arrays(tensors_of(null, null.part("prepared", "safetensors")))
    assert prepared["null_loss"] == null.facts()["null_loss"]
    method = build(job, to_arrays(dict(denoiser_of(finished).network.state_dict())), CPU)
    for number in range(finished.recipe.generate.items):
        item = load_item(stages["generate"], number)
        fitting.fit_item(method, item, prepared, job.stage, lambda step, loss: None)
        file = item_file(stage, number)
        assert_equal(tensors_of(stage, file), tensors_of(job.stage, file))
    unchanged = method.context.model.network.state_dict()
    assert_equal(dict(unchanged), dict(denoiser_of(finished).network.state_dict()))


@pytest.fixture(scope="module")
def plain_method(finished: Pipeline) -> LossChange:
    recipe, stage = finished.recipe, finished.stages["attribute/mucs/unlearn"]
    bank = [tensors_of(stage, item_file(stage, number)) for number in range(recipe.generate.items)]
    return LossChange(denoiser_of(finished), bank, config=recipe.score, seed=recipe.seed)


def test_scores(finished: Pipeline, plain_method: LossChange):
    """The plain loop takes all images as one batch; Ray took them by unit."""
    units = finished.dataset.units("train")
    assert len(units) == 4
    tables = [finished.dataset.batch(read_unit(unit)) for unit in units]
    plain = np.concatenate([plain_method.skew(plain_method.losses(batch)).numpy() for batch in tables])
    idx = np.concatenate([batch.idx.numpy() for batch in tables])
    through_ray = list(score_parts(finished.stages["attribute/mucs/score"], finished.dataset.units("train"), "skew"))
    assert np.array_equal(np.concatenate([table["idx"].to_numpy() for table in through_ray]), idx)
    scores = np.concatenate([np.stack(table["score"].to_numpy()) for table in through_ray])
    assert np.abs(scores).max() > 1e-4
    assert np.array_equal(scores, plain)


def test_ranking_reads_every_part_once(
    data: Dataset, copied: Callable[[], Path], cluster: Cluster, monkeypatch: pytest.MonkeyPatch
):
    pipeline = open_tiny(data, copied())
    manifest, read, checked = pipeline.stages["attribute/mucs"].manifest(), list[str](), Stage.checked

    def counted(stage: Stage, file: str, *known: dict) -> bytes:
        read.append(file)
        return checked(stage, file, *known)

    monkeypatch.setattr(Stage, "checked", counted)
    files, facts = rank(pipeline, pipeline.method_stages["attribute/mucs"])
    parts = [name for name in read if name.startswith("train-")]
    assert len(parts) == len({*parts}) == 4
    assert manifest is not None and files == manifest.files
    assert facts["histograms"] == manifest.facts["histograms"]


def test_kept_losses_give_the_scores(finished: Pipeline):
    stage, recipe = finished.stages["attribute/mucs/score"], finished.recipe
    unit = finished.dataset.units("train")[1]
    table = pq.read_table(io.BytesIO(stage.checked(unit_part(stage, unit))))
    before = np.stack(table["before"].to_numpy()).astype(np.float64)
    after = np.stack(table["after"].to_numpy()).astype(np.float64).reshape(len(table), recipe.generate.items, -1)
    skew = ((after - before[:, None]) / (after + before[:, None] + recipe.score.epsilon)).mean(axis=2)
    np.testing.assert_allclose(skew, np.stack(table["skew"].to_numpy()), atol=2e-3)
    difference = (after - before[:, None]).mean(axis=2)
    np.testing.assert_allclose(difference, np.stack(table["difference"].to_numpy()), atol=2e-2)


def test_the_same_command_again_does_nothing(finished: Pipeline, cluster: Cluster):
    assert work(finished, "report", cluster) == []


def test_a_changed_scoring_knob_keeps_the_unlearned_models(finished: Pipeline, data: Dataset, cluster: Cluster):
    changed = open_tiny(data, Path(finished.run_url), score={"keep_losses": True, "noises": 3})
    assert [short for short, state in changed.plan("attribute").items() if state.status != "done"] == [
        "attribute/mucs/score",
        "attribute/mucs",
        "report",
    ]
    assert "score.noises 5 -> 3" in changed.plan("attribute")["attribute/mucs/score"].reason
