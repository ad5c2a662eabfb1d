"""What tools write into the pictures that they make is read as data, whatever it is."""

import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from mucs_ray.data.generation_text import MAX_PROMPT, MAX_WORD, USER_COMMENT, generation_text

A1111 = """a castle, (dawn:1.2)
second line
Negative prompt: fog, people
Steps: 30, Sampler: Euler a, CFG scale: 6.5, Seed: 18446744073709551615, Size: 5x7, Model hash: 1a, Model: dream"""
COMFY = {
    "3": {
        "class_type": "KSampler",
        "inputs": {
            "seed": 7, "steps": 20, "cfg": 8.0, "sampler_name": "dpmpp_2m", "model": ["9", 0],
            "positive": ["5", 0], "negative": ["7", 0],
        },
    },
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd.safetensors"}},
    "5": {"class_type": "ConditioningCombine", "inputs": {"conditioning_1": ["6", 0]}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a fox", "clip": ["4", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry", "clip": ["4", 1]}},
    "9": {"class_type": "LoraLoader", "inputs": {"model": ["4", 0]}},
}  # fmt: skip


def png(**texts: str) -> bytes:
    info, file = PngInfo(), io.BytesIO()
    for key, text in texts.items():
        info.add_itxt(key.replace("_md", "-metadata"), text)
    Image.new("RGB", (4, 4)).save(file, "PNG", pnginfo=info)
    return file.getvalue()


def test_a1111():
    expected = {
        "tool": "A1111", "prompt": "a castle, (dawn:1.2) second line", "negative_prompt": "fog, people", "steps": 30,
        "sampler": "Euler a", "guidance": 6.5, "seed": 2**64 - 1, "model": "dream",
    }  # fmt: skip
    assert generation_text(png(parameters=A1111)) == expected
    for encoding, order in (("utf-16-be", b"UNICODE\0"), ("utf-16-le", b"UNICODE\0"), ("ascii", b"ASCII\0\0\0")):
        for kind in ("JPEG", "WEBP"):
            exif, file = Image.Exif(), io.BytesIO()
            exif.get_ifd(0x8769)[USER_COMMENT] = order + A1111.encode(encoding)
            Image.new("RGB", (4, 4)).save(file, kind, exif=exif)
            assert generation_text(file.getvalue()) == expected


def test_comfy_follows_its_links():
    assert generation_text(png(prompt=json.dumps(COMFY), workflow="{}")) == {
        "tool": "ComfyUI", "prompt": "a fox", "negative_prompt": "blurry", "seed": 7, "steps": 20, "guidance": 8.0,
        "sampler": "dpmpp_2m", "model": "sd.safetensors",
    }  # fmt: skip
    ring = COMFY | {"6": {"inputs": {"text": ["5", 0]}}}
    found = generation_text(png(prompt=json.dumps(ring)))
    assert "prompt" not in found and found["seed"] == 7


def test_invoke():
    new = {
        "positive_prompt": "a fox", "negative_prompt": "", "seed": 3, "steps": 9, "cfg_scale": 2, "scheduler": "ddim",
        "model": {"name": "sd", "hash": "x"},
    }  # fmt: skip
    assert generation_text(png(invokeai_metadata=json.dumps(new))) == {
        "tool": "InvokeAI", "prompt": "a fox", "seed": 3, "steps": 9, "guidance": 2.0, "sampler": "ddim", "model": "sd",
    }  # fmt: skip
    old = {
        "model_weights": "sd-1.5",
        "image": {"prompt": [{"prompt": "a fox", "weight": 1}], "seed": 3, "sampler": "x"},
    }
    assert generation_text(png(sd_md=json.dumps(old))) == {
        "tool": "InvokeAI", "prompt": "a fox", "seed": 3, "sampler": "x", "model": "sd-1.5",
    }  # fmt: skip


@pytest.mark.parametrize(
    "texts",
    [
        {},
        {"parameters": "Seed"},
        {"parameters": "a title that a person wrote"},
        {"prompt": "a fox"},
        {"prompt": "[" * 100_000},
        {"prompt": json.dumps([1])},
        {"prompt": json.dumps({"1": 5})},
        {"sd_md": json.dumps({"image": 5})},
        {"invokeai_metadata": json.dumps({"seed": True, "positive_prompt": 5})},
        {"invokeai_metadata": '{"seed": 1e999}'},
        {"invokeai_metadata": '{"seed": NaN}'},
        {"invokeai_metadata": '{"seed": 1.5}'},
    ],
)
def test_what_is_not_understood_says_nothing(texts: dict[str, str]):
    assert generation_text(png(**texts)) == {}


def test_foreign_text_is_short_and_of_one_line():
    long = {"positive_prompt": "\x1b[31mred\u202e\ud800\n" + "x" * 50_000, "seed": "12", "scheduler": "y" * 5000}
    found = generation_text(png(invokeai_metadata=json.dumps(long)))
    assert found["prompt"].startswith("[31mredxxx") or found["prompt"].startswith("[31mred xxx")
    assert len(found["prompt"]) == MAX_PROMPT and len(found["sampler"]) == MAX_WORD and found["seed"] == 12
    assert found["prompt"].isprintable()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.sampled_from([*COMFY, "inputs", "image", "prompt", "model"]), inner)
    ),
)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["parameters", "prompt", "invokeai_metadata", "sd_md"]), JSON.map(json.dumps) | st.text())
def test_no_text_is_an_error(key: str, text: str):
    check(generation_text(png(**{key: text.encode("utf-8", "replace").decode()})))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_no_file_is_an_error(data: st.DataObject):
    content = bytearray(png(parameters=A1111, prompt=json.dumps(COMFY)))
    for _ in range(data.draw(st.integers(0, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    check(generation_text(bytes(content[: data.draw(st.integers(0, len(content)))])))
    check(generation_text(data.draw(st.binary())))


def check(found: dict[str, object]) -> None:
    for key, value in found.items():
        if isinstance(value, str):
            assert value.isprintable() and len(value) <= (MAX_PROMPT if "prompt" in key else MAX_WORD)
        else:
            assert isinstance(value, int | float) and 0 <= value < 2**64
