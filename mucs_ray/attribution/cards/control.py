"""This module has the card of MUCS against a control; mucs_ray/attribution/control.py computes."""

from dataclasses import replace

from mucs_ray.attribution.card import MethodCard, MethodStage
from mucs_ray.attribution.cards.mucs import CARD as MUCS
from mucs_ray.attribution.cards.mucs import MUCSConfig

CARD = MethodCard(
    name="mucs/control",
    label="MUCS control",
    summary="losses against a model that made the same updates without an item, on the same draws",
    cost="that of mucs, and one model more",
    source="ours",
    section=MUCS.name,
    stages=(
        *(replace(stage, owner=MUCS.implementation) for stage in MUCS.stages if stage.hook != "score"),
        MethodStage(
            name="control",
            hook="fit_together",
            reads=("method.mucs", "train.learning_rate"),
            computes_as_in_training=True,
        ),
        MethodStage(name="score", hook="score", reads=("score",), compares_losses=True),
    ),
    settings={"method.mucs.draws": "common", "method.mucs.antithetic": False, "score.weights": "even"},
    config_class=MUCSConfig,
    implementation="mucs_ray.attribution.control:ControlledMUCS",
)
