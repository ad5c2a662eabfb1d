"""A diffusion model: a raw network, the process that it was trained for, and what the engine may ask of it.

Axes: b batch, *shape of an image.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from mucs_ray.diffusion.condition import NO_CONDITION, Condition, joined
from mucs_ray.diffusion.process import Coefficients, Process
from mucs_ray.diffusion.rows import repeated

Selector = Literal["mlp", "attention", "blocks", "all"]
"""A choice of tensors. mlp: the blocks' MLP matrices; attention: the matrices of queries, keys and values; blocks:
both, and the matrices after the attention; all: every parameter.
"""


@runtime_checkable
class Denoiser(Protocol):
    """A function that predicts the clean image from the noisy one."""

    def __call__(
        self,
        noisy: Float[Tensor, "b *shape"],
        level: Float[Tensor, " b"],
        condition: Condition = NO_CONDITION,
    ) -> Float[Tensor, "b *shape"]:
        """Return the clean image expected behind the noisy one."""
        ...


class GuidedDenoiser(Denoiser, Protocol):
    """A denoiser that can be guided, because it knows its null condition."""

    def nothing(self, num: int) -> Condition:
        """Return the null condition for `num` images; it is empty for an unconditional model."""
        ...


class DiffusionModel(nn.Module, ABC):
    """A denoiser around a raw network. Only the network's named parameters are ever trained or unlearned."""

    process: Process
    limit: ClassVar[float | None] = None
    """The largest magnitude of an element of z, such as 1 for pixels; None where z has no bounds."""
    stem_parameters: ClassVar[tuple[str, ...]] = ()
    """The prefixes of the stem's parameter names, for a model that has a stem."""

    def __init__(self, network: nn.Module) -> None:
        """Wrap `network`, which is not copied."""
        super().__init__()
        self.network = network

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """The shape of one image."""

    @abstractmethod
    def raw(
        self,
        noisy: Float[Tensor, "b *shape"],
        at: Coefficients,
        condition: Condition,
        stem: Any = None,  # noqa: ANN401 - whatever the model's own stem makes
    ) -> Float[Tensor, "b *shape"]:
        """Return the network's output in the precision of `noisy`.

        `stem` is the output of `stem` for the same input, if it is already known.
        """

    @abstractmethod
    def nothing(self, num: int) -> Condition:
        """Return the null condition for `num` images; it is empty for an unconditional model."""

    @abstractmethod
    def names(self, which: Selector) -> list[str]:
        """Return the names of the network's parameters that a method asks for."""

    def blocks(self) -> Sequence[nn.Module]:
        """Return the modules worth compiling, which do nearly all of the work and are of few kinds."""
        return ()

    def stem(self, noisy: Float[Tensor, "b *shape"], level: Float[Tensor, " b"]) -> Tensor:
        """Compute the part of the network that no unlearned parameter influences."""
        raise NotImplementedError

    def forward(
        self,
        noisy: Float[Tensor, "b *shape"],
        level: Float[Tensor, " b"],
        condition: Condition = NO_CONDITION,
        stem: Tensor | None = None,
    ) -> Float[Tensor, "b *shape"]:
        """Return the denoised image."""
        raw = self.raw(noisy, self.process.at(level), condition, stem)
        return self.process.denoised(raw, noisy, level)


def guided(denoiser: GuidedDenoiser, weight: float) -> Denoiser:
    """Apply classifier-free guidance, w D(condition) + (1 - w) D(no condition); w = 1 needs one call (spec 6)."""
    if weight == 1.0:
        return denoiser

    def guide(noisy: Tensor, level: Tensor, condition: Condition = NO_CONDITION) -> Tensor:
        nothing = denoiser.nothing(len(noisy))
        known = {name: condition[name] for name in nothing if name in condition}
        if not known:
            return denoiser(noisy, level, condition)
        with_and_without = joined([known, nothing])
        denoised = denoiser(repeated(noisy, 2), level.repeat(2), with_and_without)
        conditional, unconditional = denoised.chunk(2)
        return weight * conditional + (1 - weight) * unconditional

    return guide
