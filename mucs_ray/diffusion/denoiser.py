"""The EDM denoiser: a raw network F made into D, which predicts the clean image (spec 3.1).

D(x_n, sigma) = c_skip x_n + c_out F(c_in x_n, c_noise).   Axes: b batch, *shape of an image.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from mucs_ray.diffusion.condition import NO_CONDITION, Condition, joined
from mucs_ray.diffusion.rows import per_row, repeated

SIGMA_DATA = 0.5


@runtime_checkable
class Denoiser(Protocol):
    """Anything that predicts the clean image from the noisy one."""

    def __call__(
        self,
        noisy: Float[Tensor, "b *shape"],
        sigma: Float[Tensor, " b"],
        condition: Condition = NO_CONDITION,
    ) -> Float[Tensor, "b *shape"]:
        """The clean image expected behind the noisy one."""
        ...


class GuidedDenoiser(Denoiser, Protocol):
    """A denoiser that can be guided, as it knows what no condition looks like."""

    def nothing(self, num: int) -> Condition:
        """The null condition, for so many images; empty for an unconditional model."""
        ...


def c_skip(sigma: Tensor) -> Tensor:
    """Share of the noisy image in the denoised one."""
    return SIGMA_DATA**2 / (sigma**2 + SIGMA_DATA**2)


def c_out(sigma: Tensor) -> Tensor:
    """Scale of the network's output."""
    return sigma * SIGMA_DATA / (sigma**2 + SIGMA_DATA**2).sqrt()


def c_in(sigma: Tensor) -> Tensor:
    """Brings the noisy image to unit variance."""
    return 1 / (sigma**2 + SIGMA_DATA**2).sqrt()


def c_noise(sigma: Tensor) -> Tensor:
    """What the network is told of the noise level."""
    return (sigma + 1e-6).log() / 4


class EDMDenoiser(nn.Module):
    """D around a raw network F(scaled noisy, c_noise, condition, augmented).

    It reads "condition", a vector, and "augmented", which is 1 where the image was distorted.
    """

    def __init__(self, network: nn.Module) -> None:
        """`network` is lent, not copied."""
        super().__init__()
        self.network = network

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image."""
        shape: tuple[int, ...] = self.network.shape  # pyright: ignore[reportAssignmentType] - nn.Module's
        return shape

    def nothing(self, num: int) -> Condition:
        """The null condition, for so many images; empty for an unconditional network."""
        nothing: Callable[[int], Condition] = self.network.nothing  # pyright: ignore[reportAssignmentType] - nn.Module's
        return nothing(num)

    def forward(
        self,
        noisy: Float[Tensor, "b *shape"],
        sigma: Float[Tensor, " b"],
        condition: Condition = NO_CONDITION,
        tokens: Float[Tensor, "b t w"] | None = None,
    ) -> Float[Tensor, "b *shape"]:
        """The denoised image in the precision of `noisy`; `tokens` is what `stem` made of the same input, if that is
        known already.
        """
        known = {} if tokens is None else {"tokens": tokens}
        scaled = per_row(c_in(sigma), noisy) * noisy
        vector, augmented = condition.get("condition"), condition.get("augmented")
        raw = self.network(scaled, c_noise(sigma), vector, augmented, **known)
        return per_row(c_skip(sigma), noisy) * noisy + per_row(c_out(sigma), noisy) * raw.to(noisy.dtype)

    def stem(self, noisy: Float[Tensor, "b *shape"], sigma: Float[Tensor, " b"]) -> Float[Tensor, "b t w"]:
        """What the network makes of its input before anything else has a part in it."""
        stem: Callable[[Tensor], Tensor] = self.network.stem  # pyright: ignore[reportAssignmentType] - nn.Module's
        return stem(per_row(c_in(sigma), noisy) * noisy)


def guided(denoiser: GuidedDenoiser, weight: float) -> Denoiser:
    """Classifier-free guidance, w D(condition) + (1 - w) D(no condition); one call when w = 1 (spec 6)."""
    if weight == 1.0:
        return denoiser

    def guide(noisy: Tensor, sigma: Tensor, condition: Condition = NO_CONDITION) -> Tensor:
        nothing = denoiser.nothing(len(noisy))
        known = {name: condition[name] for name in nothing if name in condition}
        if not known:
            return denoiser(noisy, sigma, condition)
        with_and_without = joined([known, nothing])
        denoised = denoiser(repeated(noisy, 2), sigma.repeat(2), with_and_without)
        conditional, unconditional = denoised.chunk(2)
        return weight * conditional + (1 - weight) * unconditional

    return guide
