"""The kinds of models there are: their cards, for recipes, plans and fingerprints, which take no torch.

A recipe names a kind in `model.kind`: one of these, or MODULE:CLASS, an `Adapter` of somebody else's
(mucs_ray.models.adapter). The adapter is imported only when it builds a model.
"""

import sys
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from mucs_ray.errors import InputError
from mucs_ray.models.dit_config import DiTConfig, DiTVPConfig
from mucs_ray.models.pipelines.config import PipelineConfig
from mucs_ray.models.spec import DEFAULT_KIND, ModelSpec
from mucs_ray.models.unet2d_config import DDPMConfig
from mucs_ray.models.unet_config import UNetEDMConfig, UNetVPConfig

if TYPE_CHECKING:
    from mucs_ray.models.adapter import Adapter


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """The card of one kind of model."""

    kind: str
    spec_class: type[ModelSpec]
    """The class of the settings under [model] of a recipe."""
    implementation: str
    """The adapter as MODULE:CLASS."""

    def load(self) -> "type[Adapter]":
        """Import the adapter's class, and with it torch."""
        module, _, name = self.implementation.partition(":")
        return getattr(import_module(module), name)


_ALL = (
    ModelCard(kind=DEFAULT_KIND, spec_class=DiTConfig, implementation="mucs_ray.models.dit_edm:DiTAdapter"),
    ModelCard(kind="dit-vp", spec_class=DiTVPConfig, implementation="mucs_ray.models.dit_vp:DiTVPAdapter"),
    ModelCard(kind="unet-edm", spec_class=UNetEDMConfig, implementation="mucs_ray.models.unet_edm:UNetEDMAdapter"),
    ModelCard(kind="unet-vp", spec_class=UNetVPConfig, implementation="mucs_ray.models.unet_edm:UNetVPAdapter"),
    ModelCard(kind="unet2d", spec_class=DDPMConfig, implementation="mucs_ray.models.ddpm:DDPMAdapter"),
    ModelCard(
        kind="diffusers",
        spec_class=PipelineConfig,
        implementation="mucs_ray.models.pipelines.adapter:PipelineAdapter",
    ),
)
KINDS = {card.kind: card for card in _ALL}


def default_spec() -> ModelSpec:
    """The model of a recipe that says nothing of it."""
    return KINDS[DEFAULT_KIND].spec_class()


def find(kind: str) -> ModelCard:
    """Return a kind by its name, or MODULE:CLASS. InputError if there is none."""
    if kind in KINDS:
        return KINDS[kind]
    if ":" in kind:
        return imported(kind)
    raise InputError(f"unknown model.kind {kind!r}; known: {', '.join(KINDS)}, or give MODULE:CLASS")


def kind_of(values: Mapping[str, Any]) -> str:
    """Return the kind that raw values under [model] name. InputError if it is not a string."""
    kind = values.get("kind", DEFAULT_KIND)
    if not isinstance(kind, str):
        raise InputError(f"recipe key model.kind: expected one of {', '.join(KINDS)}, or MODULE:CLASS; found {kind!r}")
    return kind


def imported(name: str) -> ModelCard:
    """Return the card of MODULE:CLASS, from the Python path or the current folder.

    InputError, in one line, unless it is a class that can be used as an adapter.
    """
    module, _, attribute = name.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        adapter_class = getattr(import_module(module), attribute)
    except Exception as error:  # whatever a third party's module raises
        raise InputError(f"model.kind {name}: {type(error).__name__}: {error}") from None
    from mucs_ray.models.adapter import Adapter  # it is loaded already if `adapter_class` is an adapter

    if not (isinstance(adapter_class, type) and issubclass(adapter_class, Adapter)):
        raise InputError(f"model.kind {name} is not a subclass of mucs_ray.models.adapter.Adapter")
    if adapter_class.__abstractmethods__:
        raise InputError(f"model.kind {name} lacks {', '.join(sorted(adapter_class.__abstractmethods__))}")
    spec_class = getattr(adapter_class, "spec_class", None)
    if not (isinstance(spec_class, type) and issubclass(spec_class, ModelSpec) and has_defaults(spec_class)):
        raise InputError(f"model.kind {name}: expected `spec_class`, a dataclass with defaults made from ModelSpec")
    if getattr(spec_class, "kind", None) != name:
        raise InputError(f"model.kind {name}: {spec_class.__name__} has to say kind = {name!r}")
    return ModelCard(kind=name, spec_class=spec_class, implementation=name)


def has_defaults(spec_class: type[ModelSpec]) -> bool:
    """Return True for a dataclass that can be made without values."""
    if not is_dataclass(spec_class):
        return False
    return all(not (field.default is MISSING and field.default_factory is MISSING) for field in fields(spec_class))


def adapter(spec: ModelSpec) -> "Adapter":
    """Return the adapter that builds this model and its codec, and knows how it is trained."""
    return find(spec.kind).load()(spec)
