"""Hostile and broken folders of pipelines: one line each, and nothing of them is run."""

import json
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mucs_ray.config.recipe import build, from_card, model_spec
from mucs_ray.data.table import Card
from mucs_ray.errors import InputError
from mucs_ray.models.pipelines import folder as folders
from mucs_ray.models.pipelines.config import PipelineConfig
from mucs_ray.models.pipelines.folder import is_pipeline, read_folder

INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.42.1",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "feature_extractor": [None, None],
    "requires_safety_checker": False,
}
SCHEDULER = {"_class_name": "PNDMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}


def write(path: Path, document: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder in order as far as it is read without loading: its weights are bytes that nobody opens."""
    root = tmp_path / "sd"
    write(root / "model_index.json", INDEX)
    write(root / "scheduler" / "scheduler_config.json", SCHEDULER)
    write(root / "unet" / "config.json", {"_class_name": "UNet2DConditionModel", "sample_size": 64, "in_channels": 4})
    write(root / "vae" / "config.json", {"_class_name": "AutoencoderKL", "block_out_channels": [8, 8, 8, 8]})
    write(root / "text_encoder" / "config.json", {"architectures": ["CLIPTextModel"]})
    write(root / "tokenizer" / "vocab.json", {})
    for name, stem in WEIGHTS.items():
        (root / name / f"{stem}.safetensors").write_bytes(name.encode())
    return root


def changed(folder: Path, file: str, **values: Any) -> None:
    document = json.loads((folder / file).read_text())
    write(folder / file, document | values)


def refused(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_folder(str(folder))
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400 + 3 * len(str(folder))
    return message


def test_a_folder_in_order_is_read_without_torch_packages(folder: Path):
    found = read_folder(str(folder))
    assert found.family.name == "sd"
    assert found.options["requires_safety_checker"] is False
    assert set(found.digests()) == {"unet", "vae", "text_encoder", "tokenizer", "scheduler"}


def test_what_a_recipe_leaves_open_is_read_off_the_folder(folder: Path):
    card = Card(name="x", source="", licence="", size=512, condition="none", condition_dim=0, shards=())
    values = {"name": "x", "data": "y", "model": {"kind": "diffusers", "path": str(folder)}}
    spec = build(from_card(values, card)).model
    assert isinstance(spec, PipelineConfig)
    spec.check()
    assert (spec.family, spec.image_size) == ("sd", 512)
    shutil.rmtree(folder)  # a recorded recipe needs it no more
    assert build(from_card({**values, "model": spec.to_dict()}, card)).model == spec


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_every_part_counts_in_the_fingerprint(folder: Path, part: str):
    before = read_folder(str(folder)).digests()
    files = {"tokenizer": "vocab.json", "scheduler": "scheduler_config.json"}
    if part in WEIGHTS:
        (folder / part / f"{WEIGHTS[part]}.safetensors").write_bytes(b"other")
    else:
        changed(folder, f"{part}/{files[part]}", other=1)
    after = read_folder(str(folder)).digests()
    assert [name for name in before if before[name] != after[name]] == [part]


def test_a_recipe_without_a_folder_is_refused():
    with pytest.raises(InputError, match=r"model\.path: expected the folder of a pipeline"):
        model_spec({"kind": "diffusers"}).check()
    with pytest.raises(InputError, match="no such folder"):
        PipelineConfig.opened({"path": "/nowhere/at/all"}, size=8, condition_dim=0)
    with pytest.raises(InputError, match="on a disk"):
        PipelineConfig.opened({"path": "memory://bucket/model"}, size=8, condition_dim=0)


def test_one_file_of_weights_is_refused_with_what_to_do(tmp_path: Path):
    (tmp_path / "model.safetensors").write_bytes(b"x")
    assert "from_single_file" in refused(tmp_path / "model.safetensors")


# --- hostile ------------------------------------------------------------------------------------------------------


EVIL = "import pathlib; pathlib.Path(__file__).with_name('ran').touch()\n"


@pytest.mark.parametrize("part", ["unet", "safety_checker", "scheduler", "helper"])
def test_a_class_in_a_file_of_the_folder_is_never_run(folder: Path, part: str):
    (folder / "evil.py").write_text(EVIL)
    (folder / part).mkdir(exist_ok=True)
    (folder / part / "evil.py").write_text(EVIL)
    changed(folder, "model_index.json", **{part: ["evil", "Evil"]})
    message = refused(folder)
    assert part in message
    assert not list(folder.rglob("ran"))
    assert "evil" not in sys.modules


def test_a_pipeline_of_its_own_is_never_run(folder: Path):
    (folder / "pipeline.py").write_text(EVIL)
    changed(folder, "model_index.json", _class_name=["pipeline", "MyPipeline"])
    assert "_class_name: expected StableDiffusionPipeline" in refused(folder)
    assert not list(folder.rglob("ran"))


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("unet", ["diffusers", "FluxTransformer2DModel"]),
        ("unet", ["os", "system"]),
        ("text_encoder", ["transformers", "AutoModel"]),
        ("vae", None),
        ("tokenizer", ["transformers"]),
        ("scheduler", ["diffusers", "PNDMScheduler", "more"]),
    ],
)
def test_a_class_that_is_not_of_the_family_is_refused(folder: Path, part: str, value: object):
    changed(folder, "model_index.json", **{part: value})
    assert f"{part}: expected" in refused(folder)


@pytest.mark.parametrize("file", ["text_encoder/config.json", "tokenizer/tokenizer_config.json"])
def test_remote_code_is_refused(folder: Path, file: str):
    write(folder / file, {"auto_map": {"AutoModel": "evil.Evil"}})
    assert "auto_map" in refused(folder)


def test_pickled_weights_are_refused_unopened(folder: Path):
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (folder / "ran",))

    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
    message = refused(folder)
    assert "a .bin is a program as much as it is data" in message
    assert "save_pretrained" in message
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("name", ["../vae/diffusion_pytorch_model.safetensors", "/etc/passwd", "weights.bin", "a/b"])
def test_an_index_that_leads_elsewhere_is_refused(folder: Path, name: str):
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    write(folder / "unet" / "diffusion_pytorch_model.safetensors.index.json", {"weight_map": {"a": name}})
    assert "expected names of .safetensors files beside it" in refused(folder)


def test_a_missing_shard_is_named(folder: Path):
    whole = folder / "unet" / "diffusion_pytorch_model.safetensors"
    first, second = (f"diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2))
    whole.rename(whole.with_name(first))
    write(folder / "unet" / f"{whole.name}.index.json", {"weight_map": {"a": first, "b": second}})
    assert f"{second}: no such file, though" in refused(folder)


def test_a_huge_index_is_not_parsed(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(folders, "MOST_JSON_BYTES", 10_000)
    changed(folder, "model_index.json", padding="x" * 20_000)
    assert "more than the 10,000 that such a file may have" in refused(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "\xff\xfe", "[" * 100_000])
@pytest.mark.parametrize("file", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"])
def test_json_that_is_none_is_refused(folder: Path, file: str, text: str):
    (folder / file).write_text(text, encoding="latin-1")
    assert Path(file).name in refused(folder)


def test_many_parts_make_one_short_line(folder: Path):
    changed(folder, "model_index.json", **{f"part_{n}": ["diffusers", "X" * 500] for n in range(1000)})
    assert "part_0" in refused(folder)


# --- models that were not trained to denoise the user's images --------------------------------------------------------


DISTILLED: dict[str, Callable[[Path], None]] = {
    "LCMScheduler": lambda folder: changed(folder, "scheduler/scheduler_config.json", _class_name="LCMScheduler"),
    "reads the guidance": lambda folder: changed(folder, "unet/config.json", time_cond_proj_dim=256),
    "'turbo' in its name": lambda folder: (
        changed(folder, "scheduler/scheduler_config.json", timestep_spacing="trailing"),
        changed(folder, "model_index.json", _name_or_path="stabilityai/sdxl-turbo"),
    )[0],
}


@pytest.mark.parametrize("said", DISTILLED)
def test_a_distilled_model_is_refused(folder: Path, said: str):
    DISTILLED[said](folder)
    message = refused(folder)
    assert said in message
    assert "distilled" in message


@pytest.mark.parametrize("name", ["my-turbo-dog", "sd-zero-snr"])
def test_a_name_alone_or_trailing_steps_alone_are_no_reason(folder: Path, name: str):
    spacing = "leading" if "turbo" in name else "trailing"
    changed(folder, "scheduler/scheduler_config.json", timestep_spacing=spacing)
    changed(folder, "model_index.json", _name_or_path=name)
    assert read_folder(str(folder)).family.name == "sd"


def test_a_model_that_fills_in_pictures_is_refused(folder: Path):
    changed(folder, "unet/config.json", in_channels=9)
    assert "in_channels: expected the VAE's 4; found 9" in refused(folder)


def test_which_folders_are_pipelines(folder: Path, tmp_path: Path):
    assert is_pipeline(str(folder))
    changed(folder, "model_index.json", _class_name="DDIMPipeline", unet=["diffusers", "UNet2DModel"])
    assert not is_pipeline(str(folder))
    assert not is_pipeline(str(tmp_path))
    assert not is_pipeline("memory://bucket/model")
