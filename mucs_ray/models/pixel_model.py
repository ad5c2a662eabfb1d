"""What the official networks have in common as diffusion models in pixels: two named inputs beside image and level.

Axes: b batch, *shape of an image.
"""

from collections.abc import Callable
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from mucs_ray.diffusion.condition import Condition
from mucs_ray.diffusion.model import DiffusionModel
from mucs_ray.diffusion.process import Coefficients, Process
from mucs_ray.diffusion.rows import per_row


class PixelModel(DiffusionModel):
    """A raw network F(scaled noisy, time, condition, augmented) as a denoiser.

    It reads two tensors of a condition: "condition", a vector, and "augmented", which is 1 where the image was
    distorted.
    """

    limit = 1.0

    def __init__(self, network: nn.Module, process: Process | None = None) -> None:
        """Wrap `network`, which is not copied; without a process it is on that of its class."""
        super().__init__(network)
        if process is not None:
            self.process = process

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one image."""
        shape: tuple[int, ...] = self.network.shape  # pyright: ignore[reportAssignmentType] - nn.Module's
        return shape

    def raw(
        self,
        noisy: Float[Tensor, "b *shape"],
        at: Coefficients,
        condition: Condition,
        stem: Any = None,  # noqa: ANN401 - tokens [b, t, w] of a network that has a stem
    ) -> Float[Tensor, "b *shape"]:
        """Return F in the precision of `noisy`."""
        known = {} if stem is None else {"tokens": stem}
        scaled = per_row(at.c_in, noisy) * noisy
        vector, augmented = condition.get("condition"), condition.get("augmented")
        return self.network(scaled, at.time, vector, augmented, **known).to(noisy.dtype)

    def nothing(self, num: int) -> Condition:
        """Return zero vectors, which the network takes for no condition."""
        nothing: Callable[[int], Condition] = self.network.nothing  # pyright: ignore[reportAssignmentType] - nn.Module's
        return nothing(num)
