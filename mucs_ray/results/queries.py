"""What is said of the user's pictures beside the answer (spec/models.md 3)."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mucs_ray.data.queries import Query
from mucs_ray.pipeline.graph import Pipeline
from mucs_ray.report.document import Answer
from mucs_ray.store.facts import QueriesFacts, QueryFacts, read_facts

UNLIKELY = 0.9
"""A loss relative to the null loss beyond which the model finds an image unlikely."""
ROUNDING = 2 / 255 / 12**0.5
"""The root mean square of what rounding to 8 bits changes, in units of [-1, 1]."""


def facts_of(pipeline: Pipeline) -> list[QueryFacts]:
    """Return what was seen of each query when it was read; an empty list if the run explains generated images."""
    return read_facts(pipeline.stages["generate"], QueriesFacts).queries if pipeline.queries else []


def remarks(query: Query, facts: QueryFacts, answers: Sequence[Answer], pipeline: Pipeline) -> Iterator[str]:
    """Yield sentences on what limits the answer for a query, and on what else is known of it."""
    traces = [answer.unlearning for answer in answers if answer.unlearning is not None]
    if traces and traces[0].item_loss:
        relative = traces[0].item_loss[0] / traces[0].null_loss
        if relative > UNLIKELY:
            yield (
                f"This model finds the image unlikely: its loss is {relative:.2f} of the null loss. It may not have "
                "been made by this model, and then the answer says little."
            )
        else:
            yield f"Its loss is {relative:.2f} of the null loss."
    if facts.origin == "generated image":
        named = "the condition that was named" if facts.condition else "its own condition"
        yield f"This run generated it: it is explained from its unclamped numbers, with {named}."
    elif not facts.condition and pipeline.recipe.model.conditional:
        yield "No class or caption was named, so it is explained as an image without a condition."
    if facts.original is not None:
        width, height = facts.original
        size = pipeline.dataset.card.size
        yield f"Its file has {width} x {height} px; it was brought to {size} x {size}, as training images are."
    if facts.origin == "picture":
        yield (
            f"It was read from 8-bit pixels, whose rounding ({ROUNDING:.4f} rms of [-1, 1]) and clamping are part of"
            " what is explained."
        )
        if facts.codec_rms >= 0.5:  # half a step of 8 bits: what rounding alone may do
            yield f"Encoding and decoding change it by {facts.codec_rms:.1f} of 255 (rms)."
    if query.settings:
        yield f"Its metadata says: {listed_facts(query.settings)}."
    if query.embedded:
        others = {key: value for key, value in query.embedded.items() if key != "tool"}
        yield f"{query.embedded['tool']} wrote into its file: {listed_facts(others)}."


def listed_facts(facts: Mapping[str, Any]) -> str:
    """Return what is known of a picture in words, e.g. "seed 1, steps 30"."""
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in facts.items())
