"""LoRA files in three styles are one and the same branch, and a file of which a tensor has no place is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mucs_ray.config.recipe import model_spec
from mucs_ray.diffusion.condition import for_each
from mucs_ray.diffusion.noise import generator, normal
from mucs_ray.errors import InputError
from mucs_ray.models.adapters import adapter
from mucs_ray.models.pipelines.adapter import PipelineAdapter
from mucs_ray.models.pipelines.config import PipelineConfig
from mucs_ray.models.pipelines.lora_names import stability_name
from mucs_ray.models.pipelines.model import TextUNet
from tiny_models import SIDE, saved

CPU = torch.device("cpu")
RANK, ALPHA = 2, 3.0
TO_Q = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
CONVOLUTION = "down_blocks.0.resnets.0.conv1"
TEXT_Q = "text_model.encoder.layers.0.self_attn.q_proj"


def matrices(name: str, *outer: int, kernel: int = 1) -> tuple[Tensor, Tensor]:
    outputs, inputs = outer
    window = (kernel, kernel) if kernel > 1 else ()
    a = normal(generator(5, f"{name}/a"), RANK, inputs, *window)
    return a, normal(generator(5, f"{name}/b"), outputs, RANK, *(1 for _ in window))


UNET = matrices(TO_Q, 16, 16)
TEXT = matrices(TEXT_Q, 16, 16)
CONV = matrices(CONVOLUTION, 8, 8, kernel=3)


def files(folder: Path) -> dict[str, Path]:
    """Write the same LoRA, with alpha = 3 and rank 2, in each style."""
    header = {"unet.r": RANK, "unet.lora_alpha": ALPHA, "text_encoder.r": RANK, "text_encoder.lora_alpha": ALPHA}
    metadata = {"lora_adapter_metadata": json.dumps(header)}
    kohya = {"unet": TO_Q.replace(".", "_"), "conv": CONVOLUTION.replace(".", "_"), "te": TEXT_Q.replace(".", "_")}
    styles: dict[str, dict[str, Tensor]] = {
        "diffusers": {
            f"unet.{TO_Q}.lora.down.weight": UNET[0],
            f"unet.{TO_Q}.lora.up.weight": UNET[1],
            f"unet.{CONVOLUTION}.lora.down.weight": CONV[0],
            f"unet.{CONVOLUTION}.lora.up.weight": CONV[1],
            f"text_encoder.{TEXT_Q}.lora_linear_layer.down.weight": TEXT[0],
            f"text_encoder.{TEXT_Q}.lora_linear_layer.up.weight": TEXT[1],
        },
        "peft": {
            f"unet.{TO_Q}.lora_A.weight": UNET[0],
            f"unet.{TO_Q}.lora_B.weight": UNET[1],
            f"unet.{CONVOLUTION}.lora_A.weight": CONV[0],
            f"unet.{CONVOLUTION}.lora_B.weight": CONV[1],
            f"text_encoder.{TEXT_Q}.lora_A.weight": TEXT[0],
            f"text_encoder.{TEXT_Q}.lora_B.weight": TEXT[1],
        },
        "kohya": {
            f"lora_unet_{kohya['unet']}.lora_down.weight": UNET[0],
            f"lora_unet_{kohya['unet']}.lora_up.weight": UNET[1],
            f"lora_unet_{kohya['unet']}.alpha": torch.tensor(ALPHA),
            f"lora_unet_{kohya['conv']}.lora_down.weight": CONV[0],
            f"lora_unet_{kohya['conv']}.lora_up.weight": CONV[1],
            f"lora_unet_{kohya['conv']}.alpha": torch.tensor(ALPHA),
            f"lora_te_{kohya['te']}.lora_down.weight": TEXT[0],
            f"lora_te_{kohya['te']}.lora_up.weight": TEXT[1],
            f"lora_te_{kohya['te']}.alpha": torch.tensor(ALPHA),
        },
    }
    paths = {}
    for style, tensors in styles.items():
        paths[style] = folder / f"{style}.safetensors"
        save_file(tensors, paths[style], metadata={} if style == "kohya" else metadata)
    return paths


@pytest.fixture(scope="module")
def loras(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return files(tmp_path_factory.mktemp("loras"))


def adapter_of(lora: Path | None) -> PipelineAdapter:
    values: dict[str, Any] = {"kind": "diffusers", "path": str(saved("sd-eps"))}
    section = PipelineConfig.opened(
        values if lora is None else {**values, "lora": str(lora)}, size=SIDE, condition_dim=0
    )
    found = adapter(model_spec(section))
    assert isinstance(found, PipelineAdapter)
    return found


def answer(model: TextUNet) -> Tensor:
    noisy, level = normal(generator(1, "noisy"), 1, *model.shape), torch.tensor([300.0])
    condition = for_each({"tokens": normal(generator(1, "tokens"), 77, 16)}, 1)
    return model.raw(noisy, model.process.at(level), condition)


@pytest.mark.parametrize("style", ["diffusers", "peft", "kohya"])
def test_the_branch_adds_alpha_over_rank_times_b_a(style: str, loras: dict[str, Path]):
    """The network with the branch answers as the one whose matrices had the product added."""
    expected = adapter_of(None).model(CPU)
    plain = answer(expected)
    scale = ALPHA / RANK
    expected.network.get_submodule(TO_Q).weight.data += scale * UNET[1] @ UNET[0]
    added = (CONV[1].flatten(1) @ CONV[0].flatten(1)).reshape(8, 8, 3, 3)
    expected.network.get_submodule(CONVOLUTION).weight.data += scale * added
    model = adapter_of(loras[style]).model(CPU)
    torch.testing.assert_close(answer(model), answer(expected), rtol=1e-4, atol=1e-5)
    assert (answer(model) - plain).abs().max() > 0.01


@pytest.mark.parametrize("style", ["diffusers", "peft", "kohya"])
def test_the_text_encoder_has_its_branch_too(style: str, loras: dict[str, Path]):
    texts = adapter_of(None).codec(CPU).texts
    before = texts.encode("a cat").tokens
    network = texts.encoders[0].network
    matrix = network.get_submodule(TEXT_Q.removeprefix("text_model.")).weight.data
    matrix += ALPHA / RANK * TEXT[1] @ TEXT[0]
    try:
        expected = texts.encode("a cat").tokens
    finally:
        matrix -= ALPHA / RANK * TEXT[1] @ TEXT[0]
    actual = adapter_of(loras[style]).codec(CPU).encoded("a cat").tokens
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    assert (actual - before).abs().max() > 0.01


def test_what_the_lora_trained_is_unlearned_and_survives_a_rebuild(loras: dict[str, Path]):
    kind = adapter_of(loras["peft"])
    model = kind.model(CPU)
    names = model.names("mlp")
    assert set(names) == {f"{module}.{each}" for module in (TO_Q, CONVOLUTION) for each in ("lora_A", "lora_B")}
    assert set(names) < set(model.names("blocks"))
    assert f"{TO_Q}.weight" in model.names("attention")
    weights = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    weights[f"{TO_Q}.lora_B"] *= 2
    again = kind.model(CPU, weights)
    assert torch.equal(again.network.get_parameter(f"{TO_Q}.lora_B"), 2 * UNET[1])
    assert kind.model(torch.device("meta")).names("mlp") == names


def test_a_lora_counts_in_the_fingerprint(loras: dict[str, Path]):
    digests = [adapter_of(loras[style]).spec.to_dict()["digests"]["lora"] for style in ("peft", "kohya")]
    assert digests[0] != digests[1]
    assert "lora" in adapter_of(loras["peft"]).spec.encoding().__repr__()


@pytest.mark.parametrize(
    ("name", "tensors", "told"),
    [
        ("x.safetensors", {"unet.nowhere.lora_A.weight": UNET[0], "unet.nowhere.lora_B.weight": UNET[1]}, "'nowhere'"),
        ("x.safetensors", {f"unet.{TO_Q}.lora_A.weight": UNET[0]}, "two matrices with one rank"),
        ("x.safetensors", {f"unet.{TO_Q}.hada_w1_a": UNET[0]}, "hada_w1_a' is not a tensor of a LoRA"),
        ("x.safetensors", {f"transformer.{TO_Q}.lora_A.weight": UNET[0]}, "is not a tensor of a LoRA"),
        ("x.safetensors", {f"unet.{TO_Q}.lora_A.weight": UNET[0], f"unet.{TO_Q}.lora_B.weight": CONV[1]}, "another"),
        ("x.safetensors", {}, "no tensors in it"),
        ("x.bin", {}, "expected a LoRA as .safetensors"),
    ],
)
def test_a_file_without_a_place_for_each_tensor_is_refused(
    name: str, tensors: dict[str, Tensor], told: str, tmp_path: Path
):
    save_file(tensors, tmp_path / name)
    with pytest.raises(InputError, match=told):
        adapter_of(tmp_path / name).model(CPU)


def test_a_file_that_is_cut_off_is_refused(tmp_path: Path):
    (tmp_path / "x.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        adapter_of(tmp_path / "x.safetensors").model(CPU)


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        # SDXL has two layers in a block: input_blocks 0 is conv_in, 1 and 2 the first block, 3 makes it smaller
        ("down_blocks.0.resnets.0.conv1", "input_blocks_1_0_in_layers_2"),
        ("down_blocks.0.downsamplers.0.conv", "input_blocks_3_0_op"),
        ("down_blocks.1.attentions.0.proj_in", "input_blocks_4_1_proj_in"),
        (
            "down_blocks.2.attentions.1.transformer_blocks.9.attn2.to_out.0",
            "input_blocks_8_1_transformer_blocks_9_attn2_to_out_0",
        ),
        ("mid_block.resnets.1.time_emb_proj", "middle_block_2_emb_layers_1"),
        ("mid_block.attentions.0.proj_out", "middle_block_1_proj_out"),
        ("up_blocks.0.attentions.2.proj_out", "output_blocks_2_1_proj_out"),
        ("up_blocks.2.resnets.0.conv_shortcut", "output_blocks_6_0_skip_connection"),
        ("time_embedding.linear_1", None),
    ],
)
def test_names_of_stabilitys_own_code_are_known(module: str, expected: str | None):
    assert stability_name(module, 2) == expected
