"""The files of a training in its stage folder: the resumable state, and the best and the last EMA weights.

state.<tag>.safetensors   live weights, EMA, optimiser moments and step, to resume bit for bit
best.<tag>.safetensors    EMA weights at the lowest validation loss (+ .json card)
last.<tag>.safetensors    EMA weights at the end (+ .json card)
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from mucs_ray import storage
from mucs_ray.errors import InputError
from mucs_ray.models.adapters import FINETUNED, adapter, find, kind_of
from mucs_ray.models.spec import ModelSpec
from mucs_ray.models.weights_file import refuse_pointer
from mucs_ray.store import checkpoint
from mucs_ray.store.run import Stage
from mucs_ray.store.typed import typed
from mucs_ray.training.step import TrainState

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """The progress of a training in the header of its state."""

    step: int
    """The number of updates done."""
    best_loss: float
    best_step: int
    """The number of updates at which the validation loss was lowest; 0 before the first validation."""


def stored_names(network: nn.Module) -> list[str]:
    """Return the names of the tensors of a network in training that are stored: those that are trained and, where all
    are, the constants beside them.
    """
    parameters = dict(network.named_parameters())
    trained = [name for name, parameter in parameters.items() if parameter.requires_grad]
    return list(network.state_dict()) if len(trained) == len(parameters) else trained


def stored_tensors(state: TrainState, network: nn.Module) -> dict[str, Tensor]:
    """Return the stored tensors of one of the two networks of a training state."""
    tensors = network.state_dict()
    return {name: tensors[name] for name in stored_names(state.live.network)}


def trained_parameters(network: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters that an optimizer changes, by name."""
    return ((name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad)


def state_tensors(state: TrainState) -> dict[str, Tensor]:
    """Return all tensors of a training state under flat names."""
    tensors = {f"live.{name}": tensor for name, tensor in stored_tensors(state, state.live.network).items()}
    tensors |= {f"ema.{name}": tensor for name, tensor in stored_tensors(state, state.average.network).items()}
    for name, parameter in trained_parameters(state.live.network):
        for moment in MOMENTS:
            tensors[f"{moment}.{name}"] = state.optimizer.state[parameter][moment]
    return tensors


def save_state(stage: Stage, state: TrainState, facts: dict[str, Any]) -> None:
    """Publish the best weights before the state, so that a crash in between leaves them consistent with the state."""
    if state.best_step == state.step:
        save_average(stage, "best", state, facts)
    progress = Progress(step=state.step, best_loss=state.best_loss, best_step=state.best_step)
    checkpoint.save(stage.url(stage.part("state", "safetensors")), state_tensors(state), {**facts, **asdict(progress)})


def save_average(stage: Stage, kind: str, state: TrainState, facts: dict[str, Any]) -> str:
    """Publish the EMA weights as `best` or `last` and return the sha256."""
    url = stage.url(stage.part(kind, "safetensors"))
    facts = {**facts, "step": state.step, "kind": kind, "stage_fingerprint": stage.fingerprint}
    return checkpoint.save_with_card(url, stored_tensors(state, state.average.network), facts)


def load_state(stage: Stage, state: TrainState) -> bool:
    """Restore the state of an interrupted training; return False if there is none."""
    url = stage.url(stage.part("state", "safetensors"))
    if not storage.exists(url):
        return False
    tensors, header = checkpoint.load(url)
    progress = typed(header, Progress, url)
    if progress.best_step and not storage.exists(stage.url(stage.part("best", "safetensors"))):
        return False  # the best weights are gone and are not in the state: train again
    for prefix, module in (("live.", state.live), ("ema.", state.average)):
        own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        checkpoint.strict_load(module.network, own, source=url, names=stored_names(state.live.network))
    for name, parameter in trained_parameters(state.live.network):
        moments = {moment: tensors[f"{moment}.{name}"].to(parameter.device) for moment in MOMENTS}
        step = parameter.new_tensor(float(progress.step), dtype=moments["exp_avg"].dtype)
        state.optimizer.state[parameter] = {"step": step, **moments}
    state.step, state.best_loss, state.best_step = progress.step, progress.best_loss, progress.best_step
    return True


def model_facts(spec: ModelSpec) -> dict[str, Any]:
    """Return the settings that build the network, for cards."""
    return {"model": spec.to_dict()}


def model_spec(facts: dict[str, Any], source: str) -> ModelSpec:
    """Read the settings that build the network from a card."""
    if "model" not in facts:
        raise InputError(f"{source} has no description of its network in its header; was it written by mucs-ray?")
    spec_class = find(kind_of(facts["model"])).spec_class
    values = {key: value for key, value in facts["model"].items() if key != "kind"}
    unknown = sorted(values.keys() - {field.name for field in fields(spec_class)})  # pydantic would drop them
    if unknown:
        raise InputError(f"{source} describes a network of another version (model.{unknown[0]})")
    try:
        return TypeAdapter(spec_class).validate_python(values)
    except ValidationError as error:
        key = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise InputError(f"{source} describes a network of another version (model.{key})") from None


def load_weights(path: str, values: Mapping[str, Any] | None = None) -> tuple[ModelSpec, Mapping[str, Tensor]]:
    """Read the network in a file, or in a folder of diffusers, as the settings that build it and its tensors.

    InputError, in one line, if the file is absent, corrupt or of another architecture. `values` are those of the recipe
    under [model]; their kind reads a file that was not written by mucs-ray.
    """
    if not storage.exists(path):
        raise InputError(f"no weights at {path}; give a .safetensors, .ckpt or .pt file with --weights")
    if path.endswith(".safetensors"):
        refuse_pointer(path)
        tensors, facts = checkpoint.load(path)
        if facts.get("model", {}).get("kind") == FINETUNED.kind:
            raise InputError(
                f"{path} holds only the branches that a fine-tune trained beside {facts['model']['base']}; name the run"
                " that trained it with --run"
            )
        if "model" in facts:
            spec = model_spec(facts, path)
            checkpoint.strict_load(adapter(spec).model(torch.device("cpu")).network, tensors, source=path)
            return spec, {name: tensor.float() for name, tensor in tensors.items()}  # a file may be in half precision
    values = values or {}
    return find(kind_of(values)).load().read(path, values)
