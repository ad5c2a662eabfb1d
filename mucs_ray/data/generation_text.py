"""What the tool that made a picture wrote into its file: prompt, seed, sampler (spec/models.md 3.1).

    A1111, Forge, ...   PNG text "parameters"; EXIF UserComment of JPEG and WebP
    ComfyUI             PNG text "prompt", the graph of nodes as JSON
    InvokeAI            PNG text "invokeai_metadata", or "sd-metadata" of older versions, as JSON

All of it is foreign text: it is shown, never run, and everything that is returned is short and of one line.
"""

import io
import json
import re
import warnings
from collections.abc import Mapping
from typing import Any

from PIL import Image

from mucs_ray.data.decode import FORMATS

MAX_PROMPT = 2000
MAX_WORD = 120
MAX_TEXT = 2_000_000
"""The longest text that is looked at, in characters."""
MAX_NODES = 10_000
MAX_LINKS = 20
"""The longest way from a sampler to its prompt or its model in a graph of nodes."""
USER_COMMENT, EXIF_FOLDER = 0x9286, 0x8769
NUMBERS = {"seed": int, "steps": int, "guidance": float}
A1111_KEYS = {"steps": "steps", "sampler": "sampler", "cfg scale": "guidance", "seed": "seed", "model": "model"}
NUMBER = re.compile(r"[0-9]{1,20}(\.[0-9]{1,20})?")
MOST = 2**64
SETTING = re.compile(r"\s*([A-Za-z ]{1,40}):\s*([^,]*)(?:,|$)")

Found = dict[str, str | int | float]
"""What was found: tool, prompt, negative_prompt, seed, steps, guidance, sampler, model; each only if it is known."""


def generation_text(content: bytes) -> Found:
    """Return what a picture's file says of its making; empty if it says nothing, or nothing that is understood."""
    texts = texts_of(content)
    readers = {
        "parameters": from_parameters,
        "invokeai_metadata": from_invoke,
        "sd-metadata": from_old_invoke,
        "prompt": from_comfy,
    }
    for key, read in readers.items():
        if text := texts.get(key, "")[:MAX_TEXT]:
            try:
                found = read(text)
            except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
                continue  # other tools have used the same key for something else
            if found := bounded(found):
                return found
    return {}


def texts_of(content: bytes) -> dict[str, str]:
    """Return the texts in a picture's file by their key; a comment in its EXIF counts as "parameters"."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged tags and of size; no pixel is decoded here
            with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
                texts = {str(key): text for key, text in picture.info.items() if isinstance(text, str)}
                comment = picture.getexif().get_ifd(EXIF_FOLDER).get(USER_COMMENT)
    except Exception:  # Pillow's plugins raise almost any exception on foreign bytes
        return {}
    return {"parameters": comment_text(comment)} | texts


def comment_text(comment: Any) -> str:  # noqa: ANN401 - whatever EXIF holds
    """Return the text of an EXIF UserComment, whose first 8 bytes name its encoding."""
    if isinstance(comment, str):
        return comment
    if not isinstance(comment, bytes):
        return ""
    code, text = comment[:8], comment[8:]
    if not code.startswith(b"UNICODE"):
        return text.decode("utf-8", "replace")
    zeros_first = text[0:200:2].count(0) >= text[1:200:2].count(0)  # which byte of a Latin letter is 0
    return text.decode("utf-16-be" if zeros_first else "utf-16-le", "replace")


def from_parameters(text: str) -> Mapping[str, Any]:
    """Read the text of A1111: the prompt, "Negative prompt: ...", and a last line of settings."""
    lines = text.replace("\r", "").strip().split("\n")
    settings = settings_of(lines[-1])
    if "steps" not in settings and "seed" not in settings:
        return {}
    prompt, _, negative = "\n".join(lines[:-1]).partition("Negative prompt:")
    return {"tool": "A1111", "prompt": prompt, "negative_prompt": negative, **settings}


def settings_of(line: str) -> dict[str, str]:
    """Return the known settings of a line like "Steps: 20, Sampler: Euler a, Seed: 1"."""
    pairs = [(key.strip().lower(), value) for key, value in SETTING.findall(line[:MAX_PROMPT])]
    return {A1111_KEYS[key]: value for key, value in pairs if key in A1111_KEYS}


def from_invoke(text: str) -> Mapping[str, Any]:
    """Read the metadata of InvokeAI."""
    values = json.loads(text)
    model = values.get("model")
    return {
        "tool": "InvokeAI",
        "prompt": values.get("positive_prompt"),
        "negative_prompt": values.get("negative_prompt"),
        "seed": values.get("seed"),
        "steps": values.get("steps"),
        "guidance": values.get("cfg_scale"),
        "sampler": values.get("scheduler"),
        "model": model.get("name") or model.get("model_name") if isinstance(model, dict) else model,
    }


def from_old_invoke(text: str) -> Mapping[str, Any]:
    """Read the metadata of InvokeAI before version 3, in which a prompt may be a list of weighted prompts."""
    values = json.loads(text)
    image = values["image"]
    prompt = image.get("prompt")
    if isinstance(prompt, list):
        prompt = ", ".join(str(part.get("prompt", "")) for part in prompt[:MAX_LINKS])
    return {
        "tool": "InvokeAI",
        "prompt": prompt,
        "seed": image.get("seed"),
        "steps": image.get("steps"),
        "guidance": image.get("cfg_scale"),
        "sampler": image.get("sampler"),
        "model": values.get("model_weights"),
    }


def from_comfy(text: str) -> Mapping[str, Any]:
    """Read ComfyUI's graph from its first node that samples: its own settings, and what its links lead to."""
    nodes = json.loads(text)
    if not isinstance(nodes, dict) or len(nodes) > MAX_NODES:
        return {}
    inputs_of = {key: node["inputs"] for key, node in nodes.items() if isinstance(node.get("inputs"), dict)}
    samplers = [inputs for inputs in inputs_of.values() if "steps" in inputs and "positive" in inputs]
    if not samplers:
        return {}
    inputs = samplers[0]
    return {
        "tool": "ComfyUI",
        "prompt": linked(inputs_of, inputs.get("positive"), "text", "text_g"),
        "negative_prompt": linked(inputs_of, inputs.get("negative"), "text", "text_g"),
        "seed": inputs.get("seed", inputs.get("noise_seed")),
        "steps": inputs.get("steps"),
        "guidance": inputs.get("cfg"),
        "sampler": inputs.get("sampler_name"),
        "model": linked(inputs_of, inputs.get("model"), "ckpt_name", "unet_name"),
    }


def linked(inputs_of: Mapping[str, Mapping[str, Any]], link: Any, *names: str) -> str | None:  # noqa: ANN401 - foreign JSON
    """Follow links from node to node until one has a text under one of these names; None if none is near."""
    waiting, seen = [link], set[str]()
    while waiting and len(seen) < MAX_LINKS:
        link = waiting.pop(0)
        if not isinstance(link, list) or not link or not isinstance(link[0], str) or link[0] in seen:
            continue
        seen.add(link[0])
        inputs = inputs_of.get(link[0], {})
        texts = [inputs[name] for name in names if isinstance(inputs.get(name), str)]
        if texts:
            return texts[0]
        waiting += list(inputs.values())
    return None


def bounded(found: Mapping[str, Any]) -> Found:
    """Return what is left of foreign values when texts are of one line and short, and numbers are numbers.

    Empty if neither prompt nor seed is left.
    """
    kept: Found = {}
    for key, value in found.items():
        if key in NUMBERS:
            number = number_of(value, NUMBERS[key])
            if number is not None:
                kept[key] = number
        elif isinstance(value, str):
            limit = MAX_PROMPT if key in ("prompt", "negative_prompt") else MAX_WORD
            if text := one_line(value, limit):
                kept[key] = text
    return kept if "prompt" in kept or "seed" in kept else {}


def one_line(text: str, limit: int) -> str:
    """Return a text with single blanks and without what cannot be printed, cut after `limit` characters."""
    words = "".join(sign for sign in " ".join(text[: 4 * limit].split()) if sign.isprintable())
    return words if len(words) <= limit else f"{words[: limit - 1]}…"


def number_of(value: Any, kind: type) -> int | float | None:  # noqa: ANN401 - foreign JSON
    """Return a number of up to 20 digits, from a number or a text; None if it is none, or has a fraction to be lost."""
    if isinstance(value, str):
        value = value.strip()
        if not NUMBER.fullmatch(value):
            return None
        value = int(value) if value.isdecimal() else float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < MOST:
        return None
    if kind is float:
        return float(value)
    return int(value) if value == int(value) else None
