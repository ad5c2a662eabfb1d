"""Official weights: a second, plain implementation of spec 3 on a dict of tensors says what a loaded network answers.

The reference below shares no code with mucs_ray.models.dit: it was written from the spec with torch.nn.functional.
"""

import io
import math
import os
import pickle
import shutil
import sys
import zipfile
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import fsspec
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from mucs_ray.diffusion.edm import EDM
from mucs_ray.diffusion.loss import denoising_loss
from mucs_ray.errors import InputError
from mucs_ray.models.dit import DiT, DiTConfig
from mucs_ray.models.dit_edm import DiTEDM
from mucs_ray.models.official import load

State = dict[str, Tensor]

# --- the reference --------------------------------------------------------------------------------------------------


def ref_conv_block(w: State, name: str, x: Tensor, rate: int, up: bool) -> Tensor:
    resample = F.conv_transpose2d if up else F.conv2d

    def norm(h: Tensor, which: str) -> Tensor:
        mean = h.mean((2, 3), keepdim=True)
        variance = ((h - mean) ** 2).mean((2, 3), keepdim=True)
        weight, bias = w[f"{name}.{which}.weight"], w[f"{name}.{which}.bias"]
        return (h - mean) / torch.sqrt(variance + 1e-5) * weight[None, :, None, None] + bias[None, :, None, None]

    h = F.silu(norm(x, "norm1"))
    h = resample(h, w[f"{name}.conv1.weight"], w[f"{name}.conv1.bias"], stride=rate)
    h = F.silu(norm(h, "norm2"))
    kernel = w[f"{name}.conv2.weight"]
    h = F.conv2d(h, kernel, w[f"{name}.conv2.bias"], padding=kernel.shape[-1] // 2)
    if f"{name}.skip.weight" in w:
        x = resample(x, w[f"{name}.skip.weight"], w[f"{name}.skip.bias"], stride=rate)
    return h + x


def ref_linear(w: State, name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", torch.zeros(()))


def ref_layer_norm(x: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, unbiased=False, keepdim=True) + 1e-6)


def ref_attention(w: State, name: str, x: Tensor, heads: int) -> Tensor:
    batch, count, width = x.shape
    size = width // heads
    qkv = (x @ w[f"{name}.qkv.weight"].T).reshape(batch, count, 3, heads, size)
    out = torch.empty(batch, count, heads, size, dtype=x.dtype)
    for head in range(heads):
        query, key, value = qkv[:, :, 0, head], qkv[:, :, 1, head], qkv[:, :, 2, head]
        weights = torch.softmax(query @ key.transpose(1, 2) / math.sqrt(size), dim=-1)
        out[:, :, head] = weights @ value
    return ref_linear(w, f"{name}.proj", out.reshape(batch, count, width))


def ref_condition(w: State, level: Tensor, condition: Tensor | None, flag: Tensor) -> Tensor:
    angle = torch.outer(level, w["s_embedder.freq"])
    features = torch.cat([torch.sin(angle), torch.cos(angle)], 1)
    c = ref_linear(w, "s_embedder.mlp.2", F.silu(ref_linear(w, "s_embedder.mlp.0", features)))
    c = c + w["a_embedder.emb.weight"][flag]
    if "y_embedder.xdrop" in w:
        null = w["y_embedder.xdrop"]
        rows = torch.zeros(len(level), len(null), dtype=level.dtype) if condition is None else condition
        rows = torch.stack([null if float((row**2).sum()) < 1e-8 else row for row in rows])
        c = c + ref_linear(w, "y_embedder.emb_mlp.3", F.silu(ref_linear(w, "y_embedder.emb_mlp.0", rows)))
    return c


def ref_network(w: State, x: Tensor, level: Tensor, condition: Tensor | None, flag: Tensor, heads: int) -> Tensor:
    r0, r1 = w["encoder.0.conv1.weight"].shape[-1], w["encoder.1.conv1.weight"].shape[-1]
    h = ref_conv_block(w, "encoder.1", ref_conv_block(w, "encoder.0", x, r0, up=False), r1, up=False)
    patch = w["x_embedder.proj.weight"].shape[-1]
    grid = F.conv2d(h, w["x_embedder.proj.weight"], w["x_embedder.proj.bias"], stride=patch)
    batch, width, rows, columns = grid.shape
    tokens = grid.reshape(batch, width, rows * columns).permute(0, 2, 1) + w["pos_enc.emb"]
    registers = w["pos_enc.extra"]
    tokens = torch.cat([registers[None].repeat(batch, 1, 1), tokens], 1)
    c = F.silu(ref_condition(w, level, condition, flag))
    depth = len({name.split(".")[1] for name in w if name.startswith("dit_backbone.")})
    for i in range(depth):
        block = f"dit_backbone.{i}"
        parts = ref_linear(w, f"{block}.adapter.adapter.1", c)
        g1, s1, b1, g2, s2, b2 = (parts[:, None, k * width : (k + 1) * width] for k in range(6))
        tokens = tokens + g1 * ref_attention(w, f"{block}.attention", (1 + s1) * ref_layer_norm(tokens) + b1, heads)
        inner = ref_linear(w, f"{block}.mlp.0", (1 + s2) * ref_layer_norm(tokens) + b2)
        inner = inner * 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
        tokens = tokens + g2 * ref_linear(w, f"{block}.mlp.3", inner)
    parts = ref_linear(w, "dit_final.adapter.adapter.1", c)[:, None]
    tokens = (1 + parts[..., :width]) * ref_layer_norm(tokens) + parts[..., width:]
    grid = tokens[:, len(registers) :].permute(0, 2, 1).reshape(batch, width, rows, columns)
    h = F.conv_transpose2d(grid, w["unpatchify.proj.weight"], w["unpatchify.proj.bias"], stride=patch)
    h = ref_conv_block(w, "decoder.1", ref_conv_block(w, "decoder.0", h, r1, up=True), r0, up=True)
    return torch.einsum("oc,bchw->bohw", w["last.proj.weight"], h)


def ref_denoised(w: State, noisy: Tensor, sigma: Tensor, condition: Tensor | None, flag: Tensor, heads: int) -> Tensor:
    s = sigma.reshape(-1, 1, 1, 1)
    raw = ref_network(w, noisy / torch.sqrt(s**2 + 0.25), torch.log(sigma + 1e-6) / 4, condition, flag, heads)
    return 0.25 / (s**2 + 0.25) * noisy + s * 0.5 / torch.sqrt(s**2 + 0.25) * raw


# --- weights and files ----------------------------------------------------------------------------------------------

NARROW = DiTConfig(width=64, depth=2, num_heads=1, registers=5, condition_channels=24)
LAYOUTS = {
    "CIFAR10": NARROW,
    "ArtBench10": replace(NARROW, image_size=64, channels=(16, 16), strides=(1, 2), condition_dim=10),
    "COCO": replace(
        NARROW, image_size=64, channels=(16, 16), strides=(1, 2), condition_dim=48, condition_channels=40, width=128,
        num_heads=2,
    ),
}  # fmt: skip
OTHERS = {
    "conditional CIFAR10": replace(NARROW, condition_dim=10),
    "unconditional at 64": replace(LAYOUTS["ArtBench10"], condition_dim=0),
    "no registers": replace(NARROW, registers=0),
    "all sizes unusual": DiTConfig(
        image_size=48, channels=(6, 10), strides=(2, 3), kernel_size=3, patch_size=4, width=192, depth=3, num_heads=3,
        mlp_ratio=2, registers=7, condition_channels=12, condition_dim=9,
    ),
}  # fmt: skip
MODELS = LAYOUTS | OTHERS


def weights(config: DiTConfig, seed: int = 0) -> State:
    """Every tensor random, the ones that start at zero too; outputs of order one."""
    torch.manual_seed(seed)
    state = DiT(config).state_dict()
    for name, tensor in state.items():
        if name in ("pos_enc.emb", "s_embedder.freq"):
            continue
        tensor.normal_(0, 0.7 * math.prod(tensor.shape[1:]) ** -0.5 if tensor.ndim > 1 else 0.3)
    return state


def save(path: Path, document: Any) -> str:
    if path.suffix == ".safetensors":
        save_file(document, path)
    else:
        torch.save(document, path)
    return str(path)


def message(path: str, **options: int) -> str:
    """Of the InputError, which must be one line that begins with the path."""
    with pytest.raises(InputError) as caught:
        load(path, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(path)
    return text.removeprefix(path)


def check_answers(network: DiT, config: DiTConfig, state: State, *, batch: int = 5) -> None:
    """Denoised images and losses, at levels from 0.05 to 80, agree with the reference to 1e-5."""
    stream = torch.Generator().manual_seed(5)
    shape = batch, 3, config.image_size, config.image_size
    image, noise = torch.randn(shape, generator=stream) / 2, torch.randn(shape, generator=stream)
    sigma = torch.tensor([0.05, 0.5, 1.5, 12.0, 80.0])[:batch]
    flag = torch.tensor([0, 1, 0, 1, 1])[:batch]
    condition = None
    if config.condition_dim:
        condition = torch.randn(batch, config.condition_dim, generator=stream)
        condition[1] = 0
    noisy = image + sigma[:, None, None, None] * noise
    denoiser = DiTEDM(network)
    with torch.no_grad():
        expected = ref_denoised(state, noisy, sigma, condition, flag, config.num_heads)
        root = (sigma**2 + 0.25).sqrt()[:, None, None, None]
        raw = (expected - 0.25 / root**2 * noisy) * root / (0.5 * sigma[:, None, None, None])
        assert 0.05 < raw.std() < 20, "the weights of this test no longer give outputs of order one"
        given = {"augmented": flag} | ({} if condition is None else {"condition": condition})
        found = denoiser(noisy, sigma, given)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        weight = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
        expected_loss = weight * ((expected - image) ** 2).mean((1, 2, 3))
        found_loss = denoising_loss(EDM(), denoiser, image, noise, sigma, given)
        torch.testing.assert_close(found_loss, expected_loss, rtol=1e-5, atol=1e-5)


# --- the same answers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", MODELS)
def test_a_loaded_network_answers_as_the_reference(layout: str, tmp_path: Path):
    config, state = MODELS[layout], weights(MODELS[layout])
    network, found = load(save(tmp_path / "weights.safetensors", state))
    assert found == config
    check_answers(network, config, state)


def test_the_paper_cifar10_model_answers_as_the_reference(tmp_path: Path):
    config = DiTConfig()
    state = weights(config)
    path = save(tmp_path / "weights.safetensors", state)
    network, found = load(path)
    Path(path).unlink()  # 400 MB; pytest keeps the folder
    assert found == config
    check_answers(network, config, state, batch=2)


def test_the_number_of_heads_can_be_given(tmp_path: Path):
    state = weights(LAYOUTS["COCO"])
    path = save(tmp_path / "weights.pt", state)
    network, config = load(path, num_heads=8)
    assert config.num_heads == 8
    check_answers(network, config, state, batch=2)
    assert load(path)[1].num_heads == 2


def test_a_width_of_no_whole_heads_needs_the_number(tmp_path: Path):
    config = replace(NARROW, width=48, num_heads=3)
    state = weights(config)
    path = save(tmp_path / "weights.pt", state)
    assert "width 48 is not a multiple of 64; give the number of heads" in message(path)
    for heads in (5, 0, -1):
        assert f"{heads} heads do not divide width 48" in message(path, num_heads=heads)
    network, found = load(path, num_heads=3)
    assert found == config
    check_answers(network, config, state, batch=2)


def test_the_tables_of_the_file_are_used(tmp_path: Path):
    """If the file's positions and frequencies differ from ours, the file's are the ones it was trained with."""
    state = weights(NARROW)
    state["pos_enc.emb"] = torch.randn_like(state["pos_enc.emb"])
    state["s_embedder.freq"] = torch.rand_like(state["s_embedder.freq"])
    network, config = load(save(tmp_path / "weights.pt", state))
    check_answers(network, config, state, batch=2)


def test_a_loaded_network_is_ready(tmp_path: Path):
    """Eval mode, fp32, on the CPU, trainable, and torch's global random stream is where it was."""
    path = save(tmp_path / "weights.pt", weights(LAYOUTS["ArtBench10"]))
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    network, _ = load(path)
    torch.testing.assert_close(torch.rand(2), expected, rtol=0, atol=0)
    assert not any(module.training for module in network.modules())
    for tensor in network.state_dict().values():
        assert tensor.dtype == torch.float32
        assert tensor.device.type == "cpu"
    assert all(parameter.requires_grad for parameter in network.parameters())
    network(torch.zeros(1, 3, 64, 64), torch.zeros(1)).sum().backward()


# --- formats --------------------------------------------------------------------------------------------------------


def same_weights(network: DiT, state: State) -> None:
    found = network.state_dict()
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth", ".PT", ".safetensors"])
def test_a_plain_state_dict_of_every_suffix(suffix: str, tmp_path: Path):
    state = weights(NARROW)
    same_weights(load(save(tmp_path / f"weights{suffix}", state))[0], state)


def test_the_torch_format_before_zip(tmp_path: Path):
    state = weights(NARROW)
    torch.save({"ema": state}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    same_weights(load(str(tmp_path / "old.pt"))[0], state)


@pytest.mark.parametrize("suffix", [".ckpt", ".pt"])
def test_the_ema_of_a_checkpoint_is_read_and_else_the_model(suffix: str, tmp_path: Path):
    raw, ema = weights(NARROW, 1), weights(NARROW, 2)
    rest = {"optim": {"state": {0: torch.ones(2)}}, "sched": {}, "conf": None, "epoch": 3, "cost": 0.5}
    same_weights(load(save(tmp_path / f"a{suffix}", {"model": raw, "ema": ema, **rest}))[0], ema)
    same_weights(load(save(tmp_path / f"b{suffix}", {"model": raw, "ema": None, **rest}))[0], raw)
    same_weights(load(save(tmp_path / f"c{suffix}", {"model": raw, **rest}))[0], raw)


@pytest.mark.parametrize(
    "prefix",
    ["_forward_module.", "module.", "_forward_module.module.", "module._forward_module.", "module.module."],
)
def test_prefixes_of_wrappers_are_stripped(prefix: str, tmp_path: Path):
    state = weights(NARROW)
    prefixed = {prefix + name: tensor for name, tensor in state.items()}
    same_weights(load(save(tmp_path / "plain.pt", prefixed))[0], state)
    same_weights(load(save(tmp_path / "plain.safetensors", prefixed))[0], state)
    same_weights(load(save(tmp_path / "training.ckpt", {"ema": prefixed, "model": {}}))[0], state)


def test_a_prefix_is_stripped_from_the_front_only(tmp_path: Path):
    state = weights(NARROW)
    state["last.module.proj.weight"] = state.pop("last.proj.weight")
    text = message(save(tmp_path / "weights.pt", state))
    assert "1 missing (last.proj.weight); 1 unexpected ('last.module.proj.weight')" in text


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_other_precisions_become_fp32(dtype: torch.dtype, suffix: str, tmp_path: Path):
    state = {name: tensor.to(dtype) for name, tensor in weights(NARROW).items()}
    same_weights(load(save(tmp_path / f"w{suffix}", state))[0], {n: t.to(torch.float32) for n, t in state.items()})


def test_parameters_and_views_are_read_as_tensors(tmp_path: Path):
    state = weights(NARROW)
    saved = {name: torch.nn.Parameter(tensor) for name, tensor in state.items()}
    saved["last.proj.weight"] = torch.nn.Parameter(torch.cat([state["last.proj.weight"]] * 2)[:3])
    network, _ = load(save(tmp_path / "weights.pt", saved))
    same_weights(network, state)
    assert {name for name, _ in network.named_buffers()} == {"pos_enc.emb", "s_embedder.freq"}


def test_any_fsspec_url(tmp_path: Path):
    state = weights(NARROW)
    for suffix in (".ckpt", ".safetensors"):
        content = Path(save(tmp_path / f"weights{suffix}", state)).read_bytes()
        url = f"memory://official/weights{suffix}"
        fsspec.filesystem("memory").pipe_file("/official/weights" + suffix, content)
        same_weights(load(url)[0], state)
    same_weights(load(f"file://{tmp_path}/weights.ckpt")[0], state)


# --- pickled configurations -----------------------------------------------------------------------------------------


@pytest.fixture
def omegaconf(monkeypatch: pytest.MonkeyPatch) -> dict[str, type]:
    """Stand-ins with the names and the pickled form of OmegaConf 2.x's classes; gone before the file is read."""
    classes: dict[str, type] = {}
    for module, names in {
        "base": ["Metadata", "ContainerMetadata"],
        "nodes": ["AnyNode"],
        "dictconfig": ["DictConfig"],
        "listconfig": ["ListConfig"],
    }.items():
        made = ModuleType(f"omegaconf.{module}")
        for name in names:
            classes[name] = type(name, (), {"__module__": f"omegaconf.{module}"})
            setattr(made, name, classes[name])
        monkeypatch.setitem(sys.modules, f"omegaconf.{module}", made)
    monkeypatch.setitem(sys.modules, "omegaconf", ModuleType("omegaconf"))
    return classes


def pickled_conf(classes: dict[str, type]) -> object:
    """What OmegaConf.create({"channels": [4]}) holds, as pickled by omegaconf 2.4 (checked against the real one)."""

    def make(name: str, **attributes: object) -> object:
        instance = classes[name]()
        vars(instance).update(attributes)
        return instance

    def metadata(kind: str, **more: object) -> object:
        return make(kind, ref_type=Any, object_type=dict, optional=True, key=None, flags={}, **more)

    item = make("AnyNode", _metadata=metadata("Metadata"), _parent=None, _val=4)
    container = metadata("ContainerMetadata", key_type=int, element_type=Any, resolver_cache=defaultdict(dict))
    channels = make("ListConfig", _metadata=container, _content=[item], _flags_cache=None)
    vars(item)["_parent"] = channels
    container = metadata("ContainerMetadata", key_type=Any, element_type=Any, resolver_cache=defaultdict(dict))
    return make("DictConfig", _metadata=container, _content={"channels": channels}, _flags_cache=None)


def test_a_checkpoint_with_an_omegaconf_object(omegaconf: dict[str, type], tmp_path: Path):
    state = weights(NARROW)
    document = {"model": {}, "ema": state, "conf": pickled_conf(omegaconf), "epoch": 3, "cost": 0.5}
    path = save(tmp_path / "training.ckpt", document)
    for name in [name for name in sys.modules if name.startswith("omegaconf")]:
        del sys.modules[name]
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    network, config = load(path)
    assert config == NARROW
    same_weights(network, state)
    assert "omegaconf" not in sys.modules
    with pytest.raises(pickle.UnpicklingError):  # what was allowed for one file is not left allowed
        torch.load(path, weights_only=True)


def test_a_numpy_cost(tmp_path: Path):
    import numpy as np

    state = weights(NARROW)
    same_weights(load(save(tmp_path / "training.ckpt", {"ema": state, "cost": np.float64(0.5)}))[0], state)


class Hostile:
    """Would write a file if it were unpickled."""

    def __init__(self, function: object, *args: object) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


def hostile(target: Path) -> dict[str, tuple[Hostile, str]]:
    return {
        "os.system": (Hostile(os.system, f"touch {target}"), f"{os.system.__module__}.system"),
        "shutil": (Hostile(shutil.copyfile, __file__, str(target)), "shutil.copyfile"),
        "eval": (Hostile(eval, f"open({str(target)!r}, 'w')"), "builtins.eval"),
        "exec inside": (Hostile(exec, f"open({str(target)!r}, 'w')"), "builtins.exec"),
        "file": (Hostile(io.FileIO, str(target), "w"), "_io.FileIO"),
        "torch": (Hostile(torch.hub.download_url_to_file, "http://localhost", str(target)), "torch.hub.download_url"),
    }


@pytest.mark.parametrize("kind", list(hostile(Path())))
@pytest.mark.parametrize("place", ["conf", "a weight", "whole file", "before zip", "bare pickle"])
def test_a_hostile_file_is_refused_unrun(kind: str, place: str, tmp_path: Path):
    target = tmp_path / "touched"
    attack, named = hostile(target)[kind]
    state = weights(replace(NARROW, depth=1))
    path = tmp_path / "evil.ckpt"
    if place == "bare pickle":
        path.write_bytes(pickle.dumps({"ema": attack}, protocol=2))
    elif place == "before zip":
        torch.save({"ema": state, "conf": attack}, path, _use_new_zipfile_serialization=False)
    else:
        document = {
            "conf": {"ema": state, "conf": attack},
            "a weight": {**state, "last.proj.weight": attack},
            "whole file": attack,
        }[place]
        torch.save(document, path)
    assert not target.exists()
    text = message(str(path))
    assert "refused" in text
    assert named.removeprefix("builtins.") in text
    assert not target.exists()


def test_an_allowed_name_is_not_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A module that calls itself omegaconf is not imported and its function not run."""
    called: list[object] = []
    module = ModuleType("omegaconf")
    module.attack = called.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "omegaconf", module)

    def attack(value: object) -> None:
        called.append(value)

    attack.__module__, attack.__qualname__, attack.__name__ = "omegaconf", "attack", "attack"
    module.attack = attack  # type: ignore[attr-defined]
    state = weights(NARROW)
    path = save(tmp_path / "training.ckpt", {"ema": state, "conf": Hostile(attack, "ran")})
    same_weights(load(path)[0], state)
    assert called == []


# --- files that are not these weights -------------------------------------------------------------------------------


def test_missing_unexpected_and_misshapen_tensors_are_one_error(tmp_path: Path):
    state = weights(NARROW)
    for name in ("dit_final.adapter.adapter.1.bias", "last.proj.weight"):
        del state[name]
    state |= {"extra\nname": torch.ones(1), **{f"more{i}": torch.ones(1) for i in range(5)}}
    state["decoder.1.skip.bias"] = torch.ones(7)
    state["dit_backbone.1.mlp.0.weight"] = torch.ones(256, 65)
    text = message(save(tmp_path / "weights.pt", state))
    assert "2 missing (last.proj.weight, dit_final.adapter.adapter.1.bias); " in text
    assert r"6 unexpected ('extra\nname', 'more0', 'more1', ...); " in text
    assert "2 of another shape (decoder.1.skip.bias is 7, not 12, dit_backbone.1.mlp.0.weight is 256x65, not" in text


@pytest.mark.parametrize("name", list(DiT(replace(LAYOUTS["ArtBench10"], depth=1)).state_dict()))
def test_any_missing_tensor_is_named(name: str, tmp_path: Path):
    state = weights(replace(LAYOUTS["ArtBench10"], depth=1))
    del state[name]
    text = message(save(tmp_path / "weights.pt", state), num_heads=1)
    assert name in text
    assert "another shape" not in text


@pytest.mark.parametrize("name", list(DiT(replace(LAYOUTS["ArtBench10"], depth=1)).state_dict()))
@pytest.mark.parametrize("shape", [(), (0,), (3, 1, 1, 1, 2)])
def test_any_misshapen_tensor_is_an_error(name: str, shape: tuple[int, ...], tmp_path: Path):
    state = weights(replace(LAYOUTS["ArtBench10"], depth=1))
    state[name] = torch.zeros(shape)
    assert "another shape" in message(save(tmp_path / "weights.pt", state), num_heads=1)


def test_an_even_kernel_is_an_error(tmp_path: Path):
    state = weights(NARROW)
    for name in [name for name in state if name.endswith("conv2.weight")]:
        state[name] = state[name][:, :, :4, :4].clone()
    text = message(save(tmp_path / "weights.pt", state))
    assert "4 of another shape (encoder.0.conv2.weight is 4x8x4x4, not 4x8x5x5" in text


def test_a_network_without_blocks_is_an_error(tmp_path: Path):
    state = {name: tensor for name, tensor in weights(NARROW).items() if not name.startswith("dit_backbone.")}
    assert "missing (dit_backbone.0." in message(save(tmp_path / "weights.pt", state))


def test_what_is_missing_is_counted_by_the_size_of_this_file(tmp_path: Path):
    state = weights(replace(NARROW, depth=3))
    in_a_block = sum(name.startswith("dit_backbone.1.") for name in state)
    without = {name: tensor for name, tensor in state.items() if not name.startswith("dit_backbone.1.")}
    text = message(save(tmp_path / "gap.pt", without))
    assert f"{in_a_block} missing (dit_backbone.1." in text and "unexpected" not in text
    without = {name: tensor for name, tensor in state.items() if not name.startswith("dit_backbone.")}
    assert f"{in_a_block} missing (dit_backbone.0." in message(save(tmp_path / "none.pt", without))
    text = message(save(tmp_path / "other.pt", {f"layer{n}.weight": torch.ones(1) for n in range(9)}))
    assert "not the tensors of a DiT-EDM: all are missing, and 9 unexpected ('layer0.weight', " in text


def test_a_missing_block_is_an_error(tmp_path: Path):
    state = weights(replace(NARROW, depth=3))
    state = {name: tensor for name, tensor in state.items() if not name.startswith("dit_backbone.1.")}
    assert "missing (dit_backbone.1." in message(save(tmp_path / "weights.pt", state))


UNET_LINE = "do not say if it is a UNet-EDM or a UNet-VP; name what it was trained as: --set model.kind=unet-edm or"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("y_embedder.emb.weight", "another backbone than dit-edm; read them with --set model.kind=dit-vp"),
        ("enc.32x32_conv.weight", UNET_LINE),
        ("dec.8x8_in0.norm0.weight", UNET_LINE),
        ("map_layer0.weight", UNET_LINE),
        ("map_label.weight", UNET_LINE),
        ("map_augment.emb.weight", UNET_LINE),
    ],
)
def test_other_backbones_are_named(name: str, told: str, tmp_path: Path):
    assert told in message(save(tmp_path / "w.pt", {f"module.{name}": torch.ones(2, 2)}))
    state = {**weights(NARROW), name: torch.ones(2, 2)}
    assert told in message(save(tmp_path / "w.safetensors", state))


@pytest.mark.parametrize(
    "document",
    [{}, [], 3, "text", {"ema": {}}, {"model": None}, {1: torch.ones(1)}, torch.ones(3)],
)
def test_a_torch_file_without_weights(document: object, tmp_path: Path):
    text = message(save(tmp_path / "weights.pt", document))
    assert "no weights in it" in text and "; expected a state dict" in text


def test_entries_that_are_no_weights(tmp_path: Path):
    state: dict[str, Any] = dict(weights(NARROW))
    text = message(save(tmp_path / "a.pt", {**state, "epoch": 3}))
    assert "'epoch' is not a tensor of floating-point numbers (int)" in text
    text = message(save(tmp_path / "b.pt", {**state, "last.proj.weight": torch.ones(3, 12, dtype=torch.int8)}))
    assert "'last.proj.weight' is not a tensor of floating-point numbers (torch.int8)" in text


def test_a_name_with_and_without_prefix(tmp_path: Path):
    state = weights(NARROW)
    state["module.last.proj.weight"] = state["last.proj.weight"].clone()
    assert "'last.proj.weight' occurs twice" in message(save(tmp_path / "weights.pt", state))


def test_absent_and_unreadable_files(tmp_path: Path):
    assert "no such file" in message(str(tmp_path / "absent.ckpt"))
    assert "no such file" in message("memory://official/absent.safetensors")
    (tmp_path / "folder.pt").mkdir()
    assert "a folder, which holds no file of weights" in message(str(tmp_path / "folder.pt"))
    assert "Protocol not known" in message("nosuchprotocol://bucket/weights.pt")


@pytest.mark.parametrize("name", ["weights", "weights.bin", "weights.ckpt.gz"])
def test_other_suffixes(name: str, tmp_path: Path):
    (tmp_path / name).write_bytes(b"")
    assert "expected a file of weights (.safetensors, .ckpt, .pt, .pth)" in message(str(tmp_path / name))


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
@pytest.mark.parametrize("damage", ["empty", "text", "cut early", "cut late", "zip of nothing"])
def test_damaged_files(suffix: str, damage: str, tmp_path: Path):
    whole = Path(save(tmp_path / f"whole{suffix}", weights(NARROW))).read_bytes()
    other = io.BytesIO()
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("a.txt", "hello")
    content = {
        "empty": b"",
        "text": b"<html>404: not found</html>",
        "cut early": whole[:100],
        "cut late": whole[:-1000],
        "zip of nothing": other.getvalue(),
    }[damage]
    path = tmp_path / f"damaged{suffix}"
    path.write_bytes(content)
    assert "cannot be read as weights" in message(str(path))
