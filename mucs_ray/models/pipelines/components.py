"""The parts of a pipeline as modules: the only file that imports diffusers and transformers, and only when asked.

Every part is loaded by the class of the table (families.py), from local files, from safetensors alone.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from mucs_ray.errors import InputError, MachineError, MucsError
from mucs_ray.models.pipelines.families import INSTALL
from mucs_ray.models.pipelines.folder import PipelineFolder, part_digest, read_folder


def library(name: str) -> Any:  # noqa: ANN401 - a module
    """Import diffusers or transformers, told to stay off the network. MachineError if it is not installed."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        if name == "diffusers":
            import diffusers

            return diffusers
        import transformers

        transformers.utils.logging.disable_progress_bar()
        return transformers
    except ImportError as error:
        raise MachineError(f"models of kind diffusers need {name} ({error}); install it with: {INSTALL}") from None


@lru_cache(maxsize=8)
def opened(path: str, digests: tuple[tuple[str, str], ...]) -> PipelineFolder:
    """Read the folder of a recipe's model. InputError if a part is not what it was when the recipe was made."""
    folder = read_folder(path)
    known = dict(digests)
    for name, part in folder.family.parts.items():
        if known and part_digest(folder.path / name, part) != known.get(name):
            raise InputError(
                f"{folder.path / name} is not what it was when this run began (another sha256); put the files back, or"
                " begin another run"
            )
    return folder


def load(folder: PipelineFolder, name: str) -> nn.Module:
    """Load a part with its weights: on the CPU, in fp32, frozen, in eval mode."""
    part_class = class_of(folder, name)
    variant = {} if (found := folder.variant(name)) is None else {"variant": found}
    with one_line(f"{folder.path / name}"):
        part = part_class.from_pretrained(
            str(folder.path / name), local_files_only=True, use_safetensors=True, torch_dtype=torch.float32, **variant
        )
    return part.eval().requires_grad_(False)


def load_tokenizer(folder: PipelineFolder, name: str) -> Callable[..., Mapping[str, Tensor]]:
    """Load a tokenizer from its vocabulary."""
    tokenizer = library("transformers").CLIPTokenizer
    with one_line(f"{folder.path / name}"):
        return tokenizer.from_pretrained(str(folder.path / name), local_files_only=True)


def build_network(
    folder: PipelineFolder,
    device: torch.device,
    weights: Mapping[str, Tensor] | None,
    extend: Callable[[nn.Module], None] = lambda network: None,
) -> nn.Module:
    """Build the denoising network with these weights; without any, on "meta", or with those of the folder.

    `extend` adds what does not come with the folder; the weights hold it too.
    """
    if weights is None and device.type != "meta":
        loaded = load(folder, "unet")
        extend(loaded)
        return loaded
    with torch.device("meta"), one_line(f"{folder.path / 'unet'}"):
        network: nn.Module = class_of(folder, "unet").from_config(dict(folder.configs["unet"]))
    extend(network)
    if weights is not None:
        network = network.to_empty(device="cpu")
        network.load_state_dict(weights)
    return network.eval().requires_grad_(False)


def class_of(folder: PipelineFolder, name: str) -> Any:  # noqa: ANN401 - a class of diffusers or transformers
    """Return the class of a part, which is one of those that are allowed."""
    class_name = folder.classes[name]
    part = folder.family.parts[name]
    assert class_name in part.classes, "checked when the folder was read"
    return getattr(library(part.library), class_name)


@contextmanager
def one_line(where: str) -> Iterator[None]:
    """Turn what these libraries raise on files that they cannot use into one line."""
    try:
        yield
    except MucsError:
        raise
    except Exception as error:  # they raise almost anything
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{where}: cannot be loaded: {type(error).__name__}: {reason}") from error
