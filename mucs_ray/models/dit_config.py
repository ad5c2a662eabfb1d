"""The shape of a DiT-EDM or a DiT-VP, separate from the network so that a recipe can be read without torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Gt

from mucs_ray.errors import InputError
from mucs_ray.models.spec import DEFAULT_KIND, SIGMA_DATA, VectorConditionedSpec, check_numbers

MAY_BE_ZERO = ("registers", "condition_dim", "dropout", "condition_drop", "sigma_data")
PROBABILITIES = ("dropout", "condition_drop")
SIZES = {
    "S": {"width": 384, "depth": 12, "num_heads": 6},
    "B": {"width": 768, "depth": 12, "num_heads": 12},
    "L": {"width": 1024, "depth": 24, "num_heads": 16},
    "XL": {"width": 1152, "depth": 28, "num_heads": 16},
}
"""What `model.size` stands for; B is the paper's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiTConfig(VectorConditionedSpec):
    """The shape of the network; the defaults are the paper's CIFAR-10 model."""

    kind: ClassVar[str] = DEFAULT_KIND
    trains: ClassVar[bool] = True
    bound: ClassVar[Literal["drawn", "linear"]] = "drawn"
    label: ClassVar[str] = "DiT-EDM"

    channels: tuple[int, int] = (4, 4)
    strides: tuple[int, int] = (1, 1)
    kernel_size: int = 5
    patch_size: int = 2
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: int = 4
    registers: int = 32
    condition_channels: int = 256
    condition_drop: float = 0.1
    dropout: float = 0.1
    sigma_data: Annotated[float, Gt(0)] = SIGMA_DATA
    """sd of the EDM process. "data" in a recipe: the root mean square of the training images."""

    @property
    def grid(self) -> int:
        """The number of tokens along one side of the image."""
        return self.image_size // (self.strides[0] * self.strides[1] * self.patch_size)

    @classmethod
    def written_out(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Replace `size` by the width, depth and number of heads that it stands for."""
        rest = {key: value for key, value in values.items() if key != "size"}
        if "size" not in values:
            return rest
        size = values["size"]
        if size not in SIZES:
            raise InputError(f"recipe key model.size: expected one of {', '.join(SIZES)}; found {size!r}")
        also = [key for key in SIZES[size] if key in rest]
        if also:
            raise InputError(f"model.size says what model.{also[0]} is; leave one of them out")
        return {**rest, **SIZES[size]}

    def check(self) -> None:
        """Raise InputError if a size of the network makes no sense, or sizes do not divide."""
        check_numbers(self, may_be_zero=MAY_BE_ZERO, probabilities=PROBABILITIES)
        if self.kernel_size % 2 == 0:
            raise InputError(f"model.kernel_size must be odd, found {self.kernel_size}")
        cell = self.strides[0] * self.strides[1] * self.patch_size
        if self.image_size % cell:
            raise InputError(f"model.image_size {self.image_size} is not a multiple of strides x patch_size = {cell}")
        if self.width % self.num_heads or self.width % 4:
            raise InputError(f"model.width {self.width} must be a multiple of num_heads {self.num_heads} and of 4")

    def describe(self) -> str:
        """Return one line for the report."""
        return f"{self.label}, width {self.width}, depth {self.depth}, patch {self.patch_size}, {self.num_heads} heads"


@dataclass(frozen=True, slots=True, kw_only=True)
class DiTVPConfig(DiTConfig):
    """The shape of a DiT-VP; the defaults are the official CIFAR-10 model, but for its condition."""

    kind: ClassVar[str] = "dit-vp"
    bound: ClassVar[Literal["drawn", "linear"]] = "linear"
    label: ClassVar[str] = "DiT-VP"

    kernel_size: int = 3
    registers: int = 0

    def check(self) -> None:
        """Raise InputError if a size of the network makes no sense, or there is anything that it cannot have."""
        DiTConfig.check(self)
        if self.registers:
            raise InputError(f"model.registers must be 0 for a DiT-VP, found {self.registers}")
        if self.sigma_data != SIGMA_DATA:
            raise InputError("model.sigma_data is of the EDM process, and a DiT-VP is on another; leave it out")
