"""What [model] of a recipe says of a pipeline of diffusers: its folder, and what is read off it, without torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from mucs_ray.diffusion.vp_config import Prediction
from mucs_ray.errors import InputError
from mucs_ray.models.pipelines.families import BY_NAME, SCHEDULER, FamilyName
from mucs_ray.models.spec import ModelSpec, check_size

LORA = "lora"
"""The name of a LoRA's file among the digests."""
UNENCODED = ("unet", SCHEDULER)
"""The parts that neither z nor the tensors of a caption depend on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineConfig(ModelSpec):
    """A pipeline in a folder of diffusers, attributed in the space of its latents."""

    kind: ClassVar[str] = "diffusers"
    reads_text: ClassVar[bool] = True

    path: str = ""
    """The pipeline's folder, on a disk that every node sees."""
    family: FamilyName = "sd"
    """The family of the pipeline, as its folder says."""
    lora: str = ""
    """A file of a LoRA that was made from the pipeline, in the style of diffusers, peft or kohya; "" = none."""
    prediction: Prediction | Literal["scheduler"] = "scheduler"
    """What the network predicts, where the folder's scheduler is another's: some training scripts keep the base's."""
    image_size: int = 512
    """The side of the pictures in pixels; if it is left open, that for which the network was made."""
    caption: str = ""
    """The caption of every image that has none of its own, such as "a photo of sks dog"."""
    clip_skip: int = 0
    """The number of the text encoder's last layers that are left out."""
    digests: dict[str, str] = field(default_factory=dict)
    """The sha256 of each part, as read off the folder."""

    @classmethod
    def opened(cls, values: Mapping[str, Any], *, size: int, condition_dim: int) -> dict[str, Any]:
        """Fill what the folder says; what was read off it before stays, so that a finished run needs it no more."""
        path = values.get("path")
        if not isinstance(path, str) or not path or "digests" in values:
            return dict(values)
        from mucs_ray.models.pipelines.folder import file_sha256, lora_file, read_folder

        folder, digests = read_folder(path), {}
        if lora := values.get("lora"):
            file = lora_file(str(lora))
            values, digests = {**values, "lora": str(file)}, {LORA: file_sha256(file)}
        read = {"family": folder.family.name, "image_size": resolution(folder.configs)}
        return {**read, **values, "path": str(folder.path), "digests": folder.digests() | digests}

    def encoding(self) -> dict[str, Any]:
        """Return the settings of the codec, and the digests of all parts but the network's and the scheduler's."""
        digests = {f"model.digests.{name}": value for name, value in self.digests.items() if name not in UNENCODED}
        settings = ("image_size", "caption", "clip_skip")
        return {**digests, **{f"model.{name}": getattr(self, name) for name in settings}}

    def check(self) -> None:
        """Raise InputError if no folder is named, or the pictures' side does not divide."""
        if not self.path:
            raise InputError("model.path: expected the folder of a pipeline, in which model_index.json is")
        if self.image_size < 8 or self.image_size % 8:
            raise InputError(f"model.image_size must be a multiple of 8, found {self.image_size}")
        if self.clip_skip < 0:
            raise InputError(f"model.clip_skip must be at least 0, found {self.clip_skip}")
        if missing := sorted({*BY_NAME[self.family].parts, SCHEDULER} - self.digests.keys()):
            raise InputError(f"model.digests lacks {', '.join(missing)}; leave it out, and it is read off the folder")

    def check_fits(self, *, size: int, condition_dim: int, data: str) -> None:
        """Raise InputError unless the images have the side for which the model is read."""
        check_size(self.image_size, size=size, data=data)

    def describe(self) -> str:
        """Return one line for the report."""
        adapted = f" with {self.lora.rsplit('/', 1)[-1]}" if self.lora else ""
        return f"{BY_NAME[self.family].title} of {self.path.rsplit('/', 1)[-1]}{adapted}, {self.image_size} px"


def resolution(configs: Mapping[str, Mapping[str, Any]]) -> int:
    """Return the side of the pictures for which a network was made, in pixels. InputError if it is not a square."""
    side, channels = configs["unet"].get("sample_size"), configs["vae"].get("block_out_channels", [64])
    side = side[0] if isinstance(side, list) and side == side[:1] * 2 else side
    if not isinstance(side, int) or not isinstance(channels, list):
        raise InputError(f"unet/config.json: sample_size: expected the side of a square; found {side!r}")
    return side * 2 ** (len(channels) - 1)
