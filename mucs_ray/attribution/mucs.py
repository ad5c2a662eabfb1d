"""MUCS: mirrored unlearning (unlearn.py), then the noise-consistent skew of every training image (loss_change.py)."""

from collections.abc import Callable, Iterator

import torch

from mucs_ray.attribution.base import ItemState, MethodSettings, Passes, Tensors
from mucs_ray.attribution.card import MethodStage
from mucs_ray.attribution.cards.mucs import CARD, MUCSConfig
from mucs_ray.attribution.loss_change import LossAttributor
from mucs_ray.attribution.unlearn import changed_names, null_loss, unlearn
from mucs_ray.diffusion.batch import Batch, Item
from mucs_ray.diffusion.model import DiffusionModel
from mucs_ray.models.adapters import adapter

NULL_BATCH = 100
EXPECTED_UPDATES = 109
"""Unlearning updates an item that the paper saw on COCO (spec 7.2)."""


class MUCS(LossAttributor):
    """Unlearn the item, bounded by the null loss, and see whose loss moves with it on the same noise (spec 7)."""

    card = CARD
    config: MUCSConfig

    @classmethod
    def passes(cls, stage: MethodStage, settings: MethodSettings, *, num_images: int, num_items: int) -> Passes:
        """Unlearning as long as the paper saw it take; the true number of updates is known only afterwards."""
        config: MUCSConfig = cls.config_in(settings)
        if stage.hook == "fit":
            return Passes(forwards=NULL_BATCH * config.null_batches if config.null_loss == "auto" else 0)
        if stage.hook == "fit_item":
            return Passes(backwards=num_items * (config.fixed_updates or EXPECTED_UPDATES) * 2 * config.batch_size)
        return super().passes(stage, settings, num_images=num_images, num_items=num_items)

    @classmethod
    def changed_names(cls, model: DiffusionModel, config: MUCSConfig) -> list[str]:
        """Those that unlearning changes."""
        return changed_names(model, config)

    def fit(self, sums: Tensors, rows: Iterator[Batch]) -> Tensors:
        """The null loss: given, from the mean square of the training pixels, or drawn (spec 7.1)."""
        config = self.config
        if isinstance(config.null_loss, float):
            bound = config.null_loss
        elif config.null_loss == "analytic":
            bound = self.context.model.process.null_loss(mean_square(rows))
        else:
            bound = self.drawn_null_loss(config.null_batches)
        return {"null_loss": torch.tensor(bound, dtype=torch.float64)}

    def drawn_null_loss(self, num_batches: int) -> float:
        """With the weights that training starts from."""
        context = self.context
        assert context.batches is not None
        first = adapter(context.settings.model).untrained(context.settings.seed, context.device)
        assert first is not None, "a model that cannot be trained has no null loss that could be drawn"
        batches = context.batches("null", min(NULL_BATCH, context.num_images))
        return null_loss(first, batches, num_batches=num_batches, seed=context.settings.seed)

    def fit_item(self, item: Item, fitted: Tensors, on_update: Callable[[int, float], None]) -> ItemState:
        """F2: the tensors that unlearning changed, and the trace of losses."""
        context, config = self.context, self.config
        assert context.batches is not None
        bound = fitted["null_loss"].item()
        unlearned = unlearn(
            context.model,
            item,
            context.batches(f"unlearn/item={item.idx}", min(config.batch_size, context.num_images)),
            bound=bound,
            config=config,
            learning_rate=context.settings.train.learning_rate / config.learning_rate_divisor,
            seed=context.settings.seed,
            on_update=on_update,
        )
        facts = {
            "outcome": unlearned.outcome,
            "updates": unlearned.updates,
            "null_loss": bound,
            "target": (1 - config.tolerance) * bound,
            "item_loss": unlearned.item_loss,
            "train_loss": unlearned.train_loss,
        }
        return ItemState(tensors=unlearned.tensors, facts=facts)


def mean_square(rows: Iterator[Batch]) -> float:
    """Of all elements of the training images."""
    total, count = 0.0, 0
    for batch in rows:
        total, count = total + batch.z.double().square().sum().item(), count + batch.z.numel()
    return total / count
