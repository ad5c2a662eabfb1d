"""Weights are looked for in a fixed order of places; their files are read, or refused in one line."""

import hashlib
import os
import socket
import sys
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import save_file

from mucs_ray.data import caption_embedding
from mucs_ray.doctor import pretrained_weights
from mucs_ray.encoders.weights import (
    ALEXNET_WEIGHTS,
    CLIP_WEIGHTS,
    DINO_WEIGHTS,
    SQUEEZENET_WEIGHTS,
    SSCD_WEIGHTS,
    VGG_WEIGHTS,
    Weights,
    checkpoints_folder,
    find_weights,
    read_weights,
)
from mucs_ray.errors import InputError, MachineError
from mucs_ray.evaluation.metrics import METRICS, ready_metrics

ALL = [CLIP_WEIGHTS, DINO_WEIGHTS, SSCD_WEIGHTS, VGG_WEIGHTS, ALEXNET_WEIGHTS, SQUEEZENET_WEIGHTS]
SHAPES = {"first.weight": (4, 3), "second.bias": (4,)}


@pytest.fixture(autouse=True)
def bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Remove all variables and caches that could hold weights, and the way to the network."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("something tried to reach the network")

    for variable in ("MUCS_RAY_WEIGHTS", "MUCS_RAY_CLIP_WEIGHTS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "huggingface"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return tmp_path


def put(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return str(path)


@pytest.mark.parametrize("variables", [{}, {"TORCH_HOME": "~/mine"}, {"XDG_CACHE_HOME": "/cache"}])
def test_checkpoints_are_where_torch_keeps_them(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch):
    for name in ("TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    assert checkpoints_folder() == Path(torch.hub.get_dir()) / "checkpoints"


def put_in_hub_cache(machine: Path, weights: Weights, name: str) -> str:
    repository = machine / "huggingface" / f"models--{weights.repository.replace('/', '--')}"
    put(repository / "refs" / "main")
    (repository / "refs" / "main").write_text("abc123")
    return put(repository / "snapshots" / "abc123" / name)


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def tensors() -> dict[str, torch.Tensor]:
    return {
        "first.weight": torch.arange(12.0).view(4, 3).half(),
        "second.bias": torch.ones(4),
        "classifier": torch.zeros(9),
    }


# --- looking


@pytest.mark.parametrize("weights", ALL, ids=lambda weights: weights.network)
def test_every_accepted_name_is_found_in_the_folder_and_among_the_checkpoints(weights: Weights, bare_machine: Path):
    for name in weights.names:
        for folder in (bare_machine / "mine" / name, bare_machine / "torch" / "hub" / "checkpoints"):
            path = put(folder / name)
            given = str(folder) if "mine" in folder.parts else None
            assert find_weights(weights, given) == path
            Path(path).unlink()


@pytest.mark.parametrize("weights", [CLIP_WEIGHTS, DINO_WEIGHTS], ids=["clip", "dino"])
def test_the_hugging_face_cache_is_searched(weights: Weights, bare_machine: Path):
    for name in weights.repository_files[::-1]:
        path = put_in_hub_cache(bare_machine, weights, name)
        assert find_weights(weights) == path


def test_the_order_of_places(bare_machine: Path, monkeypatch: pytest.MonkeyPatch):
    """The places are filled from the last to the first, and each goes before those filled before it."""
    name = CLIP_WEIGHTS.names[0]
    cached = put_in_hub_cache(bare_machine, CLIP_WEIGHTS, name)
    assert find_weights(CLIP_WEIGHTS) == cached
    checkpoint = put(bare_machine / "torch" / "hub" / "checkpoints" / name)
    assert find_weights(CLIP_WEIGHTS) == checkpoint
    by_variable = put(bare_machine / "variable" / CLIP_WEIGHTS.names[1])
    monkeypatch.setenv("MUCS_RAY_WEIGHTS", str(bare_machine / "variable"))
    assert find_weights(CLIP_WEIGHTS) == by_variable
    given = put(bare_machine / "given" / name)
    assert find_weights(CLIP_WEIGHTS, str(bare_machine / "given")) == given
    named = put(bare_machine / "anything.pt")
    monkeypatch.setenv("MUCS_RAY_CLIP_WEIGHTS", named)
    assert find_weights(CLIP_WEIGHTS, str(bare_machine / "given")) == named


def test_the_order_of_names(bare_machine: Path):
    """The original goes before its half-precision copy."""
    folder = bare_machine / "mine"
    put(folder / "vgg16_features_fp16.safetensors")
    original = put(folder / "vgg16-397923af.pth")
    assert find_weights(VGG_WEIGHTS, str(folder)) == original


def test_captions_and_similarity_take_the_same_clip(bare_machine: Path, monkeypatch: pytest.MonkeyPatch):
    path = put(bare_machine / "mine" / "open_clip_model.safetensors")
    monkeypatch.setenv("MUCS_RAY_WEIGHTS", str(bare_machine / "mine"))
    [metric], _ = ready_metrics(["clip"], None)
    assert metric.path == caption_embedding.find_weights() == path
    assert metric.digest == "open_clip_model.safetensors:1"


def test_a_clip_variable_that_names_no_file_only_costs_that_metric(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MUCS_RAY_CLIP_WEIGHTS", "/nowhere/clip.pt")
    _, left_out = ready_metrics([], None)
    assert left_out["clip"].startswith("clip: MUCS_RAY_CLIP_WEIGHTS names /nowhere/clip.pt, which is not a file here")


@pytest.mark.parametrize("weights", ALL, ids=lambda weights: weights.network)
def test_the_line_about_absent_weights_is_a_recipe(weights: Weights, bare_machine: Path):
    """The line says what is expected and where, and gives a command that puts the file there."""
    with pytest.raises(MachineError) as error:
        find_weights(weights)
    line = one_line(error)
    for part in (weights.network, "--weights-dir", "MUCS_RAY_WEIGHTS", *weights.names, weights.variable):
        assert part in line
    command = line.split("with internet: ")[1].split()
    if command[0] == "curl":
        assert command[-1] == weights.url and command[-1].endswith("/" + weights.names[0])
        path = put(Path(command[command.index("-o") + 1]))
    else:
        assert command[:2] == ["hf", "download"] and command[2] == weights.repository
        path = put_in_hub_cache(bare_machine, weights, command[3])
    assert find_weights(weights) == path


def test_the_doctor_lists_them(bare_machine: Path, monkeypatch: pytest.MonkeyPatch):
    path = put(bare_machine / "mine" / "vgg16.safetensors")
    monkeypatch.setenv("MUCS_RAY_WEIGHTS", str(bare_machine / "mine"))
    findings = {finding.name: finding for finding in pretrained_weights()}
    assert list(findings) == [name for name in METRICS if name not in ("ssim", "mse")]
    assert all(finding.optional for finding in findings.values())
    assert findings["lpips"].ok and findings["lpips"].found == path
    assert not findings["sscd"].ok and "sscd_disc_mixup.torchscript.pt" in findings["sscd"].found


# --- reading


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".bin"])
def test_tensors_are_read_in_single_precision(suffix: str, tmp_path: Path):
    path = tmp_path / f"weights{suffix}"
    save_file(tensors(), path) if suffix == ".safetensors" else torch.save(tensors(), path)
    actual = read_weights(str(path), SHAPES, network="Net")
    assert set(actual) == set(SHAPES) and {value.dtype for value in actual.values()} == {torch.float32}
    torch.testing.assert_close(actual["first.weight"], torch.arange(12.0).view(4, 3))


def test_a_training_checkpoint_is_unwrapped(tmp_path: Path):
    wrapped = {"epoch": 3, "state_dict": {f"module.{name}": value for name, value in tensors().items()}}
    torch.save(wrapped, tmp_path / "weights.pt")
    assert set(read_weights(str(tmp_path / "weights.pt"), SHAPES, network="Net")) == set(SHAPES)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["zip", "old", "safetensors"])
def test_a_file_cut_short_anywhere_is_one_line(kind: str, tmp_path: Path):
    """torchvision's VGG is in torch's format of before 2020, which breaks in other ways than the present one."""
    path = tmp_path / ("weights.safetensors" if kind == "safetensors" else "weights.pth")
    if kind == "safetensors":
        save_file(tensors(), path)
    else:
        torch.save(tensors(), path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    for kept in range(0, len(whole), 3):
        path.write_bytes(whole[:kept])
        with pytest.raises(InputError, match="cannot be read") as error:
            read_weights(str(path), SHAPES, network="Net")
        assert str(path) in one_line(error)


def test_the_sha256_in_a_name_is_checked(tmp_path: Path):
    torch.save(tensors(), tmp_path / "weights")
    digest = hashlib.sha256((tmp_path / "weights").read_bytes()).hexdigest()
    right, wrong = tmp_path / f"net-{digest[:8]}.pth", tmp_path / "vgg16-397923af.pth"
    os.link(tmp_path / "weights", right)
    os.link(tmp_path / "weights", wrong)
    assert len(read_weights(str(right), SHAPES, network="Net")) == 2
    with pytest.raises(InputError, match=f"its sha256 begins with {digest[:8]}, not 397923af") as error:
        read_weights(str(wrong), SHAPES, network="Net")
    assert str(wrong) in one_line(error)


def test_another_network_is_refused_by_its_first_difference(tmp_path: Path):
    save_file({"first.weight": torch.zeros(4, 3)}, tmp_path / "part.safetensors")
    with pytest.raises(InputError, match=r"part\.safetensors is not Net: second\.bias is absent, expected \(4,\)"):
        read_weights(str(tmp_path / "part.safetensors"), SHAPES, network="Net")
    torch.save(tensors() | {"first.weight": torch.zeros(4, 5)}, tmp_path / "wide.pt")
    with pytest.raises(InputError, match=r"first\.weight is \(4, 5\), expected \(4, 3\)") as error:
        read_weights(str(tmp_path / "wide.pt"), SHAPES, network="Net")
    one_line(error)


class Hostile:
    """An object whose unpickling would run code."""

    def __reduce__(self):
        return sys.exit, ("ran",)


def test_a_hostile_pickle_does_not_run(tmp_path: Path):
    torch.save({"first.weight": Hostile()}, tmp_path / "hostile.pth")
    with pytest.raises(InputError, match="cannot be read") as error:
        read_weights(str(tmp_path / "hostile.pth"), SHAPES, network="Net")
    one_line(error)


def test_files_that_are_gone_or_of_another_kind(tmp_path: Path):
    for name in ("gone.pth", "gone.safetensors"):
        with pytest.raises(MachineError, match=f"{name} are gone"):
            read_weights(str(tmp_path / name), SHAPES, network="Net")
    with pytest.raises(InputError, match=r"expected a file of weights \(\.safetensors, \.bin, \.pt, \.pth\)"):
        read_weights(str(tmp_path / "weights.npz"), SHAPES, network="Net")
