"""Methods that keep a projected gradient of each image share these settings; D-TRAK and DAS share their stages too."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Gt

from mucs_ray.attribution.card import MethodStage


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureConfig:
    """These settings say how projected gradients are made and compared (spec 9.5, 9.6)."""

    noises: Annotated[int, Gt(0)] = 100
    dim: Annotated[int, Gt(0)] = 16384
    """Width of the projected gradient."""
    noises_per_forward: Annotated[int, Gt(0)] = 100
    """Noises in one backward pass; fewer need less memory and give the same features up to rounding."""
    signs: Annotated[int, Gt(0)] = 1
    """Places in the projection that each weight's gradient goes to."""
    damping: Annotated[float, Gt(0)] = 0.1
    """lambda = damping * trace(K) / dim."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientConfig(FeatureConfig):
    """These settings say which gradients D-TRAK and DAS take."""

    parameters: Literal["all", "mlp"] = "all"
    gradients: Literal["of_average", "per_noise"] = "of_average"
    """Average the output function over the noises, then one backward pass an image; or, as published, one for each
    noise, averaged after."""


FEATURE_SETTINGS = ("noises", "noises_per_forward", "dim", "signs")
"""The settings of which a feature is made."""
COST = "N backward passes on a batch of noises, then one product an item"
PER_NOISE_SUMMARY = "as published: a backward pass for each noise"
PER_NOISE_COST = "(N + items) x noises backward passes, then one product an item"


def gradient_stages(name: str, *scored_by: str) -> tuple[MethodStage, ...]:
    """Return the stages of a method by its name; `scored_by` has those of its settings that the scores depend on."""
    reads = tuple(f"method.{name}.{setting}" for setting in (*FEATURE_SETTINGS, "parameters", "gradients"))
    scored = tuple(f"method.{name}.{setting}" for setting in scored_by)
    return (
        MethodStage(name="features", hook="features", reads=reads, uses_items=False),
        MethodStage(name="solve", hook="fit", reads=(f"method.{name}.damping",), uses_model=False, uses_items=False),
        MethodStage(name="items", hook="fit_item", over="items"),
        MethodStage(name="score", hook="score", reads=scored, uses_model=False, uses_items=False),
    )
