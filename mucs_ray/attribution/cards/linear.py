"""This module has the settings and the card of MUCS to first order, which takes over the stages that unlearn."""

from dataclasses import dataclass, replace
from typing import Annotated

from annotated_types import Ge, Le

from mucs_ray.attribution.card import MethodCard, MethodStage
from mucs_ray.attribution.cards.gradients import FEATURE_SETTINGS, FeatureConfig
from mucs_ray.attribution.cards.mucs import CARD as MUCS


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearConfig(FeatureConfig):
    """These settings say how gradients of the logarithm of the loss are made, and how they meet what unlearning moved.

    They are taken at the tensors that `method.mucs.parameters` selects for unlearning.
    """

    power: Annotated[float, Ge(0), Le(1)] = 1.0
    """alpha in K^-alpha: 1 divides out what all images share, 0 compares the vectors as they are."""


CARD = MethodCard(
    name="mucs/linear",
    label="MUCS linear",
    summary="unlearn the item, then the product of what moved with the gradient of each image's log loss",
    cost="N backward passes on a batch of noises once a run, then unlearning and one product an item",
    source="ours",
    stages=(
        MethodStage(
            name="features",
            hook="features",
            reads=(*(f"method.mucs/linear.{name}" for name in FEATURE_SETTINGS), "method.mucs.parameters"),
            uses_items=False,
        ),
        MethodStage(
            name="solve",
            hook="fit",
            reads=("method.mucs/linear.damping", "method.mucs/linear.power"),
            uses_model=False,
            uses_items=False,
        ),
        *(replace(stage, owner=MUCS.implementation) for stage in MUCS.stages if stage.hook != "score"),
        MethodStage(name="score", hook="score", uses_items=False),
    ),
    config_class=LinearConfig,
    implementation="mucs_ray.attribution.linear:LinearMUCS",
)
