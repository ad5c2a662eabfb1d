"""How a GPU computes while it trains or unlearns: as published, and the same every time."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils.deterministic

memory_options: Any = torch.utils.deterministic


@contextmanager
def as_in_training(device: torch.device) -> Iterator[None]:
    """On a GPU multiply fp32 matrices in TF32 (spec 5), and add up in a fixed order, so that two trainings are equal.

    cuBLAS needs CUBLAS_WORKSPACE_CONFIG=:4096:8 for it, before its first product. An operation that has no such order
    only causes a warning. A CPU computes as ever, in true fp32 and always the same.
    """
    if device.type != "cuda":
        yield
        return
    precision, fixed_order = torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()
    warns, fills = torch.is_deterministic_algorithms_warn_only_enabled(), memory_options.fill_uninitialized_memory
    torch.set_float32_matmul_precision("medium")
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory_options.fill_uninitialized_memory = False  # it only helps to debug
    try:
        yield
    finally:  # the process may do another task next
        torch.set_float32_matmul_precision(precision)
        torch.use_deterministic_algorithms(fixed_order, warn_only=warns)
        memory_options.fill_uninitialized_memory = fills
