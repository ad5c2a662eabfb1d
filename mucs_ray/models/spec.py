"""What [model] of a recipe says: one class for each kind of model, so that recipes are read without torch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

DEFAULT_KIND = "dit-edm"
"""The kind of a recipe that names none. It is not written down, so that earlier runs stay what they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """The settings of one model: small, JSON-able, and enough to build it on any worker. Subclasses add fields, each
    with a default.
    """

    kind: ClassVar[str]
    """The name of the kind in a recipe; MODULE:CLASS of the adapter for a class that is not the package's."""
    trains: ClassVar[bool] = False
    """Whether the model can be trained here; without it there are no retrainings, and no weights to start from."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for recipe.json, fingerprints and the headers of weights."""
        kind = {} if self.kind == DEFAULT_KIND else {"kind": self.kind}
        return {**kind, **asdict(self)}

    @classmethod
    def opened(cls, values: Mapping[str, Any], *, size: int, condition_dim: int) -> dict[str, Any]:
        """Raw values with what they leave open taken from the data set: the side of its images in pixels, and the width
        of its condition, 0 for none.
        """
        return dict(values)

    def check(self) -> None:
        """InputError if the values make no sense together."""
        return

    def check_fits(self, *, size: int, condition_dim: int, data: str) -> None:
        """InputError if the model cannot read the images and the condition of the data set at this URL."""
        return

    @property
    def conditional(self) -> bool:
        """Whether the model reads a condition."""
        return True

    def describe(self) -> str:
        """One line for the report."""
        return self.kind
