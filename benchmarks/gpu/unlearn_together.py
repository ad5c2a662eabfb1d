"""The unlearning of all items at once: what mucs_ray.attribution.unlearn does for one, on a stack of their weights.

An item whose test is passed keeps the weights of that update; the others go on.

Axes: i items, b draws, *shape of an image.
"""

import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from common import DEVICE
from together import stack
from torch import Tensor
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from mucs_ray.attribution.base import ItemState
from mucs_ray.attribution.mucs import MUCS
from mucs_ray.attribution.unlearn import MINUS, UPDATES, changed_names, draws_name, noise_levels
from mucs_ray.data.local import LocalImages
from mucs_ray.diffusion.batch import Item
from mucs_ray.diffusion.condition import moved, stacked
from mucs_ray.diffusion.loss import denoising_loss
from mucs_ray.diffusion.noise import generator, normal
from mucs_ray.diffusion.replay import Replay
from mucs_ray.training.ema import frozen_copy
from mucs_ray.training.numerics import as_in_training
from mucs_ray.training.order import batch_rows

LOOK_EVERY = 8
"""The updates after which it is looked whether all items are done, which waits for the device."""
Draws = dict[str, Tensor]
DRAWN: dict[Any, Draws] = {}
"""The draws of an update by what they depend on, on the device; variants of a method share them."""


class Unlearnings:
    """All items of one run, unlearned by one method."""

    def __init__(self, worker: MUCS, images: LocalImages, items: Sequence[Item], fitted: Mapping[str, Tensor]) -> None:
        """Put all images and the stack of weights on the device."""
        context, self.config = worker.context, worker.config
        assert not self.config.retention and not self.config.trajectory and self.config.moments == "fresh", "not here"
        self.worker, self.images, self.items = worker, images, items
        self.seed, self.bound = context.settings.seed, fitted["null_loss"].item()
        self.level_bound = worker.level_bound(dict(fitted))
        everything = images.batch(np.arange(len(images)))
        self.z = everything.z.to(DEVICE)
        self.condition = {name: tensor.to(DEVICE) for name, tensor in everything.condition.items()}
        self.item_z = torch.stack([item.z for item in items]).to(DEVICE)
        self.item_condition = moved(stacked([item.condition for item in items]), DEVICE)
        self.model = frozen_copy(context.model)
        self.process = self.model.process
        self.rate = context.settings.train.learning_rate / self.config.learning_rate_divisor

    def run(self) -> list[ItemState]:
        """Return F2 of each item as the tensors that changed, and for "antithetic" those of the other way."""
        fixed = [self.config.fixed_updates] * len(self.items) if self.config.fixed_updates else None
        tensors, updates, told = self.unlearn(self.config.ascent_weight, clamp=self.config.clamp, fixed=fixed)
        states = [dict(own) for own in tensors]
        if self.config.draws == "common":
            states = [{**own, UPDATES: torch.tensor(count)} for own, count in zip(states, updates, strict=True)]
        if self.config.antithetic:
            opposite, _, _ = self.unlearn(-self.config.ascent_weight, clamp=False, fixed=updates)
            states = [
                own | {f"{MINUS}{name}": value for name, value in other.items()}
                for own, other in zip(states, opposite, strict=True)
            ]
        reached = (1 - self.config.tolerance) * self.bound
        return [
            ItemState(
                tensors=own,
                facts={
                    "outcome": "fixed" if fixed else "reached" if losses[-1] >= reached else "bound hit",
                    "updates": count,
                    "null_loss": self.bound,
                    "item_loss": losses,
                },
            )
            for own, count, losses in zip(states, updates, told, strict=True)
        ]

    def unlearn(
        self, ascent_weight: float, *, clamp: bool, fixed: Sequence[int] | None
    ) -> tuple[list[dict[str, Tensor]], list[int], list[list[float]]]:
        """Return (changed tensors, updates, the loss before each update and at the end), an entry for each item."""
        config, num = self.config, len(self.items)
        names = changed_names(self.model, config)
        weights = dict(self.model.network.named_parameters())
        self.live = {name: stack(weights[name], num).requires_grad_(True) for name in names}
        for value in self.live.values():
            value.grad = torch.zeros_like(value)
        optimizer = torch.optim.AdamW(
            list(self.live.values()), lr=self.rate, weight_decay=config.weight_decay, fused=True
        )
        self.ascent_weight, self.clamp = ascent_weight, clamp
        kept = {name: value.detach().clone() for name, value in self.live.items()}
        done = torch.zeros(num, dtype=torch.bool, device=DEVICE)
        limit = torch.tensor(fixed or [config.max_updates] * num, device=DEVICE)
        updates, told, replay = torch.zeros(num, dtype=torch.long, device=DEVICE), [], None
        with as_in_training(DEVICE), sdpa_kernel(SDPBackend.MATH):
            for step in range(int(limit.max()) + 1):
                draws = self.draws(step)
                if replay is None:
                    self.fixed = {name: tensor.clone() for name, tensor in draws.items()}
                    replay = Replay(self.losses, DEVICE)
                for name, tensor in draws.items():
                    self.fixed[name].copy_(tensor)
                losses = replay()["told"].clone()
                told.append(losses)
                over = step >= limit
                if fixed is None:
                    over = over | (losses >= (1 - config.tolerance) * self.bound)
                ends = over & ~done
                with torch.no_grad():
                    for name, value in kept.items():
                        here = ends.view(-1, *[1] * (value.ndim - 1))
                        torch.where(here, self.live[name], value, out=value)
                updates = torch.where(ends, step, updates)
                done = done | ends
                if step % LOOK_EVERY == 0 and bool(done.all()):
                    break
                optimizer.step()
        counts = updates.tolist()
        table = torch.stack(told, dim=1).tolist()
        tensors = [{name: value[number].clone() for name, value in kept.items()} for number in range(num)]
        return tensors, counts, [row[: count + 1] for row, count in zip(table, counts, strict=True)]

    def draws(self, step: int) -> Draws:
        """Return rows, levels and noise of all items in an update, on the device."""
        config, size = self.config, min(self.config.batch_size, len(self.images))
        names = [draws_name(item, config) for item in self.items]
        key = (self.seed, tuple(names), config.sigmas, size, step)
        if key not in DRAWN:
            with ThreadPoolExecutor(max_workers=3) as threads:
                of_items = list(threads.map(lambda name: self.draw(name, step, size), names))
            DRAWN[key] = {name: torch.stack([own[name] for own in of_items]).to(DEVICE) for name in of_items[0]}
        return DRAWN[key]

    def draw(self, name: str, step: int, size: int) -> Draws:
        """Return what an item draws for an update, as `mucs_ray.attribution.unlearn.measure` does."""
        rows = batch_rows(self.seed, name, step, num_images=len(self.images), batch_size=size)
        draws = {"rows": torch.from_numpy(rows)}
        for kind in ("train", "item"):
            stream = generator(self.seed, f"{name}/step={step}/{kind}")
            draws[f"{kind} level"] = noise_levels(self.process, stream, size, self.config.sigmas)
            draws[f"{kind} noise"] = normal(stream, size, *self.model.shape)
        return draws

    def losses(self) -> dict[str, Tensor]:
        """Compute the losses of all items, and the gradients."""
        for value in self.live.values():
            assert value.grad is not None
            value.grad.zero_()
        draws = self.fixed
        rows = draws["rows"]
        size = rows.shape[1]
        condition = {name: tensor[rows] for name, tensor in self.condition.items()}
        item_z = self.item_z[:, None].expand(-1, size, *self.item_z.shape[1:])
        item_condition = {
            name: value[:, None].expand(-1, size, *value.shape[1:]) for name, value in self.item_condition.items()
        }

        def one(weights: dict[str, Tensor], z: Tensor, told: Any, noise: Tensor, level: Tensor) -> Tensor:
            named = {f"network.{name}": value for name, value in weights.items()}

            def denoiser(noisy: Tensor, level: Tensor, condition: Any) -> Tensor:
                return functional_call(self.model, named, (noisy, level, condition))

            return denoising_loss(self.process, denoiser, z, noise, level, told)

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="There is a performance drop")
            of_models = vmap(one)
            train = of_models(self.live, self.z[rows], condition, draws["train noise"], draws["train level"])
            item = of_models(self.live, item_z, item_condition, draws["item noise"], draws["item level"])
        share: Tensor | float = 1.0
        if self.clamp and self.level_bound is None:
            item = item.clamp(max=self.bound)
        elif self.clamp and self.level_bound is not None:
            bound = self.level_bound(draws["item level"]).to(item)
            item, share = item.minimum(bound), self.bound / bound.mean(dim=1)
        item = item.mean(dim=1)
        (train.mean(dim=1) - self.ascent_weight * item).sum().backward()
        return {"told": (item * share).detach()}
