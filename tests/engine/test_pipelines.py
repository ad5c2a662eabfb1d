"""A pipeline of diffusers goes through the engine: its latents, its captions, and a user's picture."""

from pathlib import Path

import numpy as np
import pytest
import torch

import tiny_captions
from mucs_ray.data.encoded import CAPTIONS
from mucs_ray.data.local import LocalImages
from mucs_ray.data.queries import find_queries
from mucs_ray.data.table import Dataset, read_unit
from mucs_ray.engine import encoding
from mucs_ray.engine.encoding import EncodeJob, encode_captions, encode_unit
from mucs_ray.errors import InputError
from mucs_ray.models.adapters import adapter
from mucs_ray.models.pipelines import components
from mucs_ray.models.pipelines.latents import LatentCodec
from mucs_ray.pipeline.graph import ENCODE
from mucs_ray.run.stages.queries import condition_of, null_condition
from mucs_ray.spaces.codec import Asked
from mucs_ray.store import checkpoint
from mucs_ray.store.parts import unit_part
from tiny_captions import captioned, opened, pictures
from tiny_models import SIDE

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def dataset(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return captioned(source, tmp_path_factory.mktemp("data") / "mine")


def test_a_query_that_is_a_training_image_has_its_z_and_its_prompt(dataset: Dataset, source: Path):
    pipeline = opened(dataset, "sd-eps")
    codec = adapter(pipeline.recipe.model).codec(CPU)
    (query,) = pipeline.explaining(find_queries([str(source / "1.png")], prompt=tiny_captions.CAPTIONS[1])).queries
    nothing = null_condition(pipeline.recipe.model, codec)
    condition = condition_of(query, dataset.card, codec, nothing)
    assert torch.equal(condition["tokens"], codec.condition([Asked(text=tiny_captions.CAPTIONS[1])])["tokens"][0])
    assert torch.equal(nothing["tokens"], codec.nothing()["tokens"])
    with pytest.raises(InputError, match="this model has no classes"):
        pipeline.explaining(find_queries([str(source / "1.png")], label="cat"))


def test_what_was_encoded_before_is_what_would_be_encoded_now(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """z and captions come from the parts bit for bit, and no encoder is loaded for them."""
    monkeypatch.setenv("MUCS_RAY_CACHE", str(tmp_path))
    pipeline = opened(dataset, "sdxl")
    stage, spec = pipeline.stages[ENCODE], pipeline.recipe.model
    job, captions = EncodeJob(dataset=dataset, model=spec, stage=stage), stage.part(CAPTIONS, "safetensors")
    (unit,) = dataset.units("train")
    assert pipeline.encoded_dataset == dataset
    stage.finish({unit_part(stage, unit): encode_unit(job, unit), captions: encode_captions(job, captions)}, {})

    encoded = pipeline.encoded_dataset
    fresh = LatentCodec(components.opened(spec.to_dict()["path"], ()), CPU, side=SIDE)
    batch = encoded.batch(read_unit(encoded.units("train")[0]), fresh)
    again = LocalImages(encoded, "train", codec=fresh).batch(np.arange(len(batch)))
    assert not {"vae", "texts"} & vars(fresh).keys()
    expected = dataset.batch(read_unit(unit), adapter(spec).codec(CPU))
    for each in (batch, again):
        assert torch.equal(each.z, expected.z)
        assert all(torch.equal(each.condition[key], expected.condition[key]) for key in expected.condition)
    assert torch.equal(fresh.nothing()["tokens"], torch.zeros_like(fresh.nothing()["tokens"]))


def test_attributions_wait_for_the_encoded_set_and_are_stale_after_another_codec(dataset: Dataset):
    pipeline = opened(dataset, "sd-eps")
    stages, specs = pipeline.stages, pipeline.method_stages
    waiting = {name for name, stage in stages.items() if ENCODE in stage.inputs}
    assert waiting == {name for name, spec in specs.items() if spec.method_stage and "data" in spec.inputs}
    skipping = opened(dataset, "sd-eps", "model.clip_skip=1").stages
    other = opened(dataset, "sd-eps", "model.prediction=v_prediction").stages
    assert skipping[ENCODE].fingerprint != stages[ENCODE].fingerprint == other[ENCODE].fingerprint


def test_an_encoded_part_that_was_changed_is_refused(dataset: Dataset):
    pipeline = opened(dataset, "sdxl")
    stage = pipeline.stages[ENCODE]
    (unit,) = pipeline.encoded_dataset.units("train")
    assert unit.encoded is not None
    Path(stage.url(unit_part(stage, unit))).write_bytes(b"other")
    with pytest.raises(InputError, match="is corrupt: its sha256 differs"):
        read_unit(unit)


def test_a_table_that_would_be_too_large_has_the_null_caption_alone(dataset: Dataset, monkeypatch: pytest.MonkeyPatch):
    pipeline = opened(dataset, "sd-eps")
    job = EncodeJob(dataset=dataset, model=pipeline.recipe.model, stage=pipeline.stages[ENCODE])
    counts = []
    for most in (10**9, 0):
        monkeypatch.setattr(encoding, "MOST_TABLE_BYTES", most)
        encode_captions(job, "captions.test.safetensors")
        tensors, _ = checkpoint.load(job.stage.url("captions.test.safetensors"))
        counts.append(len(tensors))
    assert counts == [1 + len(encoding.unique_captions(dataset)), 1]
