"""This module has the settings and the card of K-FAC influence; mucs_ray/attribution/kfac.py computes."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt

from mucs_ray.attribution.card import MethodCard, MethodStage


@dataclass(frozen=True, slots=True, kw_only=True)
class KFACConfig:
    """These settings say how gradients of the loss are made, and the curvature between them."""

    noises: Annotated[int, Gt(0)] = 100
    """Noise levels and noises over which the loss of an image or an item is averaged; the same for all."""
    noises_per_forward: Annotated[int, Gt(0)] = 100
    """Noises in one backward pass; fewer need less memory and give the same gradients up to rounding."""
    factor_draws: Annotated[int, Gt(0)] = 5
    """Noise levels and noises of each training image, for the factors of the curvature; each has its own sampled
    output."""
    damping: Annotated[float, Ge(0)] = 1e-8
    """This times the mean of the curvature's eigenvalues is added to each; small and fixed, as in the paper."""


CARD = MethodCard(
    name="kfac",
    label="K-FAC influence",
    summary="influence of each image on the item's loss, through the Gauss-Newton matrix as Kronecker products",
    cost="N x (noises + factor_draws) gradients, all items together",
    source="Influence Functions for Scalable Data Attribution in Diffusion Models (ICLR 2025)",
    stages=(
        MethodStage(name="factors", hook="accumulate", reads=("method.kfac.factor_draws",), uses_items=False),
        MethodStage(name="solve", hook="fit", reads=("method.kfac.damping",), uses_model=False, uses_items=False),
        MethodStage(
            name="items",
            hook="fit_item",
            over="items",
            reads=("method.kfac.noises", "method.kfac.noises_per_forward"),
        ),
        MethodStage(name="score", hook="score", uses_items=False),
    ),
    config_class=KFACConfig,
    implementation="mucs_ray.attribution.kfac:KFAC",
)
