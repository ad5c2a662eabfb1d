"""F1 and every F2 in one resident network: the inner loop of scoring, nearly all of its cost (spec 7.3).

Done once for all models: the noisy images, and the stem of the network, which unlearning does not change. In bf16 the
matrices are kept as autocast would make them, so it has nothing left to convert. Weights are swapped by reference.
Axes: m models (F1 first), b training images, n noises, c h w image, d condition.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mucs_ray.attribution.config import ScoreConfig
from mucs_ray.attribution.skew import pairs
from mucs_ray.diffusion.batch import Batch
from mucs_ray.diffusion.denoiser import EDMDenoiser
from mucs_ray.diffusion.loss import denoising_loss, noised
from mucs_ray.diffusion.noise import NoiseSet
from mucs_ray.errors import RunFailed
from mucs_ray.models.dit import STEM, repeated_modules
from mucs_ray.training.config import Precision
from mucs_ray.training.step import autocast

MATRIX_MODULES = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)


class ModelBank:
    """The models of a scoring pass; number 0 is F1, number 1 + i the F2 of item i."""

    def __init__(self, denoiser: EDMDenoiser, bank: Sequence[Mapping[str, Tensor]], config: ScoreConfig) -> None:
        """`denoiser` is F1, in eval mode on its device; `bank` holds the changed tensors of each item, on the same."""
        self.denoiser = denoiser
        self.precision: Precision = "fp32" if config.precision == "auto" else config.precision
        matrices = matrix_names(denoiser.network) if self.precision == "bf16" else frozenset()
        own = {name: denoiser.network.get_parameter(name).detach() for name in matrices}
        self.models = [lowered(tensors, matrices) for tensors in (own, *bank)]
        self.stem_is_shared = not any(name.startswith(STEM) for tensors in bank for name in tensors)
        self.alone = config.images_per_forward == 1
        at_once = 1 if config.images_per_forward == "auto" else config.images_per_forward
        self.most_rows = at_once * config.noises
        """(image, noise) pairs in one forward; halved when the device's memory is too small for them."""
        if config.compile == "on":
            for module in repeated_modules(denoiser.network):
                module.compile()

    @torch.inference_mode()
    def losses(self, batch: Batch, noises: NoiseSet, models: Sequence[int] | None = None) -> Float[Tensor, "m b n"]:
        """Loss of every image at every noise under these models (by default all), fp32.

        With one image a forward every forward has the same shape and holds one image only, so a loss does not depend,
        to the last bit, on which other images are in the batch.
        """
        chosen = range(len(self.models)) if models is None else models
        table = torch.empty(len(chosen), len(batch), len(noises.sigma), device=batch.image.device)
        with autocast(self.precision, batch.image.device), swapped(self.denoiser.network, self.models[0]):
            waiting = list(self._pieces(len(batch), len(noises.sigma)))[::-1]
            while waiting:
                rows, columns = waiting.pop()
                piece, some = batch[rows], noises[columns]
                pairs_here = len(piece) * len(some.sigma)
                if pairs_here <= self.most_rows:
                    try:
                        table[:, rows, columns] = self._forwards(piece, some, chosen)
                        continue
                    except torch.OutOfMemoryError:
                        if pairs_here == 1:
                            raise RunFailed("one image at one noise does not fit into the device's memory") from None
                    # after the except clause, which would keep the failed forward's tensors alive
                    torch.cuda.empty_cache()
                    self.most_rows = pairs_here // 2
                waiting += list(self._pieces(len(piece), len(some.sigma), rows.start, columns.start))[::-1]
        return table

    def _forwards(self, batch: Batch, noises: NoiseSet, models: Sequence[int]) -> Float[Tensor, "m b n"]:
        image, noise, sigma, condition = pairs(batch, noises)
        tokens = self.denoiser.stem(noised(image, noise, sigma), sigma) if self.stem_is_shared else None
        denoiser = partial(self.denoiser, tokens=tokens)
        losses = []
        for number in models:
            with swapped(self.denoiser.network, self.models[number]):
                losses.append(denoising_loss(denoiser, image, noise, sigma, condition))
        return torch.stack(losses).view(len(models), len(batch), len(noises.sigma))

    def _pieces(self, images: int, noises: int, row: int = 0, column: int = 0) -> Iterator[tuple[slice, slice]]:
        """Cuts of at most `most_rows` pairs: whole images, or, where one is too much, some of its noises."""
        many = 1 if self.alone else max(1, self.most_rows // noises)
        few = min(noises, self.most_rows)
        for at in range(row, row + images, many):
            for start in range(column, column + noises, few):
                yield slice(at, min(at + many, row + images)), slice(start, min(start + few, column + noises))


def matrix_names(network: nn.Module) -> frozenset[str]:
    """Weights that autocast converts; their biases and the norms take part in sums that it keeps in fp32."""
    modules = {name: module for name, module in network.named_modules() if isinstance(module, MATRIX_MODULES)}
    return frozenset(f"{name}.weight" for name in modules)


def lowered(tensors: Mapping[str, Tensor], names: frozenset[str]) -> dict[str, Tensor]:
    """These tensors, those of the names in bf16."""
    return {name: tensor.bfloat16() if name in names else tensor for name, tensor in tensors.items()}


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
