"""What [model] of a recipe says: one class for each kind of model, so that recipes are read without torch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

DEFAULT_KIND = "dit-edm"
"""The kind of a recipe that names none. It is not stored, so that earlier runs keep their fingerprints."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """The settings of one model, which are JSON values and enough to build it on any worker.

    Subclasses add fields, each with a default.
    """

    kind: ClassVar[str]
    """The name of the kind in a recipe; MODULE:CLASS of the adapter for a third party's class."""
    trains: ClassVar[bool] = False
    """Whether this package can train the model; without it there are no retrainings and no initial weights."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for recipe.json, fingerprints and the headers of weights."""
        kind = {} if self.kind == DEFAULT_KIND else {"kind": self.kind}
        return {**kind, **asdict(self)}

    @classmethod
    def opened(cls, values: Mapping[str, Any], *, size: int, condition_dim: int) -> dict[str, Any]:
        """Fill values that are left open from the data set.

        These are the side of its images in pixels, and the width of its condition, 0 for none.
        """
        return dict(values)

    def check(self) -> None:
        """Raise InputError if the values make no sense together."""
        return

    def check_fits(self, *, size: int, condition_dim: int, data: str) -> None:
        """Raise InputError if the model cannot read the images and the condition of the data set at this URL."""
        return

    @property
    def conditional(self) -> bool:
        """Whether the model reads a condition."""
        return True

    def describe(self) -> str:
        """Return one line for the report."""
        return self.kind
