"""The shape of a UNet2DModel and its process, apart from the network, so that a recipe is read without torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from mucs_ray.diffusion.vp_config import Betas, Prediction, Schedule, Spacing
from mucs_ray.errors import InputError
from mucs_ray.models.spec import ModelSpec, check_condition, check_numbers, check_size

MAY_BE_ZERO = ("dropout", "downsample_padding", "frequency_shift", "num_classes", "steps_offset")
FRACTIONS = ("norm_eps", "beta_start", "beta_end", "trained_betas")
"""Numbers whose range `check` does not know as a whole number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UNet2DConfig:
    """The shape of the network; the defaults are those of GUDA's CIFAR-10 model. Levels are listed finest first."""

    image_size: int = 32
    in_channels: int = 3
    out_channels: int = 3
    """More than `in_channels` where the network also predicts a variance, which nothing here reads."""
    channels: tuple[int, ...] = (128, 256, 256, 256)
    layers: int = 3
    """Residual blocks of a level on the way down; one more on the way up."""
    attention_down: tuple[bool, ...] = (False, True, True, False)
    attention_up: tuple[bool, ...] = (False, True, True, False)
    attention_mid: bool = True
    head_width: int | None = 8
    """None: one head over all channels."""
    groups: int = 32
    norm_eps: float = 1e-5
    dropout: float = 0.3
    downsample_padding: int = 1
    """0: one row and column of zeros at the far ends only."""
    cos_first: bool = True
    frequency_shift: int = 0
    num_classes: int = 0
    """0 = unconditional."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DDPMConfig(UNet2DConfig, ModelSpec):
    """A UNet2DModel, and the process that it was, or is to be, trained for."""

    kind: ClassVar[str] = "unet2d"
    trains: ClassVar[bool] = True

    prediction: Prediction = "epsilon"
    """What the network predicts: the noise, the velocity or the image."""
    beta_schedule: Schedule = "linear"
    timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    trained_betas: tuple[float, ...] = ()
    """The table of betas itself, when `beta_schedule` is "trained"."""
    zero_snr: bool = False
    """Whether the table is stretched until nothing of the image is left at its end."""
    spacing: Spacing = "linspace"
    """How a sampler picks its steps."""
    steps_offset: int = 0
    """The number of steps by which leading steps are shifted to the noisier side."""

    @property
    def betas(self) -> Betas:
        """The table of betas."""
        return Betas(
            schedule=self.beta_schedule,
            steps=len(self.trained_betas) or self.timesteps,
            first=self.beta_start,
            last=self.beta_end,
            trained=self.trained_betas,
            zero_snr=self.zero_snr,
        )

    @classmethod
    def opened(cls, values: Mapping[str, Any], *, size: int, condition_dim: int) -> dict[str, Any]:
        """Fill image size and number of classes where they are left open."""
        return {"image_size": size, "num_classes": condition_dim, **values}

    def check(self) -> None:
        """Raise InputError if a size of the network makes no sense, sizes do not divide, or betas are none."""
        ranged = (*MAY_BE_ZERO, *FRACTIONS)
        check_numbers(self, may_be_zero=ranged, probabilities=("dropout", *FRACTIONS[1:]))
        levels = len(self.channels)
        for key in ("attention_down", "attention_up"):
            if len(getattr(self, key)) != levels:
                raise InputError(f"model.{key}: expected true or false for each of {levels} levels (model.channels)")
        if not levels or self.image_size % 2 ** (levels - 1):
            raise InputError(
                f"model.image_size {self.image_size} is not a multiple of {2 ** max(levels - 1, 0)}, by which"
                f" {levels} levels (model.channels) divide it"
            )
        for width in self.channels:
            if width % 2 or width % self.groups or width % (self.head_width or width):
                raise InputError(
                    f"model.channels {width} must be even and a multiple of groups {self.groups} and of head_width"
                    f" {self.head_width}"
                )
        if self.in_channels != 3:
            raise InputError(f"model.in_channels is {self.in_channels}, but pictures have 3 channels")
        if not 0 < self.beta_start < self.beta_end < 1:
            raise InputError(
                f"expected 0 < model.beta_start < model.beta_end < 1; found {self.beta_start} and {self.beta_end}"
            )
        if (self.beta_schedule == "trained") != bool(self.trained_betas):
            raise InputError('model.trained_betas and model.beta_schedule="trained" belong together; give both')

    def check_fits(self, *, size: int, condition_dim: int, data: str) -> None:
        """Raise InputError unless the images have the network's size, and the condition one element a class."""
        check_size(self.image_size, size=size, data=data)
        check_condition("num_classes", self.num_classes, condition_dim=condition_dim, data=data)

    @property
    def conditional(self) -> bool:
        """Whether there are classes."""
        return self.num_classes > 0

    def describe(self) -> str:
        """Return one line for the report."""
        predicted = {"epsilon": "noise", "v_prediction": "velocity", "sample": "image"}[self.prediction]
        widths = ", ".join(map(str, self.channels))
        return f"UNet2DModel of widths {widths}, predicts the {predicted} on {self.betas.steps} steps"
