"""What a reader must know before believing an answer."""

from collections.abc import Iterator, Mapping
from typing import Any

from mucs_ray.attribution.card import MethodCard

LEAST_SCORE = 0.0005
"""A highest score below this is printed as 0.000."""


def nothing_unlearned(attributions: Mapping[str, Any], known: Mapping[str, MethodCard]) -> Iterator[str]:
    """Yield a sentence for each method that unlearns and whose highest scores are zero for some items.

    `attributions` are those of report.json, by the name of the method.
    """
    for method, attribution in attributions.items():
        if known[method].cost_class != "unlearning":
            continue
        items = attribution["items"]
        zero = [item["item"] for item in items if abs(item["top"][0][1]) < LEAST_SCORE]
        if zero:
            which = "all images" if len(zero) == len(items) else f"image {', '.join(map(str, zero))}"
            yield (
                f"{method}: the highest score is 0.000 for {which}, so that nothing was unlearned and the order means"
                " nothing. The model is probably trained too little to know the images; raise train.updates, and look"
                " at the losses in the report"
            )
