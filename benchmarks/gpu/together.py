"""Trainings that differ only in the images they leave out, all at once: one stack of weights, one CUDA graph.

A small network leaves most of a GPU idle. Here the weights of M models stand in one tensor each, a forward is that of
all M by torch.func.vmap, and AdamW and the EMA, which work element by element, take the stacks as they are. All models
share what a training draws by the number of its update (levels, noise, dropped conditions), as trainings of the same
seed do; only the images of their batches differ.

Axes: m models, b images of a batch, *shape of an image.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from common import DEVICE
from torch import Tensor
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from mucs_ray.config.recipe import Recipe
from mucs_ray.data.local import LocalImages
from mucs_ray.diffusion.condition import of_loss_inputs
from mucs_ray.diffusion.loss import denoising_loss
from mucs_ray.diffusion.model import DiffusionModel
from mucs_ray.diffusion.noise import name_torch_stream
from mucs_ray.diffusion.replay import Replay
from mucs_ray.models.adapters import adapter
from mucs_ray.training.numerics import as_in_training
from mucs_ray.training.order import batch_rows
from mucs_ray.training.step import draw_update

Weights = dict[str, Tensor]


class Trainings:
    """M trainings of one recipe, each without some images."""

    def __init__(self, recipe: Recipe, images: LocalImages, removed: Sequence[frozenset[int]]) -> None:
        """Put the weights of all models, and all images, on the device."""
        self.recipe, self.images, num = recipe, images, len(removed)
        everything = images.batch(np.arange(len(images)))
        self.z = everything.z.to(DEVICE)
        self.condition = {name: tensor.to(DEVICE) for name, tensor in everything.condition.items()}
        idx = everything.idx.numpy()
        self.kept = [np.flatnonzero(~np.isin(idx, list(without))) for without in removed]
        model = adapter(recipe.model).untrained(recipe.seed, torch.device("cpu"))
        assert model is not None
        self.model = model.to(DEVICE).train()
        named = dict(model.named_parameters())
        self.live = {name: stack(value, num).requires_grad_(True) for name, value in named.items()}
        self.average = {name: stack(value, num) for name, value in named.items()}
        train = recipe.train
        self.optimizer = torch.optim.AdamW(
            list(self.live.values()), lr=train.learning_rate, weight_decay=train.weight_decay, fused=True
        )
        for value in self.live.values():
            value.grad = torch.zeros_like(value)

    def run(self, updates: int | None = None) -> list[Weights]:
        """Make all updates and return the EMA weights of each model by their names in the network, on the CPU."""
        recipe, train = self.recipe, self.recipe.train
        assert train.warmup_epochs == 0 and train.augment == 0 and not train.flip, "these would differ by model"
        with as_in_training(DEVICE), sdpa_kernel(SDPBackend.MATH):
            replay = None
            for step, fresh in enumerate(self.ahead(updates or train.updates)):
                if replay is None:
                    self.fixed = {name: tensor.to(DEVICE) for name, tensor in fresh.items()}
                    replay = self.captured()
                for name, tensor in fresh.items():
                    self.fixed[name].copy_(tensor)
                name_torch_stream(recipe.seed, f"train/step={step}/rank=0")
                replay()
                self.optimizer.step()
                with torch.no_grad():
                    torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
                        list(self.average.values()), list(self.live.values()), 1 - train.ema_decay
                    )
        return [
            {name.removeprefix("network."): value[number].cpu() for name, value in self.average.items()}
            for number in range(len(self.kept))
        ]

    def captured(self) -> Replay:
        """Return the losses and gradients as a graph, if need be with sums in any order."""
        try:
            return Replay(self.losses, DEVICE)
        except RuntimeError as error:
            warnings.warn(f"not in a fixed order: {error}", stacklevel=2)
            torch.use_deterministic_algorithms(False)
            return Replay(self.losses, DEVICE)

    def ahead(self, updates: int) -> Iterator[Weights]:
        """Yield the inputs of each update, drawn by a thread while the GPU works on the one before."""
        with ThreadPoolExecutor(max_workers=1) as thread:
            next_inputs = thread.submit(self.inputs, 0)
            for step in range(updates):
                inputs = next_inputs.result()
                next_inputs = thread.submit(self.inputs, min(step + 1, updates - 1))
                yield inputs

    def inputs(self, step: int) -> Weights:
        """Return the rows of each model's batch in an update, and what all models share."""
        train, seed = self.recipe.train, self.recipe.seed
        rows = [
            kept[batch_rows(seed, "train", step, num_images=len(kept), batch_size=train.batch_size)]
            for kept in self.kept
        ]
        draws = draw_update(self.model.process, self.images, train, seed=seed, step=step)
        told = {name: tensor for name, tensor in draws.condition.items() if name not in self.condition}
        shared = {"noise": draws.noise, "level": draws.level, **told}
        return {"rows": torch.from_numpy(np.stack(rows)), **shared}

    def losses(self) -> Mapping[str, Tensor]:
        """Compute the loss of each model, and the gradients."""
        for value in self.live.values():
            assert value.grad is not None
            value.grad.zero_()
        rows = self.fixed["rows"]
        shared = {name: tensor for name, tensor in self.fixed.items() if name not in ("rows", "noise", "level")}
        condition = {name: tensor[rows] for name, tensor in self.condition.items()}

        def loss(weights: Weights, z: Tensor, own: Weights) -> Tensor:
            def denoiser(noisy: Tensor, level: Tensor, told: Any) -> Tensor:
                return functional_call(self.model, weights, (noisy, level, told))

            told = of_loss_inputs({**own, **shared})
            return denoising_loss(
                self.model.process, denoiser, z, self.fixed["noise"], self.fixed["level"], told
            ).mean()

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="There is a performance drop")
            losses = vmap(loss, randomness="same")(self.live, self.z[rows], condition)
        losses.sum().backward()
        return {"losses": losses.detach()}


def stack(value: Tensor, num: int) -> Tensor:
    """Return `num` copies of a tensor in one."""
    return value.detach()[None].expand(num, *value.shape).clone()


def model_of(recipe: Recipe, weights: Weights) -> DiffusionModel:
    """Return a trained model, frozen, on the device."""
    model = adapter(recipe.model).untrained(recipe.seed, torch.device("cpu"))
    assert model is not None
    model.network.load_state_dict(weights, strict=False)  # buffers are as they were
    return model.to(DEVICE).eval().requires_grad_(False)
