"""Captions and pictures of a data set reach a pipeline as its training saw them, whatever reads them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mucs_ray.data.local import LocalImages
from mucs_ray.data.table import Dataset, read_unit
from mucs_ray.errors import InputError
from mucs_ray.models.adapters import adapter
from mucs_ray.run.model_check import check, codec_error, some_images
from mucs_ray.spaces.codec import Asked
from tiny_captions import CAPTIONS, captioned, opened, pictures
from tiny_models import SIDE

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return captioned(pictures(tmp_path_factory.mktemp("source")), tmp_path_factory.mktemp("data") / "mine")


def test_captions_are_kept_without_being_embedded(dataset: Dataset):
    assert (dataset.card.condition, dataset.card.condition_dim) == ("none", 0)
    found = dataset.find({0, 1, 2, 3}, "train")
    texts = {row.text for row in found.values()}
    assert texts <= {*((caption,) for caption in CAPTIONS.values()), ()}
    assert len(found) == 4 - dataset.card.num_images("test")


def test_a_folder_given_as_weights_is_the_model(dataset: Dataset):
    recipe = opened(dataset, "sdxl", "model.caption=a thing", "score.noises=7").recipe
    assert recipe.weights is None
    assert recipe.model.to_dict()["kind"] == "diffusers"
    assert recipe.model.to_dict()["family"] == "sdxl"
    assert recipe.model.to_dict()["caption"] == "a thing"
    assert (recipe.name, recipe.generate.guidance, recipe.score.noises) == ("mine", 7.5, 7)


@pytest.mark.parametrize("name", ["sd-eps", "sdxl"])
def test_a_row_has_the_latent_and_the_caption_of_its_image(dataset: Dataset, name: str):
    codec = adapter(opened(dataset, name).recipe.model).codec(CPU)
    (unit, *_) = dataset.units("train")
    table = read_unit(unit)
    batch = dataset.batch(table, codec)
    texts = [texts[0] if texts else None for texts in table["text"].to_pylist()]
    middle = slice(8, 8 + SIDE)
    rows = dataset.find(set(table["idx"].to_pylist()), "train")
    pictures = np.stack([rows[idx].image[:, :, middle] for idx in table["idx"].to_pylist()])
    assert torch.equal(batch.z, codec.encode(torch.from_numpy(pictures)))
    expected = codec.condition([Asked(text=text, size=(SIDE, SIDE + 16), crop=(0, 8)) for text in texts])
    assert batch.condition.keys() == expected.keys()
    assert all(torch.equal(batch.condition[key], expected[key]) for key in expected)
    if name == "sdxl":
        assert batch.condition["time_ids"][0].tolist() == [SIDE, SIDE + 16, 0, 8, SIDE, SIDE]


def test_random_access_gives_the_same_rows(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MUCS_RAY_CACHE", str(tmp_path))
    codec = adapter(opened(dataset, "sd-eps").recipe.model).codec(CPU)
    streamed = dataset.batch(read_unit(dataset.units("train")[0]), codec)
    rows = np.array([1, 0])
    batch = LocalImages(dataset, "train", codec=codec).batch(rows)
    assert batch.idx.tolist() == streamed.idx[[1, 0]].tolist()
    assert torch.equal(batch.z, streamed.z[[1, 0]])
    assert torch.equal(batch.condition["tokens"], streamed.condition["tokens"][[1, 0]])


def test_the_gate_tries_other_readings_of_a_network_that_is_not_trained(dataset: Dataset):
    pipeline = opened(dataset, "sd-v")
    kind = adapter(pipeline.recipe.model)
    images = some_images(dataset, kind.codec(CPU))
    checked = check(kind.model(CPU), images, seed=1)
    assert checked.ratio > 1
    settings = {other.setting for other in checked.others}
    assert {"model.prediction=epsilon", "model.prediction=sample"} <= settings
    psnr, _ = codec_error(kind.codec(CPU), images)
    assert psnr > 0


def test_a_data_set_of_another_size_is_refused(dataset: Dataset):
    with pytest.raises(InputError, match=r"model\.image_size is 64 but .* holds 32 px images"):
        opened(dataset, "sd-eps", "model.image_size=64")
