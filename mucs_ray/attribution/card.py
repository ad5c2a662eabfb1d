"""A card says everything about a method that can be known without running it; it imports neither torch nor the class.

A method is a card and a class. The card says what the method needs, which stages it has and what each of them reads; so
plans, fingerprints and `mucs-ray status` need only the cards. The class computes (mucs_ray.attribution.base).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from mucs_ray.attribution.base import Attributor

Hook = Literal["features", "accumulate", "fit", "fit_item", "fit_together", "sample", "fit_screen", "score"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodStage:
    """A stage of a method says which hook it runs, and what that hook reads."""

    name: str
    """Folder and word for it, e.g. "unlearn"."""
    hook: Hook
    reads: tuple[str, ...] = ()
    """Recipe sections or dotted keys that change its numbers, e.g. "score", "method.mucs" or "method.mucs.clamp"; what
    an earlier stage reads need not be repeated."""
    over: Literal["run", "items", "groups"] = "run"
    """What the hook is called once for; `fit_item` is for each item or group, every other hook for the run."""
    uses_model: bool = True
    uses_items: bool = True
    compares_losses: bool = False
    """Whether it computes losses of many models, at the precision and speed that [score] says or tuning finds."""
    computes_as_in_training: bool = False
    """Whether a GPU computes as in training (spec 5; training/numerics.py); else in true fp32."""
    owner: str = ""
    """The implementation whose stage this is, where another method takes it over as it is: it is then done once, by the
    class that owns it."""

    def __post_init__(self) -> None:
        """Raise ValueError if the hook is not called once for what the stage goes over."""
        if (self.hook == "fit_item") == (self.over == "run"):
            raise ValueError(f"stage {self.name}: the hook {self.hook} does not go over {self.over}")


@dataclass(frozen=True, slots=True, kw_only=True)
class NoConfig:
    """These are the settings of a method that has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodCard:
    """A card describes one method, whose stages are in the folder attribute/NAME."""

    name: str
    label: str
    """The method's name in tables and figures."""
    summary: str
    needs: str = "the model"
    cost: str = ""
    source: str = ""
    stages: tuple[MethodStage, ...] = (MethodStage(name="score", hook="score"),)
    """In the order in which they run. Without any, `score` reads nothing but idx, and no pass over the data is made."""
    config_class: type[Any] = NoConfig
    """A dataclass with the settings that are the method's own, each with a default."""
    section: str = ""
    """Their values stand under [method.SECTION] of a recipe; by default the name, which variants of the method keep."""
    encoder: Literal["clip", "dino"] | None = None
    """A pretrained network whose weights the method needs."""
    needs_condition: bool = False
    """Whether it compares labels or captions, which not every data set has."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Recipe values under which it runs, by dotted key; they go before the recipe's own."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """The members of an ensemble; empty if they are learned."""
    measured_by: Literal["", "loo"] = ""
    """The trainings that measure the scores, where no class computes them: one without each image."""
    implementation: str = ""
    """MODULE:CLASS of the class that computes, filled in for a class named so; empty for an ensemble, which adds up the
    ranks of other methods."""

    def __post_init__(self) -> None:
        """Set the section to the first name that the card has had, unless it was given."""
        if not self.section:
            object.__setattr__(self, "section", self.name)

    @property
    def is_ensemble(self) -> bool:
        """Return True if the method adds up the ranks of others and has no class of its own."""
        return not self.implementation and not self.measured_by

    @property
    def cost_class(self) -> str:
        """Return the cost in a word, from the cheapest: none, ranks, pass, gradients, unlearning, trainings.

        "gradients" stands for a gradient or two for each training image, "unlearning" for the losses of every training
        image under every item's model.
        """
        if self.is_ensemble:
            return "ranks"
        if self.measured_by:
            return "trainings"
        if any(stage.hook == "fit_item" and stage.uses_model for stage in self.stages):
            return "unlearning" if self.stages[-1].compares_losses else "gradients"
        return "pass" if self.stages else "none"

    def load(self) -> "type[Attributor]":
        """Import the class now, and with it torch, and return it."""
        return load_class(self.implementation)

    def facts(self) -> dict[str, Any]:
        """Return the card as JSON values, for --json."""
        shown = {
            name: getattr(self, name) for name in ("name", "label", "summary", "needs", "cost_class", "cost", "source")
        }
        return {**shown, "settings": dict(self.settings), "members": dict(self.weights)}


def load_class(implementation: str) -> "type[Attributor]":
    """Import and return the class that MODULE:CLASS names."""
    module, _, name = implementation.partition(":")
    return getattr(import_module(module), name)
