"""This is the card of the random order, the reference of every counterfactual test."""

from mucs_ray.attribution.card import MethodCard

CARD = MethodCard(
    name="random",
    label="Random",
    summary="a random order: the reference every method is tested against",
    needs="nothing",
    cost="none",
    source="MUCS, reference of the counterfactual test",
    stages=(),
    settings={"rank.correction": "none"},  # random lists are the reference as they are
    implementation="mucs_ray.attribution.random:Random",
)
