"""A third-party model goes through the engine, from pictures to the bound of the ascent; no Ray is started."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from waves import KIND

from mucs_ray.config.engine import EngineConfig
from mucs_ray.config.recipe import build
from mucs_ray.engine.attributors import AttributeJob, stream_rows
from mucs_ray.engine.attributors import build as build_method
from mucs_ray.engine.models import build_denoiser, to_arrays
from mucs_ray.errors import InputError
from mucs_ray.models.adapters import adapter
from mucs_ray.pipeline.graph import Pipeline
from mucs_ray.report.html import render
from mucs_ray.results.report import sampled_picture
from mucs_ray.run import model_check
from mucs_ray.run.stages.generate import import_checked_weights, import_weights
from mucs_ray.store.weights import load_weights, model_spec
from report_samples import report
from tiny import TINY, tiny_dataset

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    dataset = tiny_dataset(tmp_path_factory.mktemp("data"))
    recipe = build({**TINY, "data": dataset.url, "model": {"kind": KIND, "channels": 3}})
    run = str(tmp_path_factory.mktemp("run"))
    return Pipeline.open(recipe, dataset, run, console=Console(file=io.StringIO()))


def test_its_own_weights_take_the_place_of_a_training(pipeline: Pipeline):
    files, facts = import_weights(pipeline.stages["pretrain"], pipeline.recipe)
    (name,) = files
    spec, weights = load_weights(pipeline.stages["pretrain"].url(name))
    assert spec == pipeline.recipe.model == model_spec(facts, "facts")
    denoiser = build_denoiser(spec, to_arrays(weights), CPU)
    own = adapter(pipeline.recipe.model).model(CPU).network.state_dict()
    assert all(torch.equal(tensor, own[each]) for each, tensor in denoiser.network.state_dict().items())


def test_checked_weights_bring_a_sampled_image(pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The image is in the report, beside the number of the check. An untrained model is refused, but for the patch."""
    checked = replace(pipeline, run_url=str(tmp_path), recipe=replace(pipeline.recipe, engine=EngineConfig()))
    with pytest.raises(InputError, match="no other reading is better"):
        import_checked_weights(checked)
    monkeypatch.setattr(model_check, "refuse", lambda *_: None)
    files, facts = import_checked_weights(checked)
    assert facts["check_ratio"] > 0.9 and sampled_picture(checked) is None
    checked.stages["pretrain"].finish(files, facts)
    picture = sampled_picture(checked)
    assert picture is not None and picture.shape == (3, 8, 8) and picture.dtype == np.uint8
    assert "An image sampled from the given weights" in render(report(sampled=picture))


def test_what_streams_is_in_the_space_of_the_model(pipeline: Pipeline):
    """Pictures of the table become waves, and the bound of MUCS is the linear one of their mean square."""
    dataset, spec = pipeline.dataset, pipeline.method_stages["attribute/mucs/null"]
    assert spec.method_stage is not None
    job = AttributeJob(
        dataset=dataset, recipe=spec.recipe, attributor=spec.load(), method_stage=spec.method_stage,
        stage=pipeline.stages[spec.name], generated=pipeline.stages["generate"], features=None, encoder=None,
    )  # fmt: skip
    batches = list(stream_rows(job, CPU))
    assert {tuple(batch.z.shape[1:]) for batch in batches} == {(3, 8)}
    pictures = torch.cat([dataset.batch(table).z for table in dataset.stream("train")])
    torch.testing.assert_close(torch.cat([batch.z for batch in batches])[:, 1], pictures.mean(dim=(1, 3)))
    fitted = build_method(job, None, CPU).fit({}, iter(batches))
    v = torch.cat([batch.z for batch in batches]).square().mean().item()
    assert fitted["second_moment"].item() == pytest.approx(v, rel=1e-5)
    process = adapter(pipeline.recipe.model).model(CPU).process
    assert fitted["null_loss"].item() == pytest.approx(process.null_loss(v), rel=1e-5)
