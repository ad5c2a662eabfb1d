"""F1 and every F2 share one resident network; this is the inner loop of scoring, nearly all of its cost (spec 7.3).

Two things are done once for all models: the noisy images, and the stem of the network, which unlearning does not
change. In bf16 the matrices are kept as autocast would make them, so it has nothing left to convert. Weights are
swapped by reference. Where the F2s do not fit beside F1 on a GPU they take turns (model_slots.py); forwards of one
shape can be captured as CUDA graphs (fixed_pass.py).

Axes: m models (F1 first), b training images, n noises, *shape of an image.
"""

import gc
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mucs_ray.attribution.config import ScoreConfig
from mucs_ray.attribution.fixed_pass import FixedPass
from mucs_ray.attribution.model_slots import ModelSlots
from mucs_ray.attribution.skew import pairs
from mucs_ray.attribution.unlearn import model_tensors
from mucs_ray.diffusion.batch import Batch
from mucs_ray.diffusion.condition import of_loss_inputs
from mucs_ray.diffusion.loss import denoising_loss
from mucs_ray.diffusion.model import DiffusionModel
from mucs_ray.diffusion.noise import NoiseSet
from mucs_ray.diffusion.replay import Results, graph_pool, warn_not_captured
from mucs_ray.errors import RunFailed
from mucs_ray.training.config import Precision
from mucs_ray.training.step import autocast

MATRIX_MODULES = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
MAX_QUEUED = 2
"""The number of pieces of a batch that may wait for a GPU, so that it always has work, and progress stays true."""
MAX_CAPTURED_SHAPES = 8
"""The number of shapes that are captured. Screening asks for one in each of its rounds; other shapes run eagerly."""


class ModelBank:
    """The bank holds the models of a scoring pass; number 0 is F1, number 1 + i the F2 of item i."""

    def __init__(
        self,
        denoiser: DiffusionModel,
        bank: Sequence[Mapping[str, Tensor]],
        config: ScoreConfig,
        *,
        resident: int | None = None,
        captures: bool = False,
        on_progress: Callable[[], None] = lambda: None,
        num_banks: int = 1,
    ) -> None:
        """Set up the models. `denoiser` is F1, in eval mode on its device; `bank` holds the changed tensors of each
        item, on any device.

        `resident` F2s are kept on the device at once; None means as many as fit into half of its free memory, which
        `num_banks` banks share equally. With `captures` forwards whose shape comes again are captured as CUDA graphs.
        `on_progress` is called after some forwards.
        """
        self.denoiser = denoiser
        self.device = next(denoiser.parameters()).device
        self.precision: Precision = "fp32" if config.precision == "auto" else config.precision
        matrices = matrix_names(denoiser.network) if self.precision == "bf16" else frozenset()
        matrix_weights = {name: denoiser.network.get_parameter(name).detach() for name in matrices}
        self.first = cast_to_bf16(matrix_weights, matrices)
        own = [cast_to_bf16(model_tensors(tensors), matrices) for tensors in bank]
        self.slots = ModelSlots(own, self.device, resident, num_banks)
        stem = denoiser.stem_parameters
        self.stem_is_shared = bool(stem) and not any(name.startswith(stem) for tensors in bank for name in tensors)
        self.one_image_per_forward = config.images_per_forward == 1
        at_once = 1 if config.images_per_forward == "auto" else config.images_per_forward
        self.max_pairs = at_once * config.noises
        """(image, noise) pairs in one forward; halved when the device's memory is too small for them."""
        self.on_progress = on_progress
        self.queued: deque[torch.cuda.Event] = deque()
        self.captures = captures
        self.pool = graph_pool(self.device) if captures else None
        self.captured: dict[tuple[int, int], FixedPass | None] = {}
        """The captured passes by images and noises of a forward. None stands for a shape that was seen once: it is
        captured the second time.
        """
        if config.compile == "on":
            for module in denoiser.blocks():
                module.compile()

    @torch.inference_mode()
    def losses(self, batch: Batch, noises: NoiseSet, models: Sequence[int] | None = None) -> Float[Tensor, "m b n"]:
        """Return the fp32 loss of every image at every noise under these models (by default all).

        With one image a forward every forward has the same shape and holds one image only, so a loss does not depend,
        to the last bit, on which other images are in the batch.
        """
        chosen = range(1 + len(self.slots)) if models is None else models
        table = torch.empty(len(chosen), len(batch), len(noises.level), device=self.device)
        with autocast(self.precision, self.device), swapped(self.denoiser.network, self.first):
            for start, turn in self.slots.turns(chosen):
                waiting = self._pieces(len(batch), len(noises.level))
                while waiting:
                    rows, columns = waiting.pop()
                    piece = table[start : start + len(turn), rows, columns]
                    if not self._forwards(piece, batch[rows], noises[columns], turn):
                        waiting += self._pieces(*piece.shape[1:], rows.start, columns.start)
        return table

    def _forwards(self, table: Float[Tensor, "m b n"], batch: Batch, noises: NoiseSet, models: Sequence[int]) -> bool:
        """Fill in the losses under models that are all on the device.

        It returns False, and lowers `max_pairs`, if these are too many pairs for the device's memory.
        """
        num_pairs = table[0].numel()
        if num_pairs > self.max_pairs:
            return False
        try:
            self._compute_or_replay(table, batch, noises, models)
            self._keep_queue_short()
            return True
        except torch.OutOfMemoryError:
            if num_pairs == 1:
                raise RunFailed("one image at one noise does not fit into the device's memory") from None
        # after the except clause, which would keep the failed forward's tensors alive
        self.captured.clear()
        gc.collect()  # captured forwards refer to each other in circles
        torch.cuda.empty_cache()
        self.max_pairs = num_pairs // 2
        return False

    def _compute_or_replay(
        self, table: Float[Tensor, "m b n"], batch: Batch, noises: NoiseSet, models: Sequence[int]
    ) -> None:
        """Fill in the losses at these pairs; nothing in here waits for the device."""
        if self.captures:
            try:
                self._compute(table, batch, noises, models, self._captured(batch, noises))
                return
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # any error that the network, torch or CUDA may raise
                warn_not_captured(error)
                self.captures = False
                self.captured.clear()
        self._compute(table, batch, noises, models, None)

    def _compute(
        self,
        table: Float[Tensor, "m b n"],
        batch: Batch,
        noises: NoiseSet,
        models: Sequence[int],
        captured: FixedPass | None,
    ) -> None:
        inputs = self.inputs(batch, noises) if captured is None else captured.inputs(batch, noises)
        for row, number in zip(table, models, strict=True):
            losses = self.model_losses(inputs, number) if captured is None else captured.losses(inputs, number)
            row.copy_(losses.view_as(row))

    def _keep_queue_short(self) -> None:
        """Wait until few pieces are ahead of this one, so that progress means what the device has done."""
        if self.device.type == "cuda":
            self.queued.append(torch.cuda.Event())
            self.queued[-1].record()
            if len(self.queued) > MAX_QUEUED:
                self.queued.popleft().synchronize()
        self.on_progress()

    def _captured(self, batch: Batch, noises: NoiseSet) -> FixedPass | None:
        shape = len(batch), len(noises.level)
        if shape not in self.captured and len(self.captured) < MAX_CAPTURED_SHAPES:
            self.captured[shape] = None
        elif shape in self.captured and self.captured[shape] is None:
            self.captured[shape] = FixedPass(
                self.inputs, self.model_losses, self.slots.slot, batch, noises, pool=self.pool
            )
        return self.captured.get(shape)

    def inputs(self, batch: Batch, noises: NoiseSet) -> Results:
        """Return what all models of a forward share: image, noise, level and condition of every pair, and the stem's
        output if no model changes the stem.
        """
        image, noise, level, condition = pairs(batch, noises)
        inputs = {"z": image, "noise": noise, "level": level, **condition}
        if self.stem_is_shared:
            inputs["stem"] = self.denoiser.stem(self.denoiser.process.noised(image, noise, level), level)
        return inputs

    def model_losses(self, inputs: Results, number: int) -> Float[Tensor, " p"]:
        """Return the losses of one model, which is on the device, at all pairs."""
        denoiser = partial(self.denoiser, stem=inputs.get("stem"))
        with swapped(self.denoiser.network, self.slots[number]):
            tensors = inputs["z"], inputs["noise"], inputs["level"]
            return denoising_loss(self.denoiser.process, denoiser, *tensors, of_loss_inputs(inputs))

    def _pieces(self, images: int, noises: int, row: int = 0, column: int = 0) -> list[tuple[slice, slice]]:
        """Cut the table into pieces of at most `max_pairs` pairs, whole images or some noises of one; the last one
        comes first.
        """
        num_rows = 1 if self.one_image_per_forward else max(1, self.max_pairs // noises)
        num_columns = min(noises, self.max_pairs)
        cuts = [
            (slice(at, min(at + num_rows, row + images)), slice(start, min(start + num_columns, column + noises)))
            for at in range(row, row + images, num_rows)
            for start in range(column, column + noises, num_columns)
        ]
        return cuts[::-1]


def matrix_names(network: nn.Module) -> frozenset[str]:
    """Return the names of the weights that autocast converts.

    Biases and norms are not among them, because they take part in sums that autocast keeps in fp32.
    """
    modules = {name: module for name, module in network.named_modules() if isinstance(module, MATRIX_MODULES)}
    return frozenset(f"{name}.weight" for name in modules)


def cast_to_bf16(tensors: Mapping[str, Tensor], names: frozenset[str]) -> dict[str, Tensor]:
    """Return the tensors, of which those named are cast to bf16."""
    return {name: tensor.bfloat16() if name in names else tensor for name, tensor in tensors.items()}


@contextmanager
def swapped(network: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Let a network use other tensors under the same names for a while; nothing is copied."""
    parameters = {name: network.get_parameter(name) for name in tensors}
    original = {name: parameter.data for name, parameter in parameters.items()}
    try:
        for name, parameter in parameters.items():
            parameter.data = tensors[name]
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.data = original[name]
