"""A pipeline of diffusers goes through the engine: its latents, its captions, and a user's picture."""

from pathlib import Path

import pytest
import torch

from mucs_ray.data.queries import find_queries
from mucs_ray.data.table import Dataset
from mucs_ray.errors import InputError
from mucs_ray.models.adapters import adapter
from mucs_ray.run.stages.queries import condition_of, null_condition
from mucs_ray.spaces.codec import Asked
from tiny_captions import CAPTIONS, captioned, opened, pictures

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
    (query,) = pipeline.explaining(find_queries([str(source / "1.png")], prompt=CAPTIONS[1])).queries
    nothing = null_condition(pipeline.recipe.model, codec)
    condition = condition_of(query, dataset.card, codec, nothing)
    assert torch.equal(condition["tokens"], codec.condition([Asked(text=CAPTIONS[1])])["tokens"][0])
    assert torch.equal(nothing["tokens"], codec.nothing()["tokens"])
    with pytest.raises(InputError, match="this model has no classes"):
        pipeline.explaining(find_queries([str(source / "1.png")], label="cat"))
