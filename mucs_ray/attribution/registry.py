"""The methods there are, for `mucs-ray methods` and for checking names."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One line about a method."""

    name: str
    label: str
    """In tables and figures."""
    summary: str
    needs: str
    cost: str
    source: str


_ALL = (
    Method(
        name="random",
        label="Random",
        summary="a random order: the reference every method is tested against",
        needs="nothing",
        cost="none",
        source="MUCS, reference of the counterfactual test",
    ),
    Method(
        name="mucs",
        label="MUCS",
        summary="unlearn the item, then the normalised skew of each training image's loss on the same noise",
        needs="the model",
        cost="N x noises x (items + 1) forwards, one pass over the data",
        source="MUCS: mirrored unlearning and noise-consistent skew",
    ),
)
METHODS = {method.name: method for method in _ALL}
REFERENCE = "random"
"""Removing random images: what every counterfactual test compares with."""
