"""A computation at fixed addresses: captured once as a CUDA graph, then replayed by one launch.

A forward of a small network is some hundred kernels of a few microseconds, which Python launches more slowly than a GPU
runs them. A graph reads and writes the memory that it was captured with, so whoever replays it copies new inputs to the
old addresses and reads the results before the next replay. On a CPU the computation runs anew each time and its results
are copied to the old addresses: the same rules hold, and tests without a GPU can break them.
"""

import gc
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

Results = Mapping[str, Tensor]
Pool = Any
"""torch's handle of memory in which several graphs compute; they are never replayed at the same time."""


def graph_pool(device: torch.device) -> Pool:
    """Return new memory for graphs; None on a CPU, which needs none."""
    return torch.cuda.graph_pool_handle() if device.type == "cuda" else None


def warn_not_captured(error: Exception) -> None:
    """Warn that work goes on without a graph: a network that cannot be captured still runs eagerly."""
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    warnings.warn(f"not captured as a CUDA graph, which only costs time: {reason}", stacklevel=3)


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Collect garbage now and none meanwhile: an older graph that is freed during a capture makes it invalid."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class Replay:
    """One launch of `compute()`, which may read tensors that stay where they are and must not wait for the device."""

    def __init__(self, compute: Callable[[], Results], device: torch.device, *, pool: Pool = None) -> None:
        """Run `compute` once to compile and allocate what it needs, and capture a second run.

        Raises torch.OutOfMemoryError if the device's memory is too small.
        """
        self.compute = compute
        self.graph = None
        self.results: Results
        if device.type != "cuda":
            self.results = {name: tensor.clone() for name, tensor in compute().items()}
            return
        stream, current = torch.cuda.Stream(device), torch.cuda.current_stream(device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            compute()
        current.wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        # other threads may go on: one brings the next images (mucs_ray.attribution.arriving)
        with (
            without_garbage_collection(),
            torch.cuda.graph(self.graph, pool=pool, capture_error_mode="thread_local"),
        ):
            self.results = compute()

    def __call__(self) -> Results:
        """Return the results, at the same addresses each time: the next call overwrites them."""
        if self.graph is not None:
            self.graph.replay()
            return self.results
        for name, fresh in self.compute().items():
            self.results[name].copy_(fresh)
        return self.results
