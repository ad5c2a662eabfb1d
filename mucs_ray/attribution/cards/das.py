"""The card of DAS."""

from mucs_ray.attribution.card import MethodCard
from mucs_ray.attribution.cards.gradients import COST, gradient_stages

CARD = MethodCard(
    name="das",
    label="DAS",
    summary="squared change of the output for the item if the image were left out, by one Newton step",
    cost=COST,
    source="DAS: Diffusion Attribution Score (ICLR 2025)",
    stages=gradient_stages("das", "square", "leverage"),
    implementation="mucs_ray.attribution.das:DAS",
)
