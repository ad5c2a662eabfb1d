"""Pipelines of diffusers: our call of the network is the pipeline's own, and z and captions are as it makes them."""

import os
import socket
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tiny_models
from mucs_ray.config.recipe import model_spec
from mucs_ray.diffusion.condition import for_each
from mucs_ray.diffusion.model import DiffusionModel
from mucs_ray.diffusion.noise import generator, normal
from mucs_ray.errors import InputError, MachineError
from mucs_ray.models.adapters import adapter
from mucs_ray.models.pipelines import components
from mucs_ray.models.pipelines.adapter import PipelineAdapter
from mucs_ray.models.pipelines.config import PipelineConfig
from mucs_ray.models.pipelines.families import FAMILIES
from mucs_ray.models.pipelines.latents import LatentCodec
from mucs_ray.models.pipelines.summary import summary
from mucs_ray.models.pipelines.text import Texts
from mucs_ray.spaces.codec import Asked
from tiny_models import PIPELINES, SIDE, saved

PIPELINE_CLASSES = {family.name: family.pipeline for family in FAMILIES}
CPU = torch.device("cpu")
PROMPT = "a photo of a red bicycle, by night"


def spec_of(folder: Path, **values: object) -> PipelineConfig:
    section = PipelineConfig.opened({"kind": "diffusers", "path": str(folder), **values}, size=SIDE, condition_dim=0)
    spec = model_spec(section)
    assert isinstance(spec, PipelineConfig)
    spec.check()
    return spec


def adapter_of(name: str, **values: object) -> PipelineAdapter:
    found = adapter(spec_of(saved(name), **values))
    assert isinstance(found, PipelineAdapter)
    return found


def codec_of(name: str, **values: object) -> LatentCodec:
    return adapter_of(name, **values).codec(CPU)


class Stopped(Exception):
    """Ends a call after what it was made with has been recorded."""


def recorded(network: nn.Module, call: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of the first call of a network, which is not run."""
    calls = []

    def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append((args, kwargs))
        raise Stopped

    hook = network.register_forward_pre_hook(record, with_kwargs=True)
    try:
        call()
    except Stopped:
        pass
    finally:
        hook.remove()
    return calls[0]


def named_arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return arguments by name, without those that are None."""
    named = dict(zip(("sample", "timestep"), args, strict=False)) | kwargs
    return {name: value for name, value in named.items() if value is not None}


def own_call(model: DiffusionModel, noisy: Tensor, time: float, condition: Any) -> dict[str, Any]:
    at = model.process.at(torch.tensor([time]))
    return named_arguments(*recorded(model.network, lambda: model.raw(noisy, at, condition)))


@cache
def opened_by_diffusers(name: str) -> Any:
    """Open a folder as its users do, which is safe with one that was written here."""
    pipeline = getattr(import_module("diffusers"), PIPELINE_CLASSES[name.split("-")[0]])
    opened = pipeline.from_pretrained(str(saved(name)), local_files_only=True)
    opened.set_progress_bar_config(disable=True)
    return opened


def pipelines_call(name: str, prompt: str, noisy: Tensor) -> dict[str, Any]:
    pipeline = opened_by_diffusers(name)
    latents = noisy / pipeline.scheduler.init_noise_sigma
    asked = {"guidance_scale": 1.0, "num_inference_steps": 7, "latents": latents, "height": SIDE, "width": SIDE}
    return named_arguments(*recorded(pipeline.unet, lambda: pipeline(prompt, **asked)))


@pytest.mark.parametrize("prompt", [PROMPT, ""])
@pytest.mark.parametrize("name", PIPELINES)
def test_our_first_call_is_the_pipelines_own(name: str, prompt: str):
    kind, noisy = adapter_of(name), normal(generator(1, "noisy"), 1, *adapter_of(name).shape())
    theirs = pipelines_call(name, prompt, noisy)
    step = theirs["timestep"]
    noisy = theirs["sample"]  # Euler scales what it is given
    text = kind.codec(CPU).encoded(prompt)  # of SDXL, the empty prompt is not the null condition
    condition = {"tokens": text.tokens[None]}
    if text.pooled is not None:
        times = kind.codec(CPU).condition([Asked(text=PROMPT)])["time_ids"]
        condition |= {"pooled": text.pooled[None], "time_ids": times}
    ours = own_call(kind.model(CPU), noisy, float(step), condition)
    assert ours.keys() == theirs.keys()
    for key in ours.keys() - {"timestep"}:
        assert_equal(ours[key], theirs[key])
    assert ours["timestep"].tolist() == [float(step)]


def assert_equal(ours: Any, theirs: Any) -> None:
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            assert_equal(value, theirs[key])
    elif isinstance(ours, Tensor):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)  # the encoder adds in another order now and then
    else:
        assert ours == theirs


@pytest.mark.parametrize("name", ["sd-eps", "sdxl"])
def test_the_null_condition_is_the_pipelines_negative_one(name: str):
    pipeline = opened_by_diffusers(name)
    answer = pipeline.encode_prompt(PROMPT, device=CPU, num_images_per_prompt=1, do_classifier_free_guidance=True)
    nothing = codec_of(name).nothing()
    assert torch.equal(nothing["tokens"], answer[1][0])
    if name == "sdxl":
        assert torch.equal(nothing["pooled"], answer[3][0])
        assert not nothing["tokens"].any()
        assert nothing["time_ids"].tolist() == [SIDE, SIDE, 0, 0, SIDE, SIDE]


def test_layers_are_skipped_as_the_pipeline_does():
    answer = opened_by_diffusers("sdxl").encode_prompt(
        PROMPT, device=CPU, num_images_per_prompt=1, do_classifier_free_guidance=False, clip_skip=1
    )
    assert torch.equal(codec_of("sdxl", clip_skip=1).encoded(PROMPT).tokens, answer[0][0])


def test_a_skipped_layer_is_as_if_it_was_not_there():
    expected = codec_of("sd-eps", clip_skip=1).encoded(PROMPT).tokens
    texts = Texts(components.opened(str(saved("sd-eps")), ()), CPU)
    layers: Any = texts.encoders[0].network.get_submodule("encoder").layers
    del layers[-1]
    with torch.no_grad():
        torch.testing.assert_close(texts.encode(PROMPT).tokens, expected)


def test_z_is_the_shifted_and_scaled_mean_of_the_posterior():
    codec = codec_of("sd-eps")
    pictures = torch.randint(0, 256, (2, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    vae = tiny_models.vae()
    mean = vae.encode(pictures[1:].float() / 127.5 - 1).latent_dist.mean
    codec.shift = 0.5
    try:
        z = codec.encode(pictures)
        torch.testing.assert_close(z[1:], (mean - 0.5) * 0.18215)
        decoded = vae.decode(mean).sample / 2 + 0.5
        torch.testing.assert_close(codec.decode(z[1:]), decoded.clamp(0, 1), rtol=0, atol=1e-5)
    finally:
        codec.shift = 0.0


def test_pictures_and_captions_do_not_depend_on_what_is_encoded_with_them():
    codec = codec_of("sdxl")
    pictures = torch.randint(0, 256, (3, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(codec.encode(pictures)[1:2], codec.encode(pictures[1:2]))
    asked = [Asked(text="a cat"), Asked(text=PROMPT, size=(32, 48), crop=(0, 8))]
    together, alone = codec.condition(asked), codec.condition(asked[1:])
    assert all(torch.equal(together[key][1:], alone[key]) for key in alone)
    assert alone["time_ids"].tolist() == [[32, 48, 0, 8, SIDE, SIDE]]


def test_a_picture_without_a_caption_has_the_recipes_or_the_null_one():
    with_caption, without = codec_of("sd-eps", caption="a photo of sks dog"), codec_of("sd-eps")
    named = with_caption.condition([Asked(text="a photo of sks dog")])
    assert torch.equal(with_caption.condition([Asked()])["tokens"], named["tokens"])
    assert torch.equal(without.condition([Asked()])["tokens"][0], without.nothing()["tokens"])


def test_the_prediction_of_the_recipe_overrules_the_scheduler():
    assert adapter_of("sd-eps").process().prediction == "epsilon"
    assert adapter_of("sd-eps", prediction="v_prediction").process().prediction == "v_prediction"


def test_a_model_rebuilt_from_its_weights_is_the_same():
    kind = adapter_of("sdxl")
    model = kind.model(CPU)
    again = kind.model(CPU, model.network.state_dict())
    noisy, level = normal(generator(1, "noisy"), 2, *model.shape), torch.tensor([3.0, 700.0])
    condition = for_each(kind.codec(CPU).nothing(), 2)
    assert torch.equal(model(noisy, level, condition), again(noisy, level, condition))


def test_nothing_of_it_uses_the_network(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    folder = components.opened(str(saved("sdxl")), ())
    codec = LatentCodec(folder, CPU, side=SIDE)
    assert codec.decode(codec.encode(torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8))).shape == (1, 3, SIDE, SIDE)
    assert codec.condition([Asked(text=PROMPT)]).keys() == {"tokens", "pooled", "time_ids"}
    assert components.build_network(folder, CPU, None).training is False
    assert os.environ["HF_HUB_OFFLINE"] == "1"


@pytest.mark.parametrize("package", ["diffusers", "transformers"])
def test_without_the_extra_one_line_says_what_to_install(package: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(MachineError, match=r'install it with: pip install "mucs-ray\[diffusers\]"'):
        components.library(package)


def test_a_folder_that_was_changed_since_the_run_began_is_refused():
    spec = spec_of(saved("sd-eps"))
    changed = {**spec.digests, "vae": "0" * 64}
    with pytest.raises(InputError, match="vae is not what it was when this run began"):
        components.opened(spec.path, tuple(sorted(changed.items())))


@pytest.mark.parametrize("name", ["sd-zero-snr", "sdxl"])
def test_a_pipeline_is_described_in_a_block_to_be_mailed(name: str):
    facts = summary(str(saved(name)))
    assert facts["folder"].startswith(f"{name}: StableDiffusion")
    assert str(saved(name).parent) not in "\n".join(facts.values())
    assert "NOT FINITE" not in facts["one call"]
    assert {"unet", "vae", "text_encoder", "tokenizer", "scheduler"} <= facts.keys()
    if name == "sdxl":
        assert "x 0.13025" in facts["codec"]
        assert facts["text_encoder_2"].startswith("CLIPTextModelWithProjection")
    else:
        assert facts["process"] == (
            "predicts v_prediction; betas scaled_linear 0.00085 to 0.012, stretched to zero signal, 1000 steps"
        )
