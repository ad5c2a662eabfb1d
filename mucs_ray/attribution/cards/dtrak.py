"""The card of D-TRAK."""

from mucs_ray.attribution.card import MethodCard
from mucs_ray.attribution.cards.gradients import COST, gradient_stages

CARD = MethodCard(
    name="dtrak",
    label="D-TRAK",
    summary="inner products of projected gradients of the output's mean square, weighted by their inverse covariance",
    cost=COST,
    source="D-TRAK: Intriguing Properties of Data Attribution on Diffusion Models (ICLR 2024)",
    stages=gradient_stages("dtrak"),
    implementation="mucs_ray.attribution.dtrak:DTRAK",
)
