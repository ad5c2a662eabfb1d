"""This module has the settings and the card of DAS; mucs_ray/attribution/das.py computes."""

from dataclasses import dataclass

from mucs_ray.attribution.card import MethodCard
from mucs_ray.attribution.cards.gradients import COST, GradientConfig, gradient_stages


@dataclass(frozen=True, slots=True, kw_only=True)
class DASConfig(GradientConfig):
    """These are the gradient features of DAS: the average is scaled to length 1, or, as published, the gradient at each
    noise.
    """

    square: bool = True
    leverage: bool = False
    """Divide by 1 - h_i."""


CARD = MethodCard(
    name="das",
    label="DAS",
    summary="squared change of the output for the item if the image were left out, by one Newton step",
    cost=COST,
    source="DAS: Diffusion Attribution Score (ICLR 2025)",
    stages=gradient_stages("das", "square", "leverage"),
    config_class=DASConfig,
    implementation="mucs_ray.attribution.das:DAS",
)
