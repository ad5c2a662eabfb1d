"""What a model is to see in place of a group: the prompt of another group, drawn by how alike they are (GUDA-C).

A prompt has a slot for its content and one for the words of its group, such as those that describe a style.
Axes: n descriptions, g groups, d features of a text.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

CONTENT, GROUP = "{content}", "{group}"
BETWEEN = ", "
"""What stands between the words of a group."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """The parts of a prompt; `words` is empty where nothing says of which group it is."""

    content: str
    words: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Template:
    """The form of prompts, "... {content} ... {group} ...", in this order."""

    text: str

    @property
    def parts(self) -> tuple[str, str, str]:
        """What stands before the content, between it and the words of the group, and after these."""
        before, _, rest = self.text.partition(CONTENT)
        between, _, after = rest.partition(GROUP)
        return before, between, after

    def problem(self) -> str | None:
        """Return what is wrong with the template; None if it can be filled and be found again in a prompt."""
        if self.text.count(CONTENT) != 1 or self.text.count(GROUP) != 1:
            return f"expected {CONTENT} and {GROUP} once each"
        if self.text.index(CONTENT) > self.text.index(GROUP):
            return f"expected {CONTENT} before {GROUP}"
        return None if self.parts[1].strip() else f"expected words between {CONTENT} and {GROUP}"

    def filled(self, content: str, words: Sequence[str]) -> str:
        """Return the prompt of a content in the words of a group."""
        before, between, after = self.parts
        return f"{before}{content}{between}{BETWEEN.join(words)}{after}"

    def take_apart(self, prompt: str) -> Prompt:
        """Return the parts of a prompt; one of another form is all content, and a second clause is left out."""
        before, between, after = self.parts
        start, *clauses = prompt.split(between)
        if not clauses or not start.startswith(before):
            return Prompt(content=prompt)
        words = clauses[0].removesuffix(after).split(BETWEEN.strip())
        return Prompt(content=start.removeprefix(before), words=tuple(word.strip() for word in words if word.strip()))

    def without_group(self, prompt: str) -> str:
        """Return the prompt up to its words on the group."""
        return prompt.split(self.parts[1])[0]


def mean_direction(features: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " d"]:
    """Return the direction of the mean of normalised features, such as those of all descriptions of a style.

    It is zero without any.
    """
    if not len(features):
        return np.zeros(features.shape[1:], dtype=features.dtype)
    return normalised(normalised(features).mean(axis=0))


def normalised(features: Float[np.ndarray, "*n d"]) -> Float[np.ndarray, "*n d"]:
    """Scale features to length 1."""
    return features / np.linalg.norm(features, axis=-1, keepdims=True)


def alike(
    query: Float[np.ndarray, " d"], prototypes: Float[np.ndarray, "g d"], own: int, *, beta: float, eta: float
) -> Float[np.ndarray, " g"]:
    """Return the probabilities of the other groups by how alike they are to a query (AWSS):

        (1 - eta) softmax(beta cosine) + eta / (g - 1)

    `beta` is an inverse temperature; at 0, or at an eta of 1, all other groups are equally likely, as for a query of 0.
    """
    others = np.arange(len(prototypes)) != own
    logits = np.where(others, beta * (prototypes @ query).astype(np.float64), -np.inf)
    weights = np.exp(logits - logits.max())
    return (1 - eta) * weights / weights.sum() + eta * any_other(len(prototypes), own)


def any_other(num_groups: int, own: int) -> Float[np.ndarray, " g"]:
    """Return the probabilities if all other groups are equally likely."""
    return (np.arange(num_groups) != own) / (num_groups - 1)
