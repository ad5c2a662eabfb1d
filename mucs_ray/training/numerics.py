"""The numerics of a GPU in training and unlearning: as published, and the same every time."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils.deterministic

memory_options: Any = torch.utils.deterministic


@contextmanager
def as_in_training(device: torch.device) -> Iterator[None]:
    """Multiply fp32 matrices in TF32 on a GPU (spec 5) and add in a fixed order, so that two trainings are equal.

    cuBLAS needs CUBLAS_WORKSPACE_CONFIG=:4096:8 before its first product. RuntimeError, naming the operation, if a
    network uses one that torch has no deterministic form of. A CPU is not affected: it computes in fp32, the same each
    time.
    """
    if device.type != "cuda":
        yield
        return
    precision, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    fixed_order, fills = torch.are_deterministic_algorithms_enabled(), memory_options.fill_uninitialized_memory
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.allow_tf32 = True
    torch.use_deterministic_algorithms(True)  # with warn_only=True attention would not be in a fixed order
    memory_options.fill_uninitialized_memory = False  # it only helps to debug
    try:
        yield
    finally:  # the process may run another task next
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = convolutions
        torch.use_deterministic_algorithms(fixed_order)
        memory_options.fill_uninitialized_memory = fills
