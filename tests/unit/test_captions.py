"""The text tower is open_clip's own, read from a file on this machine, and its absence is told in one line."""

import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mucs_ray.data import caption_embedding
from mucs_ray.errors import InputError, MachineError

CAPTIONS = ["a dog", "Two men ride a red tandem bicycle past a market.", "", "word " * 200, "a dog"]
VISION = {"image_size": 28, "layers": 1, "width": 64, "patch_size": 14}


def hub_file(cache: Path, name: str) -> Path:
    """Where the hub cache keeps a file of the weights' repository."""
    repository = cache / "models--laion--CLIP-ViT-L-14-laion2B-s32B-b82K"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc123")
    path = repository / "snapshots" / "abc123" / name
    path.parent.mkdir(parents=True)
    return path


@pytest.fixture(autouse=True)
def no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty hub cache, no variable, and no tower of an earlier test; returns the cache."""
    monkeypatch.delenv(caption_embedding.VARIABLE, raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    caption_embedding.load_tower.cache_clear()
    yield tmp_path / "hub"
    caption_embedding.load_tower.cache_clear()


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    """open_clip's CLIP with the real ViT-L-14 text tower, random; the image tower is a small one."""
    from open_clip import get_model_config
    from open_clip.model import CLIP

    config = get_model_config("ViT-L-14")
    torch.manual_seed(0)
    return CLIP(embed_dim=768, vision_cfg=VISION, text_cfg=config["text_cfg"]).eval()


def official(model: torch.nn.Module, captions: list[str]) -> np.ndarray:
    from open_clip import get_tokenizer

    with torch.inference_mode():
        return model.encode_text(get_tokenizer("ViT-L-14")(captions), normalize=True).numpy()


def test_embeddings_are_those_of_open_clip(model, tmp_path, monkeypatch):
    weights = tmp_path / "clip.safetensors"
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, weights)
    monkeypatch.setenv("MUCS_RAY_CLIP_WEIGHTS", str(weights))
    monkeypatch.setattr(caption_embedding, "BATCH", 2)
    try:
        ours = caption_embedding.embed(CAPTIONS)
        weights.write_bytes(b"")  # read once a process
        again = caption_embedding.embed(CAPTIONS[:1])
        groups = list(caption_embedding.embed_each([CAPTIONS[:2], [], CAPTIONS[2:3]]))
    finally:
        weights.unlink()
    assert ours.shape == (5, 768) and ours.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(ours, official(model, CAPTIONS), atol=2e-6)
    np.testing.assert_allclose(again[0], ours[4], atol=2e-6)
    assert [group.shape for group in groups] == [(2, 768), (0, 768), (1, 768)]
    np.testing.assert_allclose(groups[2], ours[2:3], atol=2e-6)
    assert np.abs(ours[0] - ours[1]).max() > 0.01


@pytest.mark.slow
def test_the_whole_model_as_a_pickle(tmp_path, monkeypatch):
    import open_clip

    whole = open_clip.create_model("ViT-L-14").eval()
    weights = tmp_path / "open_clip_pytorch_model.bin"
    torch.save(whole.state_dict(), weights)
    monkeypatch.setenv("MUCS_RAY_CLIP_WEIGHTS", str(weights))
    try:
        ours = caption_embedding.embed(CAPTIONS)
    finally:
        weights.unlink()
    np.testing.assert_allclose(ours, official(whole, CAPTIONS), atol=2e-6)


def test_missing_weights_are_told_in_one_line(no_weights):
    with pytest.raises(MachineError) as told:
        caption_embedding.find_weights()
    message = str(told.value)
    assert "\n" not in message
    for part in (
        "MUCS_RAY_CLIP_WEIGHTS",
        "open_clip_model.safetensors",
        "laion/CLIP-ViT-L-14-laion2B-s32B-b82K",
        str(no_weights),
        "hf download",
    ):
        assert part in message


def test_variable_that_names_no_file(tmp_path, monkeypatch):
    monkeypatch.setenv("MUCS_RAY_CLIP_WEIGHTS", str(tmp_path / "gone.safetensors"))
    with pytest.raises(MachineError, match=r"MUCS_RAY_CLIP_WEIGHTS names .*gone\.safetensors"):
        caption_embedding.find_weights()


@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
def test_the_hub_cache_is_searched(name, no_weights):
    file = hub_file(no_weights, name)
    file.write_bytes(b"x")
    assert caption_embedding.find_weights() == str(file)


def test_a_file_the_hub_lacks_is_not_taken_for_one(no_weights):
    absent = hub_file(no_weights, "x").parents[2] / ".no_exist" / "abc123"
    absent.mkdir(parents=True)
    (absent / "open_clip_model.safetensors").touch()
    with pytest.raises(MachineError):
        caption_embedding.find_weights()


def test_another_architecture(tmp_path):
    path = tmp_path / "b32.safetensors"
    save_file({"positional_embedding": torch.zeros(77, 512), "text_projection": torch.zeros(512, 512)}, path)
    with pytest.raises(InputError, match=r"b32\.safetensors is not open_clip ViT-L-14.*\(77, 512\)") as told:
        caption_embedding.load_tower(str(path))
    assert "\n" not in str(told.value)
    torch.save({"state_dict": {"module.positional_embedding": torch.zeros(77, 768)}}, tmp_path / "part.pt")
    with pytest.raises(InputError, match="text_projection is absent"):
        caption_embedding.load_tower(str(tmp_path / "part.pt"))


class Hostile:
    """Unpickling it would run code."""

    def __reduce__(self):
        return sys.exit, ("ran",)


def test_broken_and_hostile_files(tmp_path):
    for name in ("broken.safetensors", "broken.bin", "broken.pt"):
        (tmp_path / name).write_bytes(b"not weights at all")
        with pytest.raises(InputError, match=f"{name} cannot be read") as told:
            caption_embedding.load_tower(str(tmp_path / name))
        assert "\n" not in str(told.value)
    torch.save({"positional_embedding": Hostile()}, tmp_path / "hostile.pt")
    with pytest.raises(InputError, match="cannot be read"):
        caption_embedding.load_tower(str(tmp_path / "hostile.pt"))
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(InputError, match="is absent, expected"):
        caption_embedding.load_tower(str(tmp_path / "list.pt"))
    (tmp_path / "weights.zip").touch()
    with pytest.raises(InputError, match=r"expected a file of weights \(\.safetensors"):
        caption_embedding.load_tower(str(tmp_path / "weights.zip"))


def test_no_captions_need_no_weights():
    assert caption_embedding.embed([]).shape == (0, 768)
    assert [group.shape for group in caption_embedding.embed_each([(), ()])] == [(0, 768), (0, 768)]
