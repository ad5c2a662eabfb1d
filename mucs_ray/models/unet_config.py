"""The shape of the official UNet, separate from the network so that a recipe can be read without torch."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Gt

from mucs_ray.errors import InputError
from mucs_ray.models.spec import SIGMA_DATA, VectorConditionedSpec, check_numbers

PROBABILITIES = ("dropout", "condition_drop")
MAY_BE_ZERO = (*PROBABILITIES, "condition_dim", "sigma_data")
MOST_GROUPS = 32
"""The number of groups of a normalisation, of at least four channels each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UNetConfig(VectorConditionedSpec):
    """The shape of the network; the defaults are the paper's CIFAR-10 model for EDM, but for its condition."""

    trains: ClassVar[bool] = True
    label: ClassVar[str] = "UNet"

    channels: int = 128
    multipliers: tuple[int, ...] = (2, 2, 2)
    """The width of each level in multiples of `channels`, the finest first."""
    embedding_multiplier: int = 4
    blocks: int = 4
    """The number of blocks in each level of the encoder; the decoder has one more."""
    attention_at: tuple[int, ...] = (16,)
    """The sides of the feature maps whose blocks attend; the narrowest level of the decoder always does."""
    condition_drop: float = 0.1
    dropout: float = 0.1

    def check(self) -> None:
        """Raise InputError if a size of the network makes no sense, or sizes do not divide."""
        check_numbers(self, may_be_zero=MAY_BE_ZERO, probabilities=PROBABILITIES)
        halved = 2 ** (len(self.multipliers) - 1)
        if not self.multipliers or self.image_size % halved:
            raise InputError(
                f"model.image_size {self.image_size} is not a multiple of {halved}, by which"
                f" {len(self.multipliers)} levels (model.multipliers) divide it"
            )
        widths = {self.channels, *(self.channels * multiplier for multiplier in self.multipliers)}
        for joined in sorted({*widths, *(one + other for one in widths for other in widths)}):
            if joined % min(MOST_GROUPS, max(1, joined // 4)):
                raise InputError(
                    f"model.channels {self.channels} makes feature maps of {joined} channels, which do not divide into"
                    f" {min(MOST_GROUPS, joined // 4)} groups; take a multiple of {MOST_GROUPS}"
                )

    def describe(self) -> str:
        """Return one line for the report."""
        widths = ", ".join(str(self.channels * multiplier) for multiplier in self.multipliers)
        return f"{self.label}, {self.blocks} blocks in each level of widths {widths}"


@dataclass(frozen=True, slots=True, kw_only=True)
class UNetEDMConfig(UNetConfig):
    """The shape of a UNet-EDM."""

    kind: ClassVar[str] = "unet-edm"
    bound: ClassVar[Literal["drawn", "linear"]] = "drawn"
    label: ClassVar[str] = "UNet-EDM"

    sigma_data: Annotated[float, Gt(0)] = SIGMA_DATA
    """sd of the EDM process. "data" in a recipe: the root mean square of the training images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UNetVPConfig(UNetConfig):
    """The shape of a UNet-VP, which is wider."""

    kind: ClassVar[str] = "unet-vp"
    label: ClassVar[str] = "UNet-VP"

    channels: int = 192
