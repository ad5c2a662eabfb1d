"""The shape of a DiT-EDM, separate from the network so that a recipe can be read without torch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from mucs_ray.errors import InputError
from mucs_ray.models.spec import DEFAULT_KIND, ModelSpec

MAY_BE_ZERO = ("registers", "condition_dim", "dropout", "condition_drop")
PROBABILITIES = ("dropout", "condition_drop")


@dataclass(frozen=True, slots=True, kw_only=True)
class DiTConfig(ModelSpec):
    """The shape of the network; the defaults are the paper's CIFAR-10 model."""

    kind: ClassVar[str] = DEFAULT_KIND
    trains: ClassVar[bool] = True

    image_size: int = 32
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
    condition_dim: int = 0
    """The width of the condition vector; 0 = unconditional."""
    condition_drop: float = 0.1
    dropout: float = 0.1

    @property
    def grid(self) -> int:
        """The number of tokens along one side of the image."""
        return self.image_size // (self.strides[0] * self.strides[1] * self.patch_size)

    @classmethod
    def opened(cls, values: Mapping[str, Any], *, size: int, condition_dim: int) -> dict[str, Any]:
        """Fill image size and width of the condition where they are left open."""
        return {"image_size": size, "condition_dim": condition_dim, **values}

    def check(self) -> None:
        """Raise InputError if a size of the network makes no sense, or sizes do not divide."""
        sizes: dict[str, Any] = asdict(self)
        for key, value in sizes.items():
            minimum = 0 if key in MAY_BE_ZERO else 1
            numbers = value if isinstance(value, tuple) else (value,)
            if min(numbers) < minimum:
                raise InputError(f"model.{key} must be at least {minimum}, found {value}")
            if key in PROBABILITIES and max(numbers) > 1:
                raise InputError(f"model.{key} must be at most 1, found {value}")
        if self.kernel_size % 2 == 0:
            raise InputError(f"model.kernel_size must be odd, found {self.kernel_size}")
        cell = self.strides[0] * self.strides[1] * self.patch_size
        if self.image_size % cell:
            raise InputError(f"model.image_size {self.image_size} is not a multiple of strides x patch_size = {cell}")
        if self.width % self.num_heads or self.width % 4:
            raise InputError(f"model.width {self.width} must be a multiple of num_heads {self.num_heads} and of 4")

    def check_fits(self, *, size: int, condition_dim: int, data: str) -> None:
        """Raise InputError unless the images have the network's size, and the condition its width."""
        if self.image_size != size:
            raise InputError(
                f"model.image_size is {self.image_size} but {data} holds {size} px images;"
                f" set model.image_size={size} or prepare the data with --size {self.image_size}"
            )
        if self.condition_dim not in (0, condition_dim):
            raise InputError(
                f"model.condition_dim is {self.condition_dim} but {data} has conditions of width"
                f" {condition_dim}; use that, or 0 for an unconditional model"
            )

    @property
    def conditional(self) -> bool:
        """Whether there is a condition vector."""
        return self.condition_dim > 0

    def describe(self) -> str:
        """Return one line for the report."""
        return f"DiT-EDM, width {self.width}, depth {self.depth}, patch {self.patch_size}, {self.num_heads} heads"
