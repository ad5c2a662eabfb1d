"""Reference values in tests/fixtures, by folder and file."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

ROOT = Path(__file__).parent / "fixtures"


def tensors(name: str, prefix: str = "") -> dict[str, Tensor]:
    """Those whose names begin with the prefix, without it."""
    found = load_file(ROOT / f"{name}.safetensors")
    return {each.removeprefix(prefix): tensor for each, tensor in found.items() if each.startswith(prefix)}


def document(name: str) -> dict[str, Any]:
    return json.loads((ROOT / f"{name}.json").read_text())
