"""This module has the settings and the card of D-TRAK; mucs_ray/attribution/dtrak.py computes."""

from dataclasses import dataclass

from mucs_ray.attribution.card import MethodCard
from mucs_ray.attribution.cards.gradients import COST, GradientConfig, gradient_stages


@dataclass(frozen=True, slots=True, kw_only=True)
class DTRAKConfig(GradientConfig):
    """These are the gradient features of D-TRAK, the same up to rounding however they are averaged: the average is
    linear.
    """


CARD = MethodCard(
    name="dtrak",
    label="D-TRAK",
    summary="inner products of projected gradients of the output's mean square, weighted by their inverse covariance",
    cost=COST,
    source="D-TRAK: Intriguing Properties of Data Attribution on Diffusion Models (ICLR 2024)",
    stages=gradient_stages("dtrak"),
    config_class=DTRAKConfig,
    implementation="mucs_ray.attribution.dtrak:DTRAK",
)
