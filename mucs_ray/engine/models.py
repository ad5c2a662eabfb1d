"""Weights reach workers through the object store, once a node, as NumPy arrays that all processes of the node map.

A worker rebuilds the denoiser from its spec and such arrays.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import ray
import torch
from ray import ObjectRef
from torch import Tensor

from mucs_ray.diffusion.model import DiffusionModel
from mucs_ray.engine.attempts import heartbeat
from mucs_ray.engine.host import keep_freed_memory
from mucs_ray.engine.session import alive_node_ids
from mucs_ray.models.adapters import adapter
from mucs_ray.models.spec import ModelSpec
from mucs_ray.store import checkpoint
from mucs_ray.store.run import Stage

Arrays = dict[str, np.ndarray]


def to_arrays(tensors: Mapping[str, Tensor]) -> Arrays:
    """Copy tensors to the CPU as arrays, which Ray stores without pickling."""
    return {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in tensors.items()}


def to_tensors(arrays: Mapping[str, np.ndarray], device: torch.device) -> dict[str, Tensor]:
    """Return tensors on the device; on the CPU they share the object store's read-only memory."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable.*")
        return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}


def best_device() -> torch.device:
    """Return the GPU that Ray gave this worker, else the CPU. On it fp32 means fp32, also in convolutions."""
    torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def build_denoiser(spec: ModelSpec, arrays: Mapping[str, np.ndarray], device: torch.device) -> DiffusionModel:
    """Build the denoiser with these weights, frozen and in eval mode."""
    keep_freed_memory()
    denoiser = adapter(spec).model(device, to_tensors(arrays, torch.device("cpu")))
    denoiser.network.register_forward_pre_hook(lambda *_: heartbeat())  # a forward is a sign of life
    return denoiser


@ray.remote(num_cpus=0.1)
def load_arrays(stage: Stage, files: Sequence[str]) -> Iterator[Arrays]:
    """Yield the tensors of a finished stage's files, checked against the manifest, not through the driver."""
    manifest = stage.manifest()
    for file in files:
        tensors, _ = checkpoint.parse(stage.checked(file, manifest), stage.url(file))
        yield to_arrays(tensors)


def load_files(stage: Stage, files: Sequence[str]) -> list[ObjectRef]:
    """Put the tensors of a finished stage's files into the object store; returns one reference for each, in order.

    There is one task for each node: a task for each file would be a process for each, with torch in its memory.
    """
    num_tasks = min(len(files), len(alive_node_ids()))
    refs: list[ObjectRef] = [None] * len(files)  # pyright: ignore[reportAssignmentType]
    for first in range(num_tasks):
        share = files[first::num_tasks]
        loaded: Any = load_arrays.options(num_returns=len(share)).remote(stage, share)
        refs[first::num_tasks] = loaded if len(share) > 1 else [loaded]
    return refs
