"""This module has the settings and the card of MUCS with fewer forwards, which takes over the stages that unlearn."""

from dataclasses import dataclass, replace
from typing import Annotated

from annotated_types import Ge, Gt, Lt

from mucs_ray.attribution.card import MethodCard, MethodStage
from mucs_ray.attribution.cards.mucs import CARD as MUCS

Share = Annotated[float, Gt(0), Lt(1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScreenConfig:
    """These settings say how `mucs/screen` leaves images out early."""

    recall: Share = 0.98
    """Share of the true top-k, over all items, that is to be found."""
    sample: Annotated[int, Ge(10)] = 1000
    """Training images, drawn at random, that are scored in full to learn the bounds."""
    rounds: tuple[Share, Share] = (0.1, 0.3)
    """Shares of the noises after which images are left out."""


CARD = MethodCard(
    name="mucs/screen",
    label="MUCS screen",
    summary="exact scores for what can be in the top-k, far fewer forwards for the rest",
    cost="that of mucs for a sample, then a tenth of the noises for every image and the rest for the best",
    source="ours",
    stages=(
        *(replace(stage, owner=MUCS.implementation) for stage in MUCS.stages if stage.hook != "score"),
        MethodStage(name="sample", hook="sample", reads=("score", "method.mucs/screen.sample"), compares_losses=True),
        MethodStage(
            name="bounds",
            hook="fit_screen",
            reads=("method.mucs/screen", "rank.top_percent", "rank.top"),
            uses_model=False,
            uses_items=False,
        ),
        MethodStage(name="score", hook="score", compares_losses=True),
    ),
    settings={
        "method.mucs.antithetic": False,
        "score.noise": "shared",
        "score.weights": "even",
        "rank.measure": "skew",
    },
    config_class=ScreenConfig,
    implementation="mucs_ray.attribution.screen:ScreenedMUCS",
)
