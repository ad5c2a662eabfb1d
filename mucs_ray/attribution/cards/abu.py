"""The card of AbU."""

from mucs_ray.attribution.card import MethodCard, MethodStage

CARD = MethodCard(
    name="abu",
    label="AbU",
    summary="a natural-gradient step away from the item, then the change of each training image's loss",
    cost="N x fisher_draws gradients, then N x noises x (items + 1) forwards",
    source="Attribution by unlearning; adapted to DiT",
    stages=(
        MethodStage(name="fisher", hook="total", reads=("abu.fisher_draws", "abu.parameters"), uses_items=False),
        MethodStage(name="unlearn", hook="adapt", reads=("abu",)),
        MethodStage(name="score", hook="score", reads=("score",)),
    ),
    settings={"score.sigmas": "schedule", "score.keep": 1.0, "score.noise": "shared", "rank.measure": "difference"},
    implementation="mucs_ray.attribution.abu:AbU",
)
