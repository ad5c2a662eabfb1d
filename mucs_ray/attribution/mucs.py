"""MUCS: mirrored unlearning (unlearn.py) and noise-consistent skew (skew.py), for all items in one pass.

F2 of an item differs from F1 only in the unlearned tensors, so a bank of those beside one resident network is all the
models of a run; the losses of F1 are computed once for all items.
Axes: b training images, i items, n noises.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mucs_ray.attribution.config import ScoreConfig
from mucs_ray.attribution.skew import noise_losses, normalized_skew
from mucs_ray.diffusion.batch import Batch
from mucs_ray.diffusion.denoiser import EDMDenoiser
from mucs_ray.diffusion.noise import NoiseSet
from mucs_ray.diffusion.schedule import scoring_sigmas
from mucs_ray.errors import RunFailed


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """The loss table of a batch: before unlearning, and after unlearning each item."""

    before: Float[Tensor, "b n"]
    after: Float[Tensor, "i b n"]


class MUCS:
    """The method, prepared and adapted: F1, the noise set, and the tensors of every F2."""

    def __init__(
        self,
        denoiser: EDMDenoiser,
        bank: Sequence[Mapping[str, Tensor]],
        *,
        config: ScoreConfig,
        image_size: int,
        seed: int,
    ) -> None:
        """`denoiser` is F1, in eval mode on its device; `bank` holds the changed tensors of each item, on the same."""
        self.denoiser = denoiser
        self.bank = bank
        self.config = config
        sigmas = scoring_sigmas(config.noises, config.keep)
        device = next(denoiser.parameters()).device
        self.noises = NoiseSet.draw(seed, "score/noise", sigmas, (3, image_size, image_size)).to(device)

    def losses(self, batch: Batch) -> Losses:
        """RunFailed, naming the image, if a loss is not finite."""
        before = self._measure(batch)
        after = []
        for tensors in self.bank:
            with swapped(self.denoiser.network, tensors):
                after.append(self._measure(batch))
        return Losses(before=before, after=torch.stack(after) if after else before.new_zeros(0, *before.shape))

    def scores(self, losses: Losses) -> Float[Tensor, "b i"]:
        """The skews of a loss table, on the CPU; in (-1, 1), higher = more influential."""
        columns = [normalized_skew(losses.before, after, epsilon=self.config.epsilon) for after in losses.after]
        return torch.stack(columns, dim=1).cpu()

    def score(self, batch: Batch) -> Float[Tensor, "b i"]:
        """Influence of each image on each item."""
        return self.scores(self.losses(batch))

    def _measure(self, batch: Batch) -> Float[Tensor, "b n"]:
        losses = noise_losses(
            self.denoiser,
            batch,
            self.noises,
            images_per_forward=self.config.images_per_forward,
            precision=self.config.precision,
        )
        bad = ~losses.isfinite().all(dim=1).cpu()
        if bad.any():
            raise RunFailed(f"the loss of training image idx={batch.idx[bad][0].item()} is not finite")
        return losses


@contextmanager
def swapped(network: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Let a network use other tensors under the same names for a while; nothing is copied."""
    parameters = {name: network.get_parameter(name) for name in tensors}
    own = {name: parameter.data for name, parameter in parameters.items()}
    try:
        for name, parameter in parameters.items():
            parameter.data = tensors[name]
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.data = own[name]
