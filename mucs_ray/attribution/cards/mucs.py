"""The card of MUCS."""

from mucs_ray.attribution.card import MethodCard, MethodStage

CARD = MethodCard(
    name="mucs",
    label="MUCS",
    summary="unlearn the item, then the normalised skew of each training image's loss on the same noise",
    cost="N x noises x (items + 1) forwards, one pass over the data",
    source="MUCS: mirrored unlearning and noise-consistent skew",
    stages=(
        MethodStage(
            name="null",
            hook="prepare",
            reads=("model", "unlearn.null_loss", "unlearn.null_batches"),
            uses_model=False,
            uses_items=False,
        ),
        MethodStage(name="unlearn", hook="adapt", reads=("unlearn", "train.learning_rate")),
        MethodStage(name="score", hook="score", reads=("score",)),
    ),
    implementation="mucs_ray.attribution.mucs:MUCS",
)
