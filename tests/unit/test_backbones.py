"""UNet-EDM, UNet-VP and DiT-VP against what the official networks answer (spec/backbones 1, 3, 9)."""

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from families import DIT, UNET
from fixture_files import document, tensors
from mucs_ray.diffusion.condition import Condition
from mucs_ray.diffusion.edm import EDM
from mucs_ray.diffusion.generation import euler, towards
from mucs_ray.diffusion.loss import denoising_loss
from mucs_ray.diffusion.model import DiffusionModel, guided
from mucs_ray.diffusion.vp_continuous import ContinuousVP, time_of
from mucs_ray.errors import InputError
from mucs_ray.models.adapters import adapter
from mucs_ray.models.dit_vp import CIFAR10, DiTForVP, DiTVP
from mucs_ray.models.official_sizes import dit_vp_config_of, unet_config_of
from mucs_ray.models.unet import Block, UNet
from mucs_ray.models.unet_config import UNetConfig
from mucs_ray.models.unet_edm import UNetEDM, UNetVP
from mucs_ray.store.weights import load_weights

FULL = document("mucs_backbones/full_size_tables")
VP_NAMES = "unet_vp", "dit_vp"
CIFAR10_UNET = UNetConfig(condition_dim=10)
CIFAR10_UNET_VP = UNetConfig(channels=192, condition_dim=10)


def without_filters(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if not name.endswith("resample_filter")}


def tiny(name: str) -> DiffusionModel:
    if name == "dit_vp":
        model: DiffusionModel = DiTVP(DiTForVP(DIT))
        weights = tensors("mucs_backbones/dit_vp_tiny_weights")
    else:
        model = (UNetEDM if name == "unet_edm" else UNetVP)(UNet(UNET))
        weights = without_filters(tensors("mucs_backbones/unet_tiny_weights"))
    model.network.load_state_dict(weights)
    return model.eval().requires_grad_(False)


@cache
def reference(name: str) -> dict[str, Tensor]:
    return tensors(f"mucs_backbones/{name}_tiny")


def given(name: str) -> Condition:
    return {"condition": reference(name)["y"], "augmented": reference(name)["a"]}


def tolerance(name: str) -> Tensor:
    """UNets 1e-6; of a DiT 2e-5, and 5e-4 where c_noise is above 100 and the phases of its waves lose digits."""
    told = reference(name)["c_noise"]
    allowed = torch.where(told > 100, 5e-4, 2e-5) if name == "dit_vp" else torch.full_like(told, 1e-6)
    return allowed[:, None, None, None]


def scaled_noisy(name: str) -> Tensor:
    """As the VP process has it: c_in (x + sigma eps)."""
    return reference(name)["noisy"] * reference(name)["c_in"][:, None, None, None]


# --- one forward ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VP_NAMES)
def test_raw_output(name: str):
    known = reference(name)
    raw = tiny(name).network(scaled_noisy(name), known["c_noise"], known["y"], known["a"])
    assert ((raw - known["raw"]).abs() <= tolerance(name)).all()


@pytest.mark.parametrize("name", VP_NAMES)
def test_raw_output_in_float64(name: str):
    known = {each: tensor.double() for each, tensor in reference(name).items()}
    noisy = known["noisy"] * known["c_in"][:, None, None, None]
    raw = tiny(name).double().network(noisy, known["c_noise"], known["y"], reference(name)["a"])
    assert ((raw - known["raw_f64"]).abs() <= tolerance(name)).all()


@pytest.mark.parametrize("conditional", [True, False])
@pytest.mark.parametrize("name", VP_NAMES)
def test_denoised_image(name: str, conditional: bool):
    known = reference(name)
    expected = known["denoised" if conditional else "denoised_uncond"]
    found = tiny(name)(scaled_noisy(name), time_of(known["sigma"]), given(name) if conditional else {})
    scale = known["sigma"][:, None, None, None].clamp(min=1)  # D = x_n - sigma F
    assert ((found - expected).abs() <= tolerance(name) * scale).all()


@pytest.mark.parametrize("name", VP_NAMES)
def test_loss_is_the_official_one_and_that_of_a_noise_prediction(name: str):
    known, model = reference(name), tiny(name)
    found = denoising_loss(model.process, model, known["x"], known["noise"], known["t"], given(name))
    rel = 1e-4 if name == "dit_vp" else 1e-5
    torch.testing.assert_close(found, known["loss"], rtol=rel, atol=1e-6)
    direct = (known["raw"] - known["noise"]).square().mean((1, 2, 3))
    torch.testing.assert_close(found, direct, rtol=rel, atol=1e-6)


def test_denoised_image_of_a_zero_network_is_the_noisy_one():
    class Zero(nn.Module):
        def forward(self, x: Tensor, *_: Any) -> Tensor:
            return torch.zeros_like(x)

    noisy, time = torch.ones(2, 3, 4, 4), torch.tensor([0.1, 0.9])
    alpha = ContinuousVP().at(time).alpha[:, None, None, None]
    torch.testing.assert_close(UNetVP(Zero())(noisy, time), noisy / alpha)


def test_unet_edm_is_the_same_network_on_another_process():
    """D = c_skip x_n + c_out F(c_in x_n, ln(sigma) / 4, y, a)."""
    known, model = reference("unet_vp"), tiny("unet_edm")
    sigma = torch.tensor([0.002, 0.1, 0.5, 1.0, 9.0, 80.0])
    root = (sigma**2 + 0.25).sqrt()[:, None, None, None]
    raw = model.network(known["noisy"] / root, (sigma + 1e-6).log() / 4, known["y"], known["a"])
    per_image = sigma[:, None, None, None]
    expected = 0.25 / root**2 * known["noisy"] + 0.5 * per_image / root * raw
    torch.testing.assert_close(model(known["noisy"], sigma, given("unet_vp")), expected)
    assert isinstance(model.process, EDM)


# --- generation -----------------------------------------------------------------------------------------------------


def generated(name: str, weight: float, levels: tuple[Tensor, Tensor], dtype: torch.dtype) -> list[Tensor]:
    known, model = reference(name), tiny(name).to(dtype)
    condition = {"condition": known["sample_y"].to(dtype)}
    return list(
        euler(ContinuousVP(), guided(model, weight), known["sample_unit_noise"].to(dtype), condition, levels=levels)
    )


@pytest.mark.parametrize("weight", [1.0, 1.6])
@pytest.mark.parametrize("name", VP_NAMES)
def test_generation_is_the_exact_one_in_float64(name: str, weight: float):
    known = reference(name)
    times = known["exact_t_f64"]
    levels = ContinuousVP().sampling_levels(8)
    torch.testing.assert_close(levels, times[:-1], rtol=0, atol=1e-12)
    states = generated(name, weight, towards(levels, 0.0), torch.float64)
    expected = known[f"exact_cfg{weight}_trajectory_f64"]
    torch.testing.assert_close(torch.stack(states, dim=1), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("weight", [1.0, 1.6])
@pytest.mark.parametrize("name", VP_NAMES)
def test_generation_without_the_last_step_is_the_official_one(name: str, weight: float):
    known = reference(name)
    levels = ContinuousVP().sampling_levels(8)
    *_, found = generated(name, weight, (levels[:-1], levels[1:]), torch.float32)
    expected = known[f"sample_cfg{weight}_out"]
    assert (found - expected).abs().max() <= 2e-4 * expected.abs().max()


# --- names, shapes and counts -----------------------------------------------------------------------------------------


def on_meta(build: Callable[[], DiffusionModel]) -> DiffusionModel:
    with torch.device("meta"):
        return build()


BUILDS: dict[str, Callable[[], DiffusionModel]] = {
    "dit_vp": lambda: DiTVP(DiTForVP(CIFAR10)),
    "unet_edm": lambda: UNetEDM(UNet(CIFAR10_UNET)),
    "unet_vp": lambda: UNetVP(UNet(CIFAR10_UNET_VP)),
}


@pytest.mark.parametrize("name", BUILDS)
def test_full_size_names_and_shapes_are_the_official_ones(name: str):
    network = on_meta(BUILDS[name]).network
    found = {each: list(parameter.shape) for each, parameter in network.named_parameters()}
    assert found == FULL[name]["parameters"]
    assert sum(map(math.prod, found.values())) == FULL[name]["total"]
    buffers = {each for each in FULL[name]["buffers"] if not each.endswith("resample_filter")}
    assert {each for each, _ in network.named_buffers()} == buffers


COUNTS = {
    ("unet_edm", "mlp"): (47_187_200, None),
    ("unet_edm", "blocks"): (48_760_064, None),
    ("unet_edm", "weights"): (55_674_240, 210),
    ("unet_edm", "all"): (55_734_403, 419),
    ("unet_vp", "weights"): (125_241_408, 210),
    ("unet_vp", "all"): (125_331_651, 419),
    ("dit_vp", "mlp"): (56_625_664, 25),
    ("dit_vp", "all"): (99_759_740, 158),
}


@pytest.mark.parametrize(("name", "which"), COUNTS)
def test_counts_of_what_is_unlearned(name: str, which: str):
    model = on_meta(BUILDS[name])
    names = model.names(which)  # type: ignore[arg-type]
    numbers, num_tensors = COUNTS[name, which]
    assert sum(model.network.get_parameter(each).numel() for each in names) == numbers
    assert len(set(names)) == len(names) == (num_tensors or len(names))


def test_attention_is_where_the_official_network_has_it():
    model = on_meta(BUILDS["unet_edm"])
    blocks = [*(f"enc.16x16_block{number}" for number in range(4)), "dec.8x8_in0", "dec.16x16_block4"]
    assert model.names("attention") == [f"{block}.qkv.weight" for block in blocks]


def test_what_is_worth_compiling():
    model = tiny("unet_vp")
    assert len(model.blocks()) == 2 + 1 + 2 + 2 + 3 + 1 + 3
    assert all(isinstance(block, Block) for block in model.blocks())


# --- sizes read off a file ------------------------------------------------------------------------------------------


def of_shapes(name: str) -> dict[str, Tensor]:
    shapes = {**FULL[name]["parameters"], **FULL[name]["buffers"]}
    return {each: torch.empty(shape, device="meta") for each, shape in shapes.items()}


def test_sizes_are_read_off_the_tensors():
    tiny_unet, tiny_dit = (tensors(f"mucs_backbones/{name}_tiny_weights") for name in ("unet", "dit_vp"))
    assert unet_config_of(tiny_unet, "x") == UNET
    assert unet_config_of(of_shapes("unet_edm"), "x") == CIFAR10_UNET
    assert unet_config_of(of_shapes("unet_vp"), "x") == CIFAR10_UNET_VP
    assert dit_vp_config_of(tiny_dit, "x", num_heads=2) == DIT
    assert dit_vp_config_of(of_shapes("dit_vp"), "x") == CIFAR10


def test_a_file_of_another_network_has_no_such_sizes():
    unet, dit = of_shapes("unet_vp"), of_shapes("dit_vp")
    with pytest.raises(InputError, match=r"a\.pt: expected the tensors of a UNet"):
        unet_config_of(dit, "a.pt")
    with pytest.raises(InputError, match=r"a\.pt: expected the tensors of a DiT-VP; found no x_embedder"):
        dit_vp_config_of(unet, "a.pt")
    with pytest.raises(InputError, match="registers of a DiT-EDM"):
        dit_vp_config_of({**dit, "pos_enc.extra": torch.zeros(32, 768)}, "a.pt")
    with pytest.raises(InputError, match="width 32 is not a multiple of 64; give the number of heads"):
        dit_vp_config_of(tensors("mucs_backbones/dit_vp_tiny_weights"), "a.pt")


# --- files of the authors' code -------------------------------------------------------------------------------------

FILES = {
    "unet-edm": ("unet_tiny_weights", "unet_edm"),
    "unet-vp": ("unet_tiny_weights", "unet_vp"),
    "dit-vp": ("dit_vp_tiny_weights", "dit_vp"),
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_an_official_file_is_read_as_what_it_is_said_to_be(kind: str, suffix: str, tmp_path: Path):
    file, name = FILES[kind]
    path, state = str(tmp_path / f"weights{suffix}"), tensors(f"mucs_backbones/{file}")
    if suffix == ".pt":
        torch.save({"ema": {f"module.{each}": tensor for each, tensor in state.items()}, "epoch": 3}, path)
    else:
        save_file(state, path)
    spec, weights = load_weights(path, {"kind": kind, "num_heads": 2})
    assert spec.kind == kind
    model, expected = adapter(spec).model(torch.device("cpu"), weights), tiny(name)
    assert type(model) is type(expected)
    x, level = torch.ones(2, 3, 8, 8), torch.tensor([0.1, 0.9])
    condition = given_rows("dit_vp" if name == "dit_vp" else "unet_vp")
    assert torch.equal(model(x, level, condition), expected(x, level, condition))


def given_rows(name: str) -> Condition:
    return {each: tensor[:2] for each, tensor in given(name).items()}


@pytest.mark.parametrize(
    ("kind", "file", "told"),
    [
        ("dit-edm", "unet_tiny_weights", "--set model.kind=unet-edm or --set model.kind=unet-vp"),
        ("dit-vp", "unet_tiny_weights", "--set model.kind=unet-edm or --set model.kind=unet-vp"),
        ("dit-edm", "dit_vp_tiny_weights", "than dit-edm; read them with --set model.kind=dit-vp"),
        ("unet-vp", "dit_vp_tiny_weights", "than unet-vp; read them with --set model.kind=dit-vp"),
    ],
)
def test_a_file_read_as_another_network_is_one_line_that_says_what_to_set(
    kind: str, file: str, told: str, tmp_path: Path
):
    path = str(tmp_path / "weights.safetensors")
    save_file(tensors(f"mucs_backbones/{file}"), path)
    with pytest.raises(InputError) as refused:
        load_weights(path, {"kind": kind})
    assert str(refused.value).startswith(path) and told in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(("kind", "label"), [("unet-vp", "a UNet-VP"), ("dit-vp", "a DiT-VP")])
def test_a_file_with_a_tensor_too_few_is_one_line(kind: str, label: str, tmp_path: Path):
    file, _ = FILES[kind]
    state = tensors(f"mucs_backbones/{file}")
    lost = next(name for name in state if name.endswith("bias"))
    path = str(tmp_path / "weights.safetensors")
    save_file({name: tensor for name, tensor in state.items() if name != lost}, path)
    with pytest.raises(InputError, match=rf"not the tensors of {label}: 1 missing \({lost}\)$"):
        load_weights(path, {"kind": kind, "num_heads": 2})


# --- the start of training --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BUILDS)
def test_an_untrained_network_answers_nothing(name: str):
    torch.manual_seed(0)
    model = DiTVP(DiTForVP(DIT)) if name == "dit_vp" else UNetEDM(UNet(UNET))
    x = torch.randn(4, 3, 8, 8)
    raw = model.eval().network(x, torch.full((4,), 2.0), torch.ones(4, 5), None)
    assert raw.abs().max() < 1e-4


def test_initial_weights_have_the_spread_of_the_official_ones():
    torch.manual_seed(0)
    network = UNet(UNetConfig(image_size=8, channels=32, multipliers=(1, 2), blocks=1, attention_at=(4,)))
    spread = {
        "enc.4x4_block0.conv0.weight": 2 / (9 * 32 + 9 * 64),
        "enc.4x4_block0.conv1.weight": 1e-10 * 2 / (9 * 64 + 9 * 64),
        "enc.4x4_block0.qkv.weight": 0.2 * 2 / (64 + 192),
        "dec.4x4_in0.proj.weight": 1e-10 * 2 / (64 + 64),
        "map_layer0.weight": 2 / (32 + 128),
        "map_augment.emb.weight": 1.0,
    }
    for name, variance in spread.items():
        parameter = network.get_parameter(name)
        rel = 0.5 if name.startswith("map_augment") else 0.1
        assert parameter.var().item() == pytest.approx(variance, rel=rel)
    zeros = [name for name, parameter in network.named_parameters() if name.endswith("bias") and parameter.any()]
    assert zeros == []


def test_in_training_a_condition_is_lost_now_and_then():
    torch.manual_seed(0)
    network = tiny("unet_vp").network
    condition, level = torch.ones(2000, 5), torch.zeros(2000)
    kept, lost = (network.embedding(level[:1], each, None) for each in (condition[:1], None))
    found = network.train().embedding(level, condition, None)
    is_lost = (found - lost).abs().amax(dim=1) < 1e-6
    assert ((found - kept).abs().amax(dim=1) < 1e-6).logical_xor(is_lost).all()
    assert is_lost.float().mean().item() == pytest.approx(0.1, abs=0.02)
