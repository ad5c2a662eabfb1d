"""Files of weights as people have them: wrappers, trainers and means of the weights around the same few tensors."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from mucs_ray.errors import InputError
from mucs_ray.models.weights_file import HOLDERS, MEANS, WRAPPERS, peeled, read_state
from mucs_ray.storage import digest
from mucs_ray.store.weights import load_weights

State = dict[str, Tensor]
RAW: State = {"enc.weight": torch.zeros(2), "enc.bias": torch.zeros(1), "table": torch.zeros(3)}
MEAN: State = {"enc.weight": torch.ones(2), "enc.bias": torch.ones(1), "table": torch.ones(3)}


def read(path: Path, document: Any) -> State:
    torch.save(document, path / "weights.pt")
    return read_state(str(path / "weights.pt"))


def same(found: State, expected: State) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def one_line(action: Callable[[], object]) -> str:
    with pytest.raises(InputError) as told:
        action()
    assert "\n" not in str(told.value)
    return str(told.value)


@given(st.lists(st.sampled_from([*WRAPPERS, *HOLDERS]), max_size=5))
def test_prefixes_are_taken_off_in_any_order(prefixes: list[str]) -> None:
    said = next((prefix for prefix in prefixes if prefix not in WRAPPERS), "")
    last = [prefix for prefix in prefixes if prefix not in WRAPPERS]
    origin, bare = peeled(".".join([*prefixes, "enc.weight"]))
    assert bare == "enc.weight" and origin == (last[-1] if last else said)
    assert peeled(".".join([*prefixes, "ema", *prefixes, "enc.weight"])) == ("ema", "enc.weight")


@pytest.mark.parametrize(
    "wrapped", [MEAN, {"module": MEAN}, {"shadow": MEAN, "decay": 0.999}, {"model": MEAN, "step": 3}]
)
@pytest.mark.parametrize("key", ["ema", "model_ema", "state_dict_ema"])
def test_the_mean_of_a_checkpoint_is_found_wherever_it_is(key: str, wrapped: object, tmp_path: Path) -> None:
    assert same(read(tmp_path, {"model": RAW, key: wrapped, "optim": {"state": {}}, "epoch": 3}), MEAN)


@pytest.mark.parametrize("key", HOLDERS)
def test_weights_are_found_under_the_usual_keys(key: str, tmp_path: Path) -> None:
    assert same(read(tmp_path, {key: prefixed("_orig_mod.module.", RAW), "epoch": 3}), RAW)
    assert same(read(tmp_path, {"state": 1, "model": {key: RAW}}), RAW)


def test_a_lightning_checkpoint_with_other_entries(tmp_path: Path) -> None:
    others = {
        "loss.scale": torch.ones(1),
        "accuracy.total": torch.tensor(3),
        "perceptual.net.lin.weight": torch.ones(4),
    }
    document = {"state_dict": {**prefixed("model.", RAW), **others}, "hyper_parameters": {"lr": 1}, "epoch": 3}
    assert same(read(tmp_path, document), RAW)
    document["state_dict"] |= prefixed("ema_model.module.", MEAN)
    assert same(read(tmp_path, document), MEAN)


def test_the_wrappers_of_means(tmp_path: Path) -> None:
    counters = {"initted": torch.tensor(True), "step": torch.tensor(3)}
    assert same(read(tmp_path, {**prefixed("online_model.", RAW), **prefixed("ema_model.", MEAN), **counters}), MEAN)
    averaged = {"n_averaged": torch.tensor(3), **prefixed("module.", MEAN)}
    assert same(read(tmp_path, averaged), MEAN), "torch.optim.swa_utils.AveragedModel"
    without_dots = {f"model_ema.{name.replace('.', '')}": tensor for name, tensor in MEAN.items()}
    assert same(read(tmp_path, {**prefixed("model.", RAW), **without_dots}), MEAN), "names without dots"


def test_a_mean_of_the_parameters_alone_is_completed(tmp_path: Path) -> None:
    parameters = {name: MEAN[name] for name in ("enc.weight", "enc.bias")}
    assert same(read(tmp_path, {"model": RAW, "ema": {"shadow": parameters}}), {**parameters, "table": RAW["table"]})


def test_an_argparse_namespace_is_refused_and_told_what_to_keep(tmp_path: Path) -> None:
    told = one_line(lambda: read(tmp_path, {"ema": MEAN, "args": argparse.Namespace(lr=1)}))
    assert "argparse.Namespace" in told and "torch.save(torch.load(FILE, weights_only=False)" in told


def test_a_folder_with_one_file_of_weights_is_that_file(tmp_path: Path) -> None:
    save_file(RAW, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    assert same(read_state(str(tmp_path)), RAW)
    save_file(RAW, tmp_path / "other.safetensors")
    assert "a folder, which holds model.safetensors, other.safetensors; name the one" in one_line(
        lambda: read_state(str(tmp_path))
    )
    (tmp_path / "empty").mkdir()
    assert "holds no file of weights" in one_line(lambda: read_state(str(tmp_path / "empty")))


def test_other_weights_in_a_folder_are_another_digest(tmp_path: Path) -> None:
    digests = set()
    for state in (RAW, MEAN):
        torch.save(state, tmp_path / "weights.pt")
        digests.add(digest(str(tmp_path)))
    assert len(digests) == 2


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt"])
def test_a_pointer_of_git_lfs_is_called_one(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935\nsize 12345\n"
    )
    assert "a git-LFS pointer" in one_line(lambda: load_weights(str(tmp_path / name)))
    assert "git lfs pull" in one_line(lambda: read_state(str(tmp_path / name)))


def test_a_file_with_weights_under_another_key_lists_its_keys(tmp_path: Path) -> None:
    assert "its keys: 'mine', 'epoch'" in one_line(lambda: read(tmp_path, {"mine": RAW, "epoch": 3}))


def test_what_is_called_a_mean_is_no_other_thing() -> None:
    assert not {*MEANS} & {*HOLDERS} and not {*WRAPPERS} & {*MEANS, *HOLDERS}
