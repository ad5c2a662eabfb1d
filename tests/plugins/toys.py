"""A method as somebody else writes it, with settings of its own: how near an image's brightness is to the item's."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Gt
from torch import Tensor

from mucs_ray.attribution.base import Attributor, Columns, Tensors
from mucs_ray.attribution.card import MethodCard, MethodStage
from mucs_ray.attribution.embedding import as_batch
from mucs_ray.diffusion.batch import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class BrightnessConfig:
    """How brightness is measured, and how it is compared."""

    over: Literal["mean", "maximum"] = "mean"
    power: Annotated[float, Gt(0)] = 2.0


class Brightness(Attributor):
    """-|brightness of the image - brightness of the item| ** power."""

    card = MethodCard(
        name="brightness",
        label="Brightness",
        summary="how near the brightness of image and item is",
        needs="nothing",
        stages=(
            MethodStage(
                name="features", hook="features", reads=("method.brightness.over",), uses_model=False, uses_items=False
            ),
            MethodStage(name="score", hook="score", reads=("method.brightness.power",), uses_model=False),
        ),
        config_class=BrightnessConfig,
    )
    config: BrightnessConfig

    def features(self, batch: Batch) -> Columns:
        pixels = batch.z.flatten(1).double()
        return {"brightness": pixels.mean(dim=1) if self.config.over == "mean" else pixels.amax(dim=1)}

    def load(self, fitted: Tensors, item_states: Sequence[Tensors]) -> None:
        self.of_items = self.features(as_batch(self.context.items))["brightness"]

    def score(self, rows: Columns) -> Tensor:
        return -(rows["brightness"][:, None] - self.of_items).abs().pow(self.config.power).float()
