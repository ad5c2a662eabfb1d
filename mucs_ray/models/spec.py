"""What [model] of a recipe says: one class for each kind of model, so that recipes are read without torch."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal

from mucs_ray.errors import InputError

DEFAULT_KIND = "dit-edm"
"""The kind of a recipe that names none. It is not stored, so that earlier runs keep their fingerprints."""
SIGMA_DATA = 0.5
"""The paper's standard deviation of the images, for models on the EDM process."""
LATER = {"sigma_data": SIGMA_DATA}
"""Settings that came later, with the values that mean what was done before: those are not stored either."""
FROM_DATA = "data"
"""The value of a setting that is to be measured on the training images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """The settings of one model, which are JSON values and enough to build it on any worker.

    Subclasses add fields, each with a default.
    """

    kind: ClassVar[str]
    """The name of the kind in a recipe; MODULE:CLASS of the adapter for a third party's class."""
    trains: ClassVar[bool] = False
    """Whether this package can train the model; without it there are no retrainings and no initial weights."""
    reads_text: ClassVar[bool] = False
    """Whether the model's own text encoders read captions, whatever conditions the data set was prepared with."""

    bound: ClassVar[Literal["drawn", "linear"]] = "linear"
    """How far MUCS unlearns an item if the recipe does not say; "drawn" needs a kind that trains."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for recipe.json, fingerprints and the headers of weights."""
        kind = {} if self.kind == DEFAULT_KIND else {"kind": self.kind}
        stored = {key: value for key, value in asdict(self).items() if key not in LATER or value != LATER[key]}
        return {**kind, **stored}

    @classmethod
    def written_out(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Replace values that stand for several others, such as the name of a size, by what they stand for."""
        return dict(values)

    @classmethod
    def opened(cls, values: Mapping[str, Any], *, size: int, condition_dim: int) -> dict[str, Any]:
        """Fill values that are left open from the data set.

        These are the side of its images in pixels, and the width of its condition, 0 for none.
        """
        return dict(values)

    @classmethod
    def measured(cls, values: Mapping[str, Any], mean_square: Callable[[], float]) -> dict[str, Any]:
        """Fill values that are to be measured on the training images, whose elements have this mean square.

        `mean_square` reads images, and only if it is called.
        """
        if values.get("sigma_data") != FROM_DATA or "sigma_data" not in {field.name for field in fields(cls)}:
            return dict(values)
        return {**values, "sigma_data": round(mean_square() ** 0.5, 4)}

    def encoding(self) -> dict[str, Any] | None:
        """Return what z and the tensors of captions depend on, if these are computed once, before they are needed.

        None for a model that works on the pictures of the data set and on its conditions.
        """
        return None

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


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorConditionedSpec(ModelSpec):
    """What models of square pictures with a condition vector have in common."""

    image_size: int = 32
    condition_dim: int = 0
    """The width of the condition vector; 0 = unconditional."""

    @classmethod
    def opened(cls, values: Mapping[str, Any], *, size: int, condition_dim: int) -> dict[str, Any]:
        """Fill image size and width of the condition where they are left open."""
        return {"image_size": size, "condition_dim": condition_dim, **values}

    def check_fits(self, *, size: int, condition_dim: int, data: str) -> None:
        """Raise InputError unless the images have the network's size, and the condition its width."""
        check_size(self.image_size, size=size, data=data)
        check_condition("condition_dim", self.condition_dim, condition_dim=condition_dim, data=data)

    @property
    def conditional(self) -> bool:
        """Whether there is a condition vector."""
        return self.condition_dim > 0


def check_numbers(spec: ModelSpec, *, may_be_zero: Collection[str], probabilities: Collection[str]) -> None:
    """Raise InputError unless every number of a spec is at least 1, or what these names may be instead."""
    for key, value in asdict(spec).items():
        numbers = value if isinstance(value, tuple) else (value,)
        if not numbers or any(isinstance(number, str | bool | None) for number in numbers):
            continue
        minimum = 0 if key in may_be_zero else 1
        if min(numbers) < minimum:
            raise InputError(f"model.{key} must be at least {minimum}, found {value}")
        if key in probabilities and max(numbers) > 1:
            raise InputError(f"model.{key} must be at most 1, found {value}")


def check_size(image_size: int, *, size: int, data: str) -> None:
    """Raise InputError unless the images of a data set have the network's size."""
    if image_size != size:
        raise InputError(
            f"model.image_size is {image_size} but {data} holds {size} px images;"
            f" set model.image_size={size} or prepare the data with --size {image_size}"
        )


def check_condition(key: str, width: int, *, condition_dim: int, data: str) -> None:
    """Raise InputError unless the condition of a data set has the width that the network reads, or it reads none."""
    if width not in (0, condition_dim):
        raise InputError(
            f"model.{key} is {width} but {data} has conditions of width"
            f" {condition_dim}; use that, or 0 for an unconditional model"
        )
