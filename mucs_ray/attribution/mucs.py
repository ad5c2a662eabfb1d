"""MUCS unlearns each item (unlearn.py), then takes the noise-consistent skew of each image (loss_change.py)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import torch

from mucs_ray.attribution.base import ItemState, MethodSettings, Passes, Tensors
from mucs_ray.attribution.card import MethodStage
from mucs_ray.attribution.cards.mucs import CARD, MUCSConfig
from mucs_ray.attribution.loss_change import LossAttributor, Losses
from mucs_ray.attribution.retention import every_image, images_like, with_matched
from mucs_ray.attribution.trajectory import Trajectory, trajectory_of
from mucs_ray.attribution.unlearn import (
    EXPECTED_UPDATES,
    MINUS,
    UPDATES,
    LevelBound,
    changed_names,
    draws_name,
    model_tensors,
    null_loss,
    unlearn,
)
from mucs_ray.diffusion.batch import Batch, Item
from mucs_ray.diffusion.model import DiffusionModel
from mucs_ray.diffusion.process import Process
from mucs_ray.errors import InputError
from mucs_ray.models.adapters import adapter

ResolvedBound = Literal["drawn", "linear", "zero-output", "zero-output by level"]
NULL_BATCH = 100


class MUCS(LossAttributor):
    """MUCS unlearns the item, bounded by the null loss, and scores by whose loss moves with it on the same noise (spec
    7).
    """

    card = CARD
    config: MUCSConfig

    @classmethod
    def passes(cls, stage: MethodStage, settings: MethodSettings, *, num_images: int, num_items: int) -> Passes:
        """Count unlearning as long as the paper saw it take; the true number of updates is known only afterwards."""
        config: MUCSConfig = cls.config_in(settings)
        if stage.hook == "fit":
            drawn = resolve_bound(config, settings) == "drawn"
            return Passes(forwards=NULL_BATCH * config.null_batches if drawn else 0)
        models = num_items * (2 if config.antithetic else 1)
        if stage.hook == "fit_item":
            return Passes(backwards=models * (config.fixed_updates or EXPECTED_UPDATES) * 2 * config.batch_size)
        return super().passes(stage, settings, num_images=num_images, num_items=models)

    @classmethod
    def changed_names(cls, model: DiffusionModel, config: MUCSConfig) -> list[str]:
        """Return the names of the tensors that unlearning changes."""
        return changed_names(model, config)

    def fit(self, sums: Tensors, rows: Iterator[Batch]) -> Tensors:
        """Return the bound of the ascent, averaged over levels (spec 7.1).

        For a bound at each level it also returns the mean square of the training images, from which that follows.
        """
        fitted: dict[str, float]
        match resolve_bound(self.config, self.context.settings):
            case "drawn":
                fitted = {"null_loss": self.drawn_null_loss(self.config.null_batches)}
            case "zero-output":
                fitted = {"null_loss": self.process.zero_output_loss(mean_square(rows))}
            case "linear":
                v = mean_square(rows)
                fitted = {"null_loss": self.process.null_loss(v), "second_moment": v}
            case "zero-output by level":
                v = mean_square(rows)
                fitted = {"null_loss": self.process.zero_output_loss(v), "second_moment": v}
            case number:
                fitted = {"null_loss": number}
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in fitted.items()}

    @property
    def process(self) -> Process:
        """Return the process of the model, which can be had without its weights."""
        context = self.context
        model = context.denoiser or adapter(context.settings.model).model(torch.device("meta"))
        return model.process

    def level_bound(self, fitted: Tensors) -> LevelBound | None:
        """Return the bound as a function of the level, or None if it is the same at all levels."""
        if "second_moment" not in fitted:
            return None
        linear = resolve_bound(self.config, self.context.settings) == "linear"
        bound = self.process.linear_bound if linear else self.process.zero_output_bound
        return partial(bound, mean_square=fitted["second_moment"].item())

    def drawn_null_loss(self, num_batches: int) -> float:
        """Return the mean loss of the weights that training starts from. It raises InputError if the model has none."""
        context = self.context
        assert context.batches is not None
        first = adapter(context.settings.model).untrained(context.settings.seed, context.device)
        if first is None:
            raise InputError(
                f"method.mucs.bound is drawn from untrained weights, and model.kind {context.settings.model.kind} has"
                ' none; set it to "linear"'
            )
        batches = context.batches("null", min(NULL_BATCH, context.num_images))
        return null_loss(first, batches, num_batches=num_batches, seed=context.settings.seed)

    def fit_item(self, item: Item, fitted: Tensors, on_update: Callable[[int, float], None]) -> ItemState:
        """Return F2, as the tensors that unlearning changed, and the trace of losses."""
        context, config = self.context, self.config
        bound = fitted["null_loss"].item()
        change = partial(
            unlearn,
            context.model,
            item,
            self.training_batches(item),
            bound=bound,
            level_bound=self.level_bound(fitted),
            trajectory=self.trajectory(item),
            learning_rate=context.settings.train.learning_rate / config.learning_rate_divisor,
            seed=context.settings.seed,
        )
        unlearned = change(config=config, on_update=on_update)
        facts = {
            "outcome": unlearned.outcome,
            "updates": unlearned.updates,
            "null_loss": bound,
            "target": (1 - config.tolerance) * bound,
            "item_loss": unlearned.item_loss,
            "train_loss": unlearned.train_loss,
        }
        tensors = unlearned.tensors
        if config.draws == "common":  # a control makes as many
            tensors = {**tensors, UPDATES: torch.tensor(unlearned.updates)}
        if config.antithetic:
            other_way = replace(
                config, ascent_weight=-config.ascent_weight, clamp=False, fixed_updates=unlearned.updates
            )
            opposite = change(config=other_way) if unlearned.updates else unlearned
            tensors = {**tensors, **{f"{MINUS}{name}": tensor for name, tensor in opposite.tensors.items()}}
        return ItemState(tensors=tensors, facts=facts)

    def trajectory(self, item: Item) -> Trajectory | None:
        """Return what the sampler visited, if some draws are to be from there."""
        share = self.config.trajectory
        return trajectory_of(self.context.model, item, self.context.settings, share) if share else None

    def load(self, fitted: Tensors, item_states: Sequence[Tensors]) -> None:
        """Set up the bank of all F2, and behind them that of all models that were changed the other way."""
        opposite = [model_tensors(tensors, MINUS) for tensors in item_states] if self.config.antithetic else []
        super().load(fitted, [*item_states, *opposite])

    def compared(self, losses: Losses) -> Losses:
        """Return the losses before and after unlearning, or of the models that were changed either way."""
        if not self.config.antithetic:
            return losses
        unlearned, opposite = losses.after.chunk(2)
        return Losses(before=opposite, after=unlearned)

    def training_batches(self, item: Item) -> Callable[[int], Batch]:
        """Return the training images of each update, of which a share has the item's condition if that is asked for."""
        context, config = self.context, self.config
        assert context.batches is not None
        name, size = draws_name(item, config), min(config.batch_size, context.num_images)
        batches = context.batches(name, size)
        if not config.retention:
            return batches
        matched = images_like(item, every_image(context, f"{name}/matched"))
        return with_matched(batches, matched, config.retention, seed=context.settings.seed, name=name)


def resolve_bound(config: MUCSConfig, settings: MethodSettings) -> ResolvedBound | float:
    """Return the bound to use for a model of this kind, in place of "auto" and "by-level"."""
    match config.bound:
        case "auto":
            return settings.model.bound
        case "by-level":
            return "zero-output by level" if settings.model.bound == "drawn" else "linear"
        case bound:
            return bound


def mean_square(rows: Iterator[Batch]) -> float:
    """Return the mean square of all elements of the training images."""
    total, count = 0.0, 0
    for batch in rows:
        total, count = total + batch.z.double().square().sum().item(), count + batch.z.numel()
    return total / count
