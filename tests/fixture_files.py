"""Functions that read reference values from tests/fixtures."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

ROOT = Path(__file__).parent / "fixtures"


def tensors(name: str, prefix: str = "") -> dict[str, Tensor]:
    """Return the tensors whose names begin with the prefix, under the names without it."""
    content = load_file(ROOT / f"{name}.safetensors")
    return {key.removeprefix(prefix): tensor for key, tensor in content.items() if key.startswith(prefix)}


def document(name: str) -> dict[str, Any]:
    return json.loads((ROOT / f"{name}.json").read_text())
