"""A LoRA file put onto the networks of a pipeline: W x + scale B A x, with A and B as parameters of their own.

Files of diffusers, peft and kohya differ in the names of their tensors (lora_names.py). Each tensor of a file has to
find its place: a model that is half loaded is never attributed to.
Axes: o outputs, i inputs, r rank.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional

from mucs_ray.errors import InputError
from mucs_ray.models.pipelines.families import BY_NAME, Family, FamilyName
from mucs_ray.models.pipelines.folder import file_sha256, lora_file
from mucs_ray.models.pipelines.lora_names import names_of, with_part
from mucs_ray.models.state_dict import shape

A, B = "lora_A", "lora_B"
ENDINGS = {
    ".lora.down.weight": A,
    ".lora.up.weight": B,
    ".lora_A.weight": A,
    ".lora_B.weight": B,
    ".lora_linear_layer.down.weight": A,
    ".lora_linear_layer.up.weight": B,
    ".lora_down.weight": A,
    ".lora_up.weight": B,
    ".alpha": "alpha",
}
"""What ends the name of a tensor, and what the tensor is."""
HEADER = "lora_adapter_metadata"


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """What a file adds to one matrix or convolution."""

    a: Tensor
    b: Tensor
    scale: float
    """alpha / r, or 1 where the file names no alpha."""


Branches = Mapping[str, Mapping[str, Branch]]
"""By part of the pipeline, and by the module in it."""
NO_BRANCHES: Branches = MappingProxyType({})


class WithBranch:
    """A module with a branch. Its own parameters keep their names, so that it is still found by them."""

    lora_A: nn.Parameter
    lora_B: nn.Parameter
    lora_scale: float


class LoraLinear(WithBranch, nn.Linear):
    """A matrix with a branch."""

    def forward(self, input: Tensor) -> Tensor:
        """Return W x + b + scale B A x."""
        branch = functional.linear(functional.linear(input, self.lora_A), self.lora_B)
        return super().forward(input) + self.lora_scale * branch


class LoraConv2d(WithBranch, nn.Conv2d):
    """A convolution with a branch: A has its kernel, and B is one pixel wide."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution, and scale times that of the branch."""
        low = functional.conv2d(input, self.lora_A, None, self.stride, self.padding, self.dilation)
        return super().forward(input) + self.lora_scale * functional.conv2d(low, self.lora_B)


WITH_BRANCH: dict[type[nn.Module], type[Any]] = {nn.Linear: LoraLinear, nn.Conv2d: LoraConv2d}


@lru_cache(maxsize=2)
def opened_lora(path: str, digest: str, family: FamilyName) -> Branches:
    """Read a LoRA file once a process. InputError if it is not the one that the recipe was made with."""
    if not path:
        return {}
    if digest and file_sha256(lora_file(path)) != digest:
        raise InputError(f"{path} is not what it was when this run began (another sha256); begin another run")
    return read_lora(path, BY_NAME[family])


def read_lora(path: str, family: Family) -> Branches:
    """Read a LoRA file. InputError, in one line, for a tensor whose name says nothing, or without its other half."""
    state = read_state(path)
    told = header_alphas(path)
    found: dict[str, dict[str, dict[str, Tensor]]] = {}
    for name, tensor in state.items():
        part, module, role = place_of(name, family, path)
        found.setdefault(part, {}).setdefault(module, {})[role] = tensor
    return {
        part: {name: branch_of(tensors, told.get(part), f"{path}: {part}.{name}") for name, tensors in modules.items()}
        for part, modules in found.items()
    }


def header_alphas(path: str) -> dict[str, float]:
    """Return the alpha of each part, where the file's header tells of one. InputError for a kind that is not read."""
    with safe_open(path, framework="pt") as file:
        text = (file.metadata() or {}).get(HEADER, "{}")
    try:
        told = json.loads(text)
    except ValueError:
        told = None
    if not isinstance(told, dict):
        raise InputError(f"{path}: {HEADER} in the header is not a JSON object")
    for key, value in told.items():
        if key.rpartition(".")[2] in ("use_rslora", "use_dora", "alpha_pattern") and value:
            raise InputError(f"{path}: {key} is set in the header, which is not read here; fuse the LoRA into its base")
    alphas = {key.removesuffix(".lora_alpha"): value for key, value in told.items() if key.endswith(".lora_alpha")}
    return {part: float(value) for part, value in alphas.items() if isinstance(value, int | float)}


def read_state(path: str) -> dict[str, Tensor]:
    """Read the tensors of a file. InputError if it is not safetensors, or absent."""
    try:
        state = safetensors.torch.load(lora_file(path).read_bytes())
    except SafetensorError as error:
        raise InputError(f"{path}: cannot be read as safetensors ({error})") from None
    if not state:
        raise InputError(f"{path}: no tensors in it")
    return {name: tensor.float() for name, tensor in state.items()}


def place_of(name: str, family: Family, path: str) -> tuple[str, str, str]:
    """Return the part, the module and the role of a tensor."""
    ending = next((ending for ending in ENDINGS if name.endswith(ending)), None)
    part, _, module = with_part(name).partition(".")
    if ending is None or part not in family.parts:
        known = ", ".join(name for name in family.parts if not name.startswith(("vae", "tokenizer")))
        raise InputError(f"{path}: {name!r} is not a tensor of a LoRA for {known}; nothing of the file is used")
    return part, module.removesuffix(ending), ENDINGS[ending]


def branch_of(tensors: Mapping[str, Tensor], alpha: float | None, where: str) -> Branch:
    """Return a branch. InputError if one of its two matrices is missing, or they do not fit each other."""
    if not {A, B} <= tensors.keys() or tensors[A].shape[0] != tensors[B].shape[1]:
        raise InputError(f"{where}: expected two matrices with one rank; nothing of the file is used")
    rank = tensors[A].shape[0]
    alpha = tensors["alpha"].item() if "alpha" in tensors else rank if alpha is None else alpha
    return Branch(a=tensors[A], b=tensors[B], scale=alpha / rank)


def put_on(network: nn.Module, branches: Mapping[str, Branch], where: str) -> None:
    """Put branches onto the modules that they name. InputError, naming the first that has no place."""
    modules = placed(network) if branches else {}
    for name, branch in branches.items():
        module = modules.get(name)
        if module is None:
            raise InputError(f"{where}: the model has no matrix {name!r}; is the LoRA for another base?")
        weight: Any = module.weight
        if (branch.b.shape[0], *branch.a.shape[1:]) != tuple(weight.shape):
            both = f"{shape(branch.b)} times {shape(branch.a)}"
            raise InputError(
                f"{where}: {name!r} is {both}, and the model's is {shape(weight)}; is it for another base?"
            )
        module.__class__ = WITH_BRANCH[type(module)]
        extended: Any = module
        extended.lora_A = nn.Parameter(branch.a.to(weight.device), requires_grad=False)
        extended.lora_B = nn.Parameter(branch.b.to(weight.device), requires_grad=False)
        extended.lora_scale = branch.scale


def placed(network: nn.Module) -> dict[str, nn.Module]:
    """Return the matrices and convolutions of a network by all names that files have for them."""
    config: Any = getattr(network, "config", None)
    layers = getattr(config, "layers_per_block", 2)
    modules = [(name, module) for name, module in network.named_modules() if type(module) in WITH_BRANCH]
    return {each: module for name, module in modules for each in names_of(name, layers if type(layers) is int else 2)}


def adapter_names(network: nn.Module) -> list[str]:
    """Return the names of all tensors that LoRA files brought."""
    return [name for name, _ in network.named_parameters() if name.endswith((f".{A}", f".{B}"))]
