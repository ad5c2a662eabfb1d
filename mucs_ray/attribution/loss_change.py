"""This module measures how far each unlearned model moved the loss of each training image, for all items in one pass.

F2 of an item differs from F1 only in the unlearned tensors, so a bank of those beside one resident network is all the
models of a run; the losses of F1 are computed once for all items. The methods that unlearn share it (spec 7.3, 8).

Axes: b training images, i items, n noises.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mucs_ray.attribution.base import Attributor, Columns, MethodSettings, Passes, Tensors
from mucs_ray.attribution.card import MethodStage
from mucs_ray.attribution.config import Measure, ScoreConfig
from mucs_ray.attribution.finite import require_finite
from mucs_ray.attribution.first_losses import FirstLosses
from mucs_ray.attribution.matched_filter import matched_weights
from mucs_ray.attribution.model_bank import ModelBank
from mucs_ray.attribution.skew import epsilon_at, normalized_skew, skews
from mucs_ray.attribution.unlearn import tensor_bytes
from mucs_ray.diffusion.batch import Batch, Item
from mucs_ray.diffusion.condition import for_each, moved
from mucs_ray.diffusion.levels import kept_share
from mucs_ray.diffusion.model import DiffusionModel
from mucs_ray.diffusion.noise import NoiseSet, generator
from mucs_ray.diffusion.process import Process


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """This is the loss table of a batch: before unlearning, and after unlearning each item."""

    before: Float[Tensor, "b n"] | Float[Tensor, "i b n"]
    """Under F1, or under what each item's F2 is compared with."""
    after: Float[Tensor, "i b n"]


class LossChange:
    """This holds F1, the noise set, and the tensors of every F2."""

    def __init__(
        self,
        denoiser: DiffusionModel,
        bank: Sequence[Mapping[str, Tensor]],
        *,
        config: ScoreConfig,
        seed: int,
        captures: bool = False,
        on_progress: Callable[[], None] = lambda: None,
        first_losses: FirstLosses | None = None,
        num_banks: int = 1,
    ) -> None:
        """Set up the models and the noises. `denoiser` is F1, in eval mode on its device; `bank` holds the changed
        tensors of each item, on any device.

        `first_losses` are those that others with the same F1 have computed; `num_banks` share the device's memory.
        """
        self.models = ModelBank(denoiser, bank, config, captures=captures, on_progress=on_progress, num_banks=num_banks)
        self.first_losses = first_losses
        self.forwards = 0
        """The forward passes of the last call of `losses`."""
        self.num_items = len(bank)
        self.config = config
        self.seed = seed
        self.process, self.shape = denoiser.process, denoiser.shape
        self.device = next(denoiser.parameters()).device
        self.shared = None
        self.weights: Float[Tensor, "i n"] | None = None
        """How much each noise counts for each item; None means evenly."""
        self.keep = kept_share(
            self.process, max(1, num_scheduled(config)), keep=config.keep, lowest_sigma=config.lowest_sigma
        )
        levels = scored_levels(self.process, config, seed)
        self.epsilon = epsilon_at(self.process, levels, config.epsilon).to(self.device)
        """The epsilon of the skew's denominator, noise by noise; with independent noises its mean is used."""
        if config.noise == "shared":
            self.shared = NoiseSet.draw(seed, "score/noise", levels, self.shape).to(self.device)

    @property
    def shared_noises(self) -> NoiseSet:
        """Return the noises that all images share, for a method that needs them to be shared."""
        assert self.shared is not None, "score.noise must be shared"
        return self.shared

    def losses(self, batch: Batch) -> Losses:
        """Return the losses of a batch under all models.

        It raises RunFailed, naming the image, if a loss is not finite.
        """
        if self.shared is None:
            cuts = (batch[at : at + 1] for at in range(len(batch)))
            table = torch.cat([self._independent(one) for one in cuts], dim=1)
            self.forwards = table.numel()
        else:  # all models on the same noises; F1 only if nobody has computed its losses of this batch
            first = self.first_losses.find(batch, self.first_key) if self.first_losses else None
            table = self.models.losses(batch, self.shared, range(first is not None, 1 + self.num_items))
            self.forwards = table.numel()
            if first is not None:
                table = torch.cat([first, table])
            elif self.first_losses:
                self.first_losses.keep(batch, self.first_key, table[:1])
        require_finite_losses(table, batch)
        return Losses(before=table[0], after=table[1:])

    def skew(self, losses: Losses) -> Float[Tensor, "b i"]:
        """Return normalised skews [b, i] on the CPU, in (-1, 1); higher means more influential (spec 7.3).

        With independent noise the losses of a model are averaged first, and the skew is that of the averages (spec 8,
        S-C2): one pair of losses has nothing in common but the image.
        """
        before, after, epsilon = losses.before, losses.after, self.epsilon
        if self.shared is None:
            before, after, epsilon = before.mean(dim=-1, keepdim=True), after.mean(dim=2, keepdim=True), epsilon.mean()
        weights = [None] * len(after) if self.weights is None else list(self.weights)
        columns = [
            normalized_skew(before_item, after_item, epsilon=epsilon, weights=own)
            for before_item, after_item, own in zip(before.expand_as(after), after, weights, strict=True)
        ]
        return torch.stack(columns, dim=1).cpu()

    def own_skews(self, items: Sequence[Item]) -> Float[Tensor, "i n"]:
        """Return the skew of each item under its own F2, at the shared noises."""
        rows = []
        for number, item in enumerate(items):
            condition = for_each(moved(item.condition, self.device), 1)
            alone = Batch(idx=torch.tensor([item.idx]), z=item.z[None].to(self.device), condition=condition)
            table = self.models.losses(alone, self.shared_noises, [0, 1 + number])
            require_finite(table.transpose(0, 1), [item.idx], f"item {number}: the loss of the generated image")
            rows.append(skews(table[0, 0], table[1, 0], epsilon=self.epsilon))
        return torch.stack(rows)

    def difference(self, losses: Losses) -> Float[Tensor, "b i"]:
        """Return the mean loss after minus the mean loss before, on the CPU; higher means more influential (spec 8,
        S-C1).
        """
        return (losses.after - losses.before).mean(dim=2).T.cpu()

    @property
    def first_key(self) -> tuple[Any, ...]:
        """Return what F1's losses on the shared noises depend on, to the last bit, beside F1 and the batch."""
        config, models = self.config, self.models
        noises = (self.seed, self.shape, config.sigmas, config.keep, config.noises)
        return *noises, models.precision, config.compile, config.images_per_forward

    def _independent(self, image: Batch) -> Float[Tensor, "m 1 n"]:
        """Return the losses of one image under each model, on draws of its own."""
        idx, names = int(image.idx), ["before", *(f"item={number}" for number in range(self.num_items))]
        tables = [self.models.losses(image, self._own_noises(idx, name), [n]) for n, name in enumerate(names)]
        return torch.cat(tables)

    def _own_noises(self, idx: int, model: str) -> NoiseSet:
        """Draw levels and noise that belong to one image and one model."""
        name = f"score/idx={idx}/{model}"
        stream = generator(self.seed, f"{name}/sigma")
        scheduled, process = num_scheduled(self.config), self.process
        parts = [process.scoring_levels(scheduled, self.keep, stream)] if scheduled else []
        if scheduled < self.config.noises:
            parts.append(process.training_levels(stream, self.config.noises - scheduled))
        levels = torch.cat(parts)
        return NoiseSet.draw(self.seed, f"{name}/noise", levels, self.shape).to(self.device)


def scored_levels(process: Process, config: ScoreConfig, seed: int) -> Float[Tensor, " n"]:
    """Return the levels that all images share: of the sampler's schedule, drawn once as in training, or both."""
    if config.sigmas == "training":
        return process.training_levels(generator(seed, "score/sigma"), config.noises)
    scheduled = num_scheduled(config)
    keep = kept_share(process, scheduled, keep=config.keep, lowest_sigma=config.lowest_sigma)
    return torch.cat([process.scoring_levels(scheduled, keep), process.training_quantiles(config.noises - scheduled)])


def num_scheduled(config: ScoreConfig) -> int:
    """Return how many of the levels are on the sampler's schedule."""
    return {"schedule": config.noises, "training": 0, "both": config.noises - config.noises // 2}[config.sigmas]


class LossAttributor(Attributor):
    """A method of this kind unlearns each item and scores an image by how its loss changed; subclasses define how to
    unlearn.
    """

    places_item_states = True

    @classmethod
    def changed_names(cls, model: DiffusionModel, config: Any) -> list[str]:  # noqa: ANN401 - the card's `config_class`
        """Return the names of the tensors that `fit_item` makes, for `mucs-ray plan`; by default there are none to
        speak of.
        """
        return []

    def load(self, fitted: Tensors, item_states: Sequence[Tensors]) -> None:
        """Set up the bank of all F2."""
        settings = self.context.settings
        self.change = LossChange(
            self.context.model,
            item_states,
            config=settings.score,
            seed=settings.seed,
            captures=self.context.captures,
            on_progress=self.context.on_progress,
            first_losses=self.context.first_losses,
            num_banks=self.context.num_methods,
        )
        weights = settings.score.weights
        if weights != "even" and settings.score.noise == "shared":
            self.change.weights = matched_weights(self.change.own_skews(self.context.items), weights)

    @classmethod
    def passes(cls, stage: MethodStage, settings: MethodSettings, *, num_images: int, num_items: int) -> Passes:
        """Count a forward of F1 and of every F2 on every noise, for scoring, and those of an item's own two models."""
        own = 0 if settings.score.weights == "even" else 2 * num_items * settings.score.noises
        return Passes(forwards=num_images * settings.score.noises * (1 + num_items) + own)

    @classmethod
    def written_bytes(
        cls, stage: MethodStage, settings: MethodSettings, *, model: DiffusionModel, num_images: int, num_items: int
    ) -> int:
        """Count skew and difference of every image for every item, and on request the losses in fp16; before that the
        tensors in which each item's F2 differs.
        """
        if stage.hook == "fit_item":
            return num_items * tensor_bytes(model, cls.changed_names(model, cls.config_in(settings)))
        if stage.hook != "score":
            return 0
        losses = 2 * num_images * settings.score.noises * (1 + num_items) if settings.score.keep_losses else 0
        return 8 * num_images * num_items + losses

    def forwards(self, columns: Columns) -> int:
        """Return the forwards of every F2 on every noise, and of F1 unless another method had computed its losses."""
        return self.change.forwards

    def score(self, rows: Batch) -> Float[Tensor, "b i"]:
        """Return the scores by the measure that `rank.measure` names."""
        return select_measure(self.columns(rows), self.context.settings.rank.measure)

    def compared(self, losses: Losses) -> Losses:
        """Return which losses are compared, of those of F1 and of every model in the bank; by default, F1's with all
        others.
        """
        return losses

    def columns(self, rows: Batch) -> Columns:
        """Return skew[items] and difference[items], so that either can be ranked, and on request the losses in fp16."""
        losses = self.compared(self.change.losses(rows))
        columns = {"skew": self.change.skew(losses), "difference": self.change.difference(losses)}
        if self.change.config.keep_losses:
            columns["before"] = fp16(losses.before if losses.before.ndim == 2 else by_image(losses.before))
            columns["after"] = fp16(by_image(losses.after))
        return columns


def by_image(losses: Float[Tensor, "i b n"]) -> Float[Tensor, "b i*n"]:
    """Return a row of all items' losses for each image."""
    return losses.transpose(0, 1).flatten(1)


def fp16(losses: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
    """Return losses in fp16 on the CPU; one that is too large, after an ascent without bounds, becomes fp16's largest
    number.
    """
    return losses.clamp(max=torch.finfo(torch.float16).max).half().cpu()


def require_finite_losses(table: Float[Tensor, "m b n"], batch: Batch) -> None:
    """Raise RunFailed, naming the image, if a loss is not finite."""
    require_finite(table.transpose(0, 1), batch.idx, "the loss of training image")


def select_measure(columns: Columns, measure: Measure) -> Float[Tensor, "b i"]:
    """Return the scores that a measure makes of the stored columns."""
    return columns["difference"].abs() if measure == "absolute" else columns[measure]
