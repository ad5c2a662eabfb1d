"""Folders as diffusers saves them: every layout is read, what is written is read again, and bad ones are one line."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fixture_files import document, tensors
from mucs_ray.diffusion.vp import VP
from mucs_ray.diffusion.vp_config import Betas
from mucs_ray.errors import InputError
from mucs_ray.models.adapters import adapter
from mucs_ray.models.scheduler_config import document_of, process_of
from mucs_ray.models.unet2d import UNet2DModel
from mucs_ray.models.unet2d_config import DDPMConfig, UNet2DConfig
from mucs_ray.models.unet2d_folder import WEIGHTS, load, save
from mucs_ray.models.unet2d_json import config_of
from mucs_ray.storage import digest
from mucs_ray.store.weights import load_weights

CONFIGS = document("guda_u/elbo_config")
STATE = tensors("guda_u/unet2d_tiny_weights", "base.")
FORWARD = tensors("guda_u/unet2d_forward")
COSINE = Betas(schedule="squaredcos_cap_v2", steps=4000)


def put(path: Path, document: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """Everything at the root, as in the first years."""
    put(tmp_path / "config.json", {"_class_name": "UNet2DModel", **CONFIGS["unet"]})
    put(tmp_path / "scheduler_config.json", {"_class_name": "DDPMScheduler", **CONFIGS["scheduler"]})
    save_file(STATE, tmp_path / WEIGHTS)
    return tmp_path


@pytest.fixture
def new(old: Path) -> Path:
    """A pipeline."""
    (old / "unet").mkdir()
    for name in ("config.json", WEIGHTS):
        (old / name).rename(old / "unet" / name)
    (old / "scheduler").mkdir()
    (old / "scheduler_config.json").rename(old / "scheduler" / "scheduler_config.json")
    parts = {"unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDPMScheduler"]}
    put(old / "model_index.json", {"_class_name": "DDPMPipeline", "_diffusers_version": "0.42.1", **parts})
    return old


def answers_as_the_reference(folder: Path) -> None:
    saved = load(str(folder))
    assert not saved.network.training
    with torch.no_grad():
        found = saved.network(FORWARD["x"], FORWARD["t"].float())
    torch.testing.assert_close(found, FORWARD["eps"], rtol=0, atol=1e-6)
    assert saved.process == VP(betas=COSINE, spacing="leading")


def refused(folder: Path, *words: str) -> None:
    with pytest.raises(InputError) as error:
        load(str(folder))
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


# --- what is read ---------------------------------------------------------------------------------------------------


def test_an_old_folder(old: Path):
    answers_as_the_reference(old)


def test_a_pipeline(new: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)  # so that its import would fail
    answers_as_the_reference(new)


def test_old_names_of_attention(old: Path):
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def old_name(name: str) -> str:
        for new, before in names.items():
            name = name.replace(new, before)
        return name

    state = {old_name(name): tensor for name, tensor in STATE.items()}
    assert "mid_block.attentions.0.proj_attn.weight" in state
    save_file(state, old / WEIGHTS)
    answers_as_the_reference(old)


def shard(folder: Path) -> None:
    names = sorted(STATE)
    halves = {"a.safetensors": names[:50], "b.safetensors": names[50:]}
    for file, each in halves.items():
        save_file({name: STATE[name] for name in each}, folder / file)
    put(
        folder / f"{WEIGHTS}.index.json", {"weight_map": {name: file for file, each in halves.items() for name in each}}
    )
    (folder / WEIGHTS).unlink()


def test_weights_in_several_files(new: Path):
    shard(new / "unet")
    answers_as_the_reference(new)


def test_the_running_mean_of_a_checkpoint_is_taken(new: Path):
    assert not load(str(new)).is_mean
    (new / "unet_ema").mkdir()
    (new / "unet_ema" / "config.json").write_bytes((new / "unet" / "config.json").read_bytes())
    save_file({name: tensor + 1 for name, tensor in STATE.items()}, new / "unet_ema" / WEIGHTS)
    saved = load(str(new))
    assert saved.is_mean
    torch.testing.assert_close(saved.network.conv_out.bias.detach(), STATE["conv_out.bias"] + 1)


def test_half_precision_is_read_as_fp32(old: Path):
    save_file({name: tensor.half() for name, tensor in STATE.items()}, old / WEIGHTS)
    assert load(str(old)).network.conv_out.weight.dtype == torch.float32


def test_the_first_published_kind_of_config():
    found = config_of(
        {
            "act_fn": "silu",
            "attention_head_dim": None,
            "block_out_channels": [128, 256, 256, 256],
            "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
            "downsample_padding": 0,
            "flip_sin_to_cos": False,
            "freq_shift": 1,
            "norm_eps": 1e-06,
            "sample_size": [32, 32],
            "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
        },
        "config.json",
    )
    assert found == UNet2DConfig(
        layers=2,
        attention_down=(False, True, False, False),
        attention_up=(False, True, False, False),
        head_width=None,
        norm_eps=1e-6,
        dropout=0.0,
        downsample_padding=0,
        cos_first=False,
        frequency_shift=1,
    )


def test_absent_keys_of_a_config():
    found = config_of({"sample_size": 64}, "config.json")
    assert found.channels == (224, 448, 672, 896)
    assert found.attention_down == found.attention_up == (False, True, True, True)
    assert (found.layers, found.head_width, found.groups, found.num_classes) == (2, 8, 32, 0)


# --- what is written ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [0, 3])
def test_what_is_written_is_read_again(tmp_path: Path, classes: int):
    config = UNet2DConfig(
        image_size=8,
        channels=(8, 16, 16),
        layers=1,
        attention_down=(False, True, False),
        attention_up=(True, False, False),
        head_width=4,
        groups=4,
        num_classes=classes,
    )
    process = VP(betas=replace(COSINE, zero_snr=True), prediction="v_prediction", spacing="trailing", offset=1)
    network = UNet2DModel(config)
    save(str(tmp_path / "new"), network, process)
    saved = load(str(tmp_path / "new"))
    assert (saved.network.config, saved.process) == (config, process)
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(saved.network.state_dict()[name], tensor, rtol=0, atol=0)
    files = {str(path.relative_to(tmp_path / "new")) for path in (tmp_path / "new").rglob("*") if path.is_file()}
    assert files == {"model_index.json", "unet/config.json", f"unet/{WEIGHTS}", "scheduler/scheduler_config.json"}
    with safe_open(tmp_path / "new" / "unet" / WEIGHTS, "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert ("class_embedding.weight" in load_file(tmp_path / "new" / "unet" / WEIGHTS)) == bool(classes)


@pytest.mark.parametrize(
    "process",
    [
        VP(spacing="leading"),
        VP(betas=Betas(schedule="trained", steps=3, trained=(0.1, 0.2, 0.3)), prediction="sample", spacing="leading"),
    ],
    ids=("linear", "trained"),
)
def test_a_scheduler_is_what_it_was(process: VP):
    assert process_of(json.loads(json.dumps(document_of(process))), "x") == process


def test_a_scheduler_that_says_little_is_a_ddpm_that_predicts_noise():
    assert process_of({"beta_schedule": "linear"}, "x") == VP(spacing="leading")


# --- what is refused --------------------------------------------------------------------------------------------------


def changed(path: Path, **keys: Any) -> None:
    put(path, {**json.loads(path.read_text()), **keys})


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"_class_name": "UNet2DConditionModel"}, ("_class_name", "'UNet2DConditionModel'")),
        ({"time_embedding_type": "fourier"}, ("time_embedding_type", "'positional'", "'fourier'")),
        ({"resnet_time_scale_shift": "scale_shift"}, ("resnet_time_scale_shift",)),
        ({"down_block_types": ["DownBlock2D", "ResnetDownsampleBlock2D"]}, ("AttnDownBlock2D", "Resnet")),
        ({"down_block_types": ["DownBlock2D"]}, ("for each of 2 levels",)),
        ({"sample_size": None}, ("sample_size", "None")),
        ({"sample_size": [8, 16]}, ("sample_size", "square")),
        ({"block_out_channels": "wide"}, ("block_out_channels", "'wide'")),
        ({"block_out_channels": [6, 16]}, ("block_out_channels", "norm_num_groups")),
        ({"layers_per_block": None}, ("layers_per_block", "None")),
        ({"norm_num_groups": 0}, ("norm_num_groups",)),
    ],
)
def test_a_config_that_cannot_be_read(old: Path, keys: dict[str, Any], words: tuple[str, ...]):
    changed(old / "config.json", **keys)
    refused(old, "config.json", *words)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"_class_name": "LCMScheduler"}, ("distilled", "LCMScheduler")),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, ("table of betas", "FlowMatch")),
        ({"_class_name": "EDMEulerScheduler"}, ("table of betas",)),
        ({"prediction_type": "flow_prediction"}, ("prediction_type", "epsilon, v_prediction or sample")),
        ({"beta_schedule": "exp"}, ("beta_schedule", "'exp'")),
        ({"num_train_timesteps": 1}, ("num_train_timesteps",)),
        ({"beta_start": 0.5, "beta_end": 0.1}, ("beta_start",)),
        ({"trained_betas": [0.1, "x"]}, ("trained_betas",)),
    ],
)
def test_a_scheduler_that_cannot_be_read(old: Path, keys: dict[str, Any], words: tuple[str, ...]):
    changed(old / "scheduler_config.json", **keys)
    refused(old, "scheduler_config.json", *words)


def test_no_scheduler(old: Path):
    (old / "scheduler_config.json").unlink()
    refused(old, "scheduler_config.json", "no such file")


def test_no_model(tmp_path: Path):
    refused(tmp_path / "absent", "config.json: no such file")


def test_a_pipeline_of_other_parts(new: Path):
    changed(new / "model_index.json", vqvae=["diffusers", "VQModel"])
    refused(new, "model_index.json", "vqvae")
    changed(new / "model_index.json", vqvae=[None, None], unet=["my_code", "UNet2DModel"])
    refused(new, "model_index.json", "my_code")


def test_pickled_weights(old: Path):
    (old / WEIGHTS).rename(old / "diffusion_pytorch_model.bin")
    refused(old, ".bin", "refused", "save_pretrained")


def test_a_missing_shard(new: Path):
    shard(new / "unet")
    (new / "unet" / "b.safetensors").unlink()
    refused(new, "b.safetensors", "no such file")


def test_a_shard_elsewhere(new: Path):
    shard(new / "unet")
    put(new / "unet" / f"{WEIGHTS}.index.json", {"weight_map": {"conv_in.weight": "../../secret.safetensors"}})
    refused(new, "index.json", "beside it")


def test_broken_files(old: Path):
    (old / WEIGHTS).write_bytes(b"no tensors at all")
    refused(old, WEIGHTS, "cannot be read")
    (old / "config.json").write_text("{")
    refused(old, "config.json", "JSON")


def test_other_tensors(old: Path):
    state = {**STATE, "conv_in.bias": torch.zeros(3), "surplus": torch.zeros(1)}
    del state["conv_out.bias"]
    save_file(state, old / WEIGHTS)
    refused(old, "1 missing (conv_out.bias)", "1 unexpected ('surplus')", "conv_in.bias is 3, not 8")


# --- as weights of a run ----------------------------------------------------------------------------------------------


def test_a_folder_is_the_spec_and_the_weights_of_a_run(new: Path):
    spec, weights = load_weights(str(new), {"kind": "unet2d"})
    assert isinstance(spec, DDPMConfig)
    assert (spec.prediction, spec.beta_schedule, spec.timesteps) == ("epsilon", "squaredcos_cap_v2", 4000)
    model = adapter(spec).model(torch.device("cpu"), weights)
    torch.testing.assert_close(model.network(FORWARD["x"], FORWARD["t"].float()), FORWARD["eps"], rtol=0, atol=1e-6)
    assert model.process == replace(load(str(new)).process, second_moment=0.25)
    again, _ = load_weights(str(new), spec.to_dict())
    assert again == spec


def test_the_prediction_can_be_told_where_the_scheduler_is_anothers(new: Path):
    """Training scripts save the scheduler of the model that they started from (spec/models 1.3)."""
    spec, _ = load_weights(str(new), {"kind": "unet2d", "prediction": "v_prediction"})
    assert isinstance(spec, DDPMConfig) and spec.prediction == "v_prediction"


def test_a_folder_read_as_another_kind_and_a_file_read_as_a_folder(new: Path):
    with pytest.raises(InputError, match=r"is a folder of diffusers; read it with --recipe ddpm, or --set model"):
        load_weights(str(new), {})
    with pytest.raises(InputError, match=r"\.safetensors: expected the folder in which diffusers saved the model"):
        load_weights(str(new / "unet" / WEIGHTS), {"kind": "unet2d"})


def test_the_digest_of_a_folder_is_that_of_its_weights_and_settings(new: Path):
    before = digest(str(new))
    (new / "readme.md").write_text("changes nothing")
    assert digest(str(new)) == before
    changed(new / "scheduler" / "scheduler_config.json", prediction_type="v_prediction")
    assert digest(str(new)) != before
