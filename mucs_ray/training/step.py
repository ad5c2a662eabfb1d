"""One update of pretraining, validation, and the loop around them (spec 5). No I/O: its driver saves and reports.

Everything random is drawn from names that hold the update's number, for the whole batch at once; a worker then takes
its rows. So the images, noise levels and noise of an update do not depend on the number of workers or on resuming.
Axes: b batch, *shape of an image.
"""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from mucs_ray.diffusion.batch import Batch
from mucs_ray.diffusion.condition import Condition, of_loss_inputs
from mucs_ray.diffusion.loss import denoising_loss
from mucs_ray.diffusion.model import DiffusionModel
from mucs_ray.diffusion.noise import generator, name_torch_stream, normal
from mucs_ray.diffusion.process import Process
from mucs_ray.spaces.augment import Augment, distorted
from mucs_ray.training.captured import CapturedLoss
from mucs_ray.training.config import Precision, TrainConfig
from mucs_ray.training.ema import frozen_copy, update_ema
from mucs_ray.training.order import batch_rows

VALIDATION_BATCH = 128


@runtime_checkable
class TrainingImages(Protocol):
    """Random access to a split; rows count from 0 without gaps."""

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def batch(self, rows: Int64[np.ndarray, " b"], stream: np.random.Generator | None = None) -> Batch:
        """Return these rows: with a stream, a random crop and caption of each; without, the centre
        and first caption.
        """
        ...


@dataclass(slots=True, kw_only=True)
class TrainState:
    """The content of a checkpoint, including its progress."""

    live: DiffusionModel
    average: DiffusionModel
    optimizer: torch.optim.Optimizer
    step: int = 0
    best_loss: float = float("inf")
    best_step: int = 0
    captured: CapturedLoss | None = None
    """The forward and backward pass as a CUDA graph, for a GPU whose worker is the only one."""

    @classmethod
    def fresh(cls, denoiser: DiffusionModel, config: TrainConfig, *, captures: bool = False) -> "TrainState":
        """Return the start of a training of `denoiser`, which changes in place; AdamW decays all
        parameters that are trained (spec 5).
        """
        trained = [parameter for parameter in denoiser.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)
        average = frozen_copy(denoiser)
        captured = (
            CapturedLoss(partial(mean_loss, denoiser.process, denoiser, precision=config.precision), optimizer)
            if captures
            else None
        )
        return cls(live=denoiser, average=average, optimizer=optimizer, captured=captured)


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """The report on one update; `validation` is set at the end of an epoch."""

    step: int
    loss: Float[Tensor, ""]
    validation: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerContext:
    """This worker among the workers of one training."""

    rank: int = 0
    size: int = 1
    wrapped: nn.Module | None = None
    """The trained denoiser wrapped for gradient averaging, if there are several workers."""
    mean: Callable[[Tensor], Tensor] = field(default=lambda values: values)
    """Average of a tensor over the workers."""


def learning_rate(config: TrainConfig, step: int) -> float:
    """Return the rate: a staircase by whole epochs from 0.5 % in even stairs, then constant (spec 5)."""
    epoch = step // config.updates_per_epoch
    factor = 0.005 + 0.995 * epoch / config.warmup_epochs if epoch < config.warmup_epochs else 1.0
    return factor * config.learning_rate


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Return bf16 autocast, or a context that does nothing."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def training(
    state: TrainState,
    images: TrainingImages,
    test: TrainingImages,
    config: TrainConfig,
    *,
    seed: int,
    worker: WorkerContext,
    augment: Augment = distorted,
) -> Iterator[Update]:
    """Make updates until the bound or early stopping.

    `state` is changed in place and is consistent whenever this yields. `augment` distorts images on their way into an
    update; the default is for pixels.
    """
    draws = draws_ahead if next(state.live.parameters()).device.type == "cuda" else draws_when_needed
    upcoming = draws(state.live.process, images, config, seed=seed, first=state.step, augment=augment)
    while state.step < config.updates and not out_of_patience(state, config):
        loss = train_update(state, next(upcoming), config, seed=seed, worker=worker)
        at_epoch_end = state.step % config.updates_per_epoch == 0 or state.step == config.updates
        validation = None
        if at_epoch_end:
            validation = validation_loss(state.average, test, config, seed=seed, worker=worker)
            if validation < state.best_loss:
                state.best_loss, state.best_step = validation, state.step
        yield Update(step=state.step, loss=loss, validation=validation)


def out_of_patience(state: TrainState, config: TrainConfig) -> bool:
    """Return True after `patience` epochs without a new best."""
    return config.patience > 0 and state.step - state.best_step >= config.patience * config.updates_per_epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateDraws:
    """The distorted images of one update and the random numbers drawn for them, for the whole batch, on the CPU."""

    z: Float[Tensor, "b *shape"]
    noise: Float[Tensor, "b *shape"]
    level: Float[Tensor, " b"]
    condition: Condition

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors by name, with the condition's among them."""
        return {"z": self.z, "noise": self.noise, "level": self.level, **self.condition}


def draw_update(
    process: Process,
    images: TrainingImages,
    config: TrainConfig,
    *,
    seed: int,
    step: int,
    augment: Augment = distorted,
) -> UpdateDraws:
    """Draw one update; this is a pure function of seed and step."""
    stream = generator(seed, f"train/step={step}")
    rows = batch_rows(seed, "train", step, num_images=len(images), batch_size=config.batch_size)
    batch = images.batch(rows, stream)
    z, told = augment(batch.z, stream, probability=config.augment, flip=config.flip)
    level, noise = process.training_levels(stream, len(rows)), normal(stream, *z.shape)
    return UpdateDraws(z=z, noise=noise, level=level, condition={**batch.condition, **told})


def draws_when_needed(
    process: Process,
    images: TrainingImages,
    config: TrainConfig,
    *,
    seed: int,
    first: int,
    augment: Augment = distorted,
) -> Iterator[UpdateDraws]:
    """Yield the draws of one update after the other, each made when it is asked for."""
    for step in range(first, config.updates):
        yield draw_update(process, images, config, seed=seed, step=step, augment=augment)


def draws_ahead(
    process: Process,
    images: TrainingImages,
    config: TrainConfig,
    *,
    seed: int,
    first: int,
    augment: Augment = distorted,
) -> Iterator[UpdateDraws]:
    """Yield the same draws, each made by a thread while a GPU works on the previous update."""
    draw = partial(draw_update, process, images, config, seed=seed, augment=augment)
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="draws") as thread:
        ahead = thread.submit(draw, step=first)
        for step in range(first, config.updates):
            update_draws = ahead.result()
            if step + 1 < config.updates:
                ahead = thread.submit(draw, step=step + 1)
            yield update_draws


def train_update(
    state: TrainState, draws: UpdateDraws, config: TrainConfig, *, seed: int, worker: WorkerContext
) -> Float[Tensor, ""]:
    """Make one update and return this worker's mean loss."""
    step, device = state.step, next(state.live.parameters()).device
    mine = slice(worker.rank, None, worker.size)
    inputs = {name: tensor[mine].to(device, non_blocking=True) for name, tensor in draws.tensors().items()}
    for settings in state.optimizer.param_groups:
        settings["lr"] = learning_rate(config, step)
    state.live.train()
    if state.captured is not None and not state.captured.capture(inputs):
        state.captured = None
    name_torch_stream(seed, f"train/step={step}/rank={worker.rank}")  # after capturing, which uses up random numbers
    if state.captured is None:
        loss = mean_loss(state.live.process, worker.wrapped or state.live, inputs, config.precision)
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
    else:
        loss = state.captured(inputs)
    state.optimizer.step()
    update_ema(state.average, state.live, config.ema_decay)
    state.step = step + 1
    return loss.detach()


def mean_loss(
    process: Process, denoiser: nn.Module, inputs: Mapping[str, Tensor], precision: Precision
) -> Float[Tensor, ""]:
    """Return the mean loss of a worker's share of a batch; `inputs` has the names of `UpdateDraws.tensors`."""
    image = inputs["z"]
    with autocast(precision, image.device):
        losses = denoising_loss(process, denoiser, image, inputs["noise"], inputs["level"], of_loss_inputs(inputs))
    return losses.mean()


@torch.no_grad()
def validation_loss(
    denoiser: DiffusionModel, test: TrainingImages, config: TrainConfig, *, seed: int, worker: WorkerContext
) -> float:
    """Return the mean loss over the test split, each image with its own named noise level and noise."""
    device = next(denoiser.parameters()).device
    total = torch.zeros(2, dtype=torch.float64)
    for start in range(worker.rank * VALIDATION_BATCH, len(test), worker.size * VALIDATION_BATCH):
        batch = test.batch(np.arange(start, min(start + VALIDATION_BATCH, len(test))))
        streams = [generator(seed, f"validate/idx={idx}") for idx in batch.idx.tolist()]
        level = torch.cat([denoiser.process.training_levels(stream, 1) for stream in streams]).to(device)
        noise = torch.stack([normal(stream, *batch.z.shape[1:]) for stream in streams]).to(device)
        moved = batch.to(device)
        with autocast(config.precision, device):
            losses = denoising_loss(denoiser.process, denoiser, moved.z, noise, level, moved.condition)
        total += torch.tensor([losses.double().sum().item(), len(batch)], dtype=torch.float64)
    summed, count = worker.mean(total).tolist()
    return summed / count
