"""Forward-INF ascends on the item alone, and then scores by whose loss moved (spec 9.7).

Unlike MUCS it neither holds on to the training set nor bounds the ascent, and all weights move.
"""

from collections.abc import Callable

import torch

from mucs_ray.attribution.base import ItemState, MethodSettings, Passes, Tensors
from mucs_ray.attribution.card import MethodStage
from mucs_ray.attribution.cards.forward_inf import CARD, ForwardINFConfig
from mucs_ray.attribution.loss_change import LossAttributor
from mucs_ray.attribution.unlearn import item_losses, require_finite_loss
from mucs_ray.diffusion.batch import Item
from mucs_ray.diffusion.model import DiffusionModel
from mucs_ray.training.ema import frozen_copy


class ForwardINF(LossAttributor):
    """Forward-INF takes a few AdamW steps up the item's loss, and scores by the mean change of each training image's
    loss.
    """

    card = CARD
    config: ForwardINFConfig

    @classmethod
    def passes(cls, stage: MethodStage, settings: MethodSettings, *, num_images: int, num_items: int) -> Passes:
        """Count the passes of the ascent, and of scoring, which is as for MUCS."""
        config: ForwardINFConfig = cls.config_in(settings)
        if stage.hook == "fit_item":
            return Passes(backwards=num_items * config.updates * config.draws)
        return super().passes(stage, settings, num_images=num_images, num_items=num_items)

    @classmethod
    def changed_names(cls, model: DiffusionModel, config: ForwardINFConfig) -> list[str]:
        """Return the names of all tensors."""
        return model.names("all")

    def fit_item(self, item: Item, fitted: Tensors, on_update: Callable[[int, float], None]) -> ItemState:
        """Return all tensors of F2, and the item's mean loss before each update and at the end, each on its own draws.

        It raises RunFailed, naming the item, if a loss is not finite.
        """
        settings, config = self.context.settings, self.config
        changed = frozen_copy(self.context.model).requires_grad_(True)  # eval mode: no dropout, no condition drop
        rate = settings.train.learning_rate / config.learning_rate_divisor
        optimizer = torch.optim.AdamW(changed.parameters(), lr=rate, weight_decay=0.0, fused=True)
        trace: list[float] = []
        for step in range(config.updates + 1):
            name = f"forward-inf/item={item.idx}/step={step}"
            losses = item_losses(changed, item, config.draws, seed=settings.seed, name=name)
            require_finite_loss(losses, item, step)
            trace.append(losses.mean().item())
            on_update(step, trace[-1])
            if step < config.updates:
                optimizer.zero_grad(set_to_none=True)
                (-losses.mean()).backward()
                optimizer.step()
        tensors = {name: parameter.detach() for name, parameter in changed.network.named_parameters()}
        return ItemState(tensors=tensors, facts={"outcome": "fixed", "updates": config.updates, "item_loss": trace})
