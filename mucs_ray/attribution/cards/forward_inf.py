"""The card of Forward-INF."""

from mucs_ray.attribution.card import MethodCard, MethodStage

CARD = MethodCard(
    name="forward-inf",
    label="Forward-INF",
    summary="a few steps of gradient ascent on the item alone, then the change of each training image's loss",
    cost="N x noises x (items + 1) forwards, one pass over the data",
    source="Forward-INF, adapted to diffusion as in MUCS",
    stages=(
        MethodStage(name="unlearn", hook="adapt", reads=("forward_inf", "train.learning_rate")),
        MethodStage(name="score", hook="score", reads=("score",)),
    ),
    settings={"score.sigmas": "training", "score.noise": "independent", "rank.measure": "difference"},
    implementation="mucs_ray.attribution.forward_inf:ForwardINF",
)
