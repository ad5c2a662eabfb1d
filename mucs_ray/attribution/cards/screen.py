"""The card of MUCS with fewer forwards; it takes over the stages in which MUCS unlearns."""

from dataclasses import replace

from mucs_ray.attribution.card import MethodCard, MethodStage
from mucs_ray.attribution.cards.mucs import CARD as MUCS

CARD = MethodCard(
    name="mucs/screen",
    label="MUCS screen",
    summary="exact scores for what can be in the top-k, far fewer forwards for the rest",
    cost="that of mucs for a sample, then a tenth of the noises for every image and the rest for the best",
    source="ours",
    stages=(
        *(replace(stage, owner=MUCS.implementation) for stage in MUCS.stages if stage.hook != "score"),
        MethodStage(name="sample", hook="sample", reads=("score", "screen.sample")),
        MethodStage(
            name="bounds", hook="bounds", reads=("screen", "rank.top_percent"), uses_model=False, uses_items=False
        ),
        MethodStage(name="score", hook="score"),
    ),
    settings={"score.noise": "shared", "rank.measure": "skew"},
    implementation="mucs_ray.attribution.screen:ScreenedMUCS",
)
