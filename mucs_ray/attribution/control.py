"""MUCS against a control: a model that made the same updates on the same draws, but with no item to unlearn.

Updates alone move the losses of all images, also without an ascent, and the skew against F1 has that drift in it as a
hub. The control F2^0 descends on the same batches, levels and noise as every F2 with lambda = 0, for the median number
of the items' updates; the score is the skew of F2 against F2^0.

Axes: b training images, i items, n noises.
"""

from collections.abc import Sequence
from dataclasses import replace
from statistics import median_low

from mucs_ray.attribution.base import MethodSettings, Passes, Tensors
from mucs_ray.attribution.card import MethodStage
from mucs_ray.attribution.cards.control import CARD
from mucs_ray.attribution.cards.mucs import MUCSConfig
from mucs_ray.attribution.loss_change import LossAttributor, Losses
from mucs_ray.attribution.unlearn import COMMON, EXPECTED_UPDATES, UPDATES, changed_names, unlearn


class ControlledMUCS(LossAttributor):
    """This is MUCS with a control in the place of F1."""

    card = CARD
    config: MUCSConfig

    @classmethod
    def passes(cls, stage: MethodStage, settings: MethodSettings, *, num_images: int, num_items: int) -> Passes:
        """Count the updates of the control, and one model more than the items when scoring."""
        if stage.hook == "fit_together":
            config: MUCSConfig = cls.config_in(settings)
            return Passes(backwards=(config.fixed_updates or EXPECTED_UPDATES) * 2 * config.batch_size)
        return super().passes(stage, settings, num_images=num_images, num_items=num_items + 1)

    def fit_together(self, fitted: Tensors, item_states: Sequence[Tensors]) -> Tensors:
        """Return the control's tensors.

        Its updates are those of an unlearning whose ascent has no weight, so that it does not matter of which item.
        """
        context = self.context
        assert context.batches is not None
        updates = median_low([int(tensors[UPDATES]) for tensors in item_states])
        if not updates:  # the items were unlearned from the start
            names = changed_names(context.model, self.config)
            return {name: context.model.network.get_parameter(name).detach().clone() for name in names}
        return unlearn(
            context.model,
            context.items[0],
            context.batches(COMMON, min(self.config.batch_size, context.num_images)),
            bound=fitted["null_loss"].item(),
            config=replace(self.config, ascent_weight=0.0, fixed_updates=updates),
            learning_rate=context.settings.train.learning_rate / self.config.learning_rate_divisor,
            seed=context.settings.seed,
        ).tensors

    def load(self, fitted: Tensors, item_states: Sequence[Tensors]) -> None:
        """Set up the bank of the control and all F2."""
        super().load({}, [fitted, *item_states])

    def compared(self, losses: Losses) -> Losses:
        """Return the losses under the control, and after unlearning each item."""
        return Losses(before=losses.after[0], after=losses.after[1:])
