"""The cards of the methods that train the model again and measure the answer, for few training images."""

from mucs_ray.attribution.card import MethodCard

LOO = MethodCard(
    name="retrain/loo",
    label="Leave one out",
    summary="the loss of the item under a model that was trained without the image, less that under one of all images",
    needs="a model trained in this run, and 60 training images at most",
    cost="N + 1 trainings",
    source="the definition of influence, without an approximation",
    stages=(),
    settings={"rank.correction": "none"},
    measured_by="loo",
)
RETRAINED = {card.name: card for card in (LOO,)}
"""These methods by name. They are not among all methods of a run, since their trainings are many."""
