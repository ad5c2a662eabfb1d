"""Screening gives MUCS' exact scores to the images that can be in the top-k, and predictions to the rest.

It takes a fraction of the forwards. A random sample of the training images is scored in full. From it follow bounds
(screening.py): an image whose predicted score is below its item's bound after a tenth of the noises, or after three
tenths, is left out for that item.

Axes: b images, i items, n noises.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mucs_ray.attribution.base import Columns, MethodSettings, Passes, Tensors
from mucs_ray.attribution.card import MethodStage
from mucs_ray.attribution.cards.screen import CARD, ScreenConfig
from mucs_ray.attribution.loss_change import LossAttributor, require_finite_losses
from mucs_ray.attribution.ranking import list_length, tie_break
from mucs_ray.attribution.screening import Round, held_out, learn, noise_counts, van_der_corput_order
from mucs_ray.attribution.skew import skews
from mucs_ray.diffusion.batch import Batch

LEFT_OUT = 2.0
"""This is subtracted from the prediction for an image that was left out: skews are in (-1, 1), so all such scores are
below all exact ones.
"""
BOUNDS = ("weights", "constant", "threshold")
GUESSED_SHARE = 0.3
"""The share of forwards after the first round, for `mucs-ray plan`; the true one is known once the sample is scored."""


class ScreenedMUCS(LossAttributor):
    """This is MUCS by successive halving over the noises."""

    card = CARD
    config: ScreenConfig

    @classmethod
    def passes(cls, stage: MethodStage, settings: MethodSettings, *, num_images: int, num_items: int) -> Passes:
        """Count the sample in full, then all images on the noises of the first round, and a guessed share on the
        others.
        """
        config: ScreenConfig = cls.config_in(settings)
        per_image = settings.score.noises * (1 + num_items)
        first = config.rounds[0]
        forwards = {
            "sample": min(num_images, config.sample) * per_image,
            "score": round(num_images * per_image * (first + GUESSED_SHARE * (1 - first))),
        }
        return Passes(forwards=forwards.get(stage.hook, 0))

    @classmethod
    def expectation(cls, facts: Mapping[str, float]) -> str:
        """Return a sentence on the share of the top-k that is found, and for which share of the forwards."""
        low, high = facts["recall_low"], facts["recall_high"]
        return (
            f"finds {facts['recall']:.1%} of the top-k (95 % interval {low:.1%} to {high:.1%}, on held-out images of a"
            f" sample of {facts['sample']:,.0f}) for {facts['share_of_forwards']:.0%} of the forwards"
        )

    def in_sample(self, idx: np.ndarray) -> Bool[np.ndarray, " b"]:
        """Return the sample, which has each image with the same probability, whatever other images there are."""
        share = min(1.0, self.config.sample / self.context.num_images)
        return tie_break(idx, self.context.settings.seed, "screen/sample") <= share * float(2**64 - 1)

    def sample(self, batch: Batch) -> Columns:
        """Return every skew of these images."""
        losses = self.change.losses(batch)
        table = skews(losses.before[:, None], losses.after.transpose(0, 1), epsilon=self.change.epsilon)
        return {"skews": table.flatten(1).cpu()}

    def fit_screen(self, rows: Iterator[Any]) -> Tensors:
        """Return the bounds and what to expect of them, from the skews of the sample, [b, i n].

        The bounds are weights [r, n], and constants and thresholds [r, i] of the rounds.
        """
        settings = self.context.settings
        table = torch.cat([columns["skews"].cpu() for columns in rows]).numpy()
        table = table.reshape(len(table), -1, settings.score.noises)
        num = self.context.num_images
        arguments: dict[str, Any] = {
            "top_share": list_length(num, settings.rank) / num,
            "counts": noise_counts(settings.score.noises, self.config.rounds),
            "recall": self.config.recall,
        }
        rounds, expected = learn(table, **arguments), held_out(table, **arguments)
        facts = {"recall": expected.recall, "recall_low": expected.low, "recall_high": expected.high}
        facts |= {"share_of_forwards": expected.share, "sample": len(table), "tops": expected.tops}
        return {
            **{name: torch.from_numpy(np.asarray([getattr(bounds, name) for bounds in rounds])) for name in BOUNDS},
            **{name: torch.tensor(float(value), dtype=torch.float64) for name, value in facts.items()},
        }

    def load(self, fitted: Tensors, item_states: Sequence[Tensors]) -> None:
        """Set up the bank of all F2, and the bounds if they are known."""
        super().load(fitted, item_states)
        if "threshold" in fitted:
            columns = [fitted[name].cpu().numpy() for name in BOUNDS]
            self.rounds = [Round(**dict(zip(BOUNDS, values, strict=True))) for values in zip(*columns, strict=True)]

    def columns(self, rows: Batch) -> Columns:
        """Return score[items], and the number of noises[items] that it is from.

        The score is the skew, or for an image that was left out its prediction - 2, which is below every skew.
        """
        num_noises = self.change.config.noises
        order, counts = van_der_corput_order(num_noises), noise_counts(num_noises, self.config.rounds)
        table = np.zeros((len(rows), self.change.num_items, num_noises), dtype=np.float32)
        remaining = np.ones(table.shape[:2], dtype=bool)
        used, score = np.zeros(table.shape[:2], dtype=np.int16), np.zeros(table.shape[:2], dtype=np.float32)
        for number, (start, stop) in enumerate(zip([0, *counts], counts, strict=False)):
            self.measure(rows, remaining, np.sort(order[start:stop]), table)
            used[remaining] = stop
            if number < len(self.rounds):
                predicted, before = self.rounds[number].predict(table), remaining.copy()
                remaining &= predicted >= self.rounds[number].threshold
                score[before & ~remaining] = predicted[before & ~remaining] - LEFT_OUT
        score[remaining] = torch.from_numpy(table).mean(dim=2).numpy()[remaining]
        return {"score": torch.from_numpy(score), "noises": torch.from_numpy(used)}

    def measure(self, rows: Batch, remaining: Bool[np.ndarray, "b i"], at: np.ndarray, table: np.ndarray) -> None:
        """Fill in the skews at these noises, of the images that are not left out for an item."""
        noises, models = self.change.shared_noises[torch.from_numpy(at)], self.change.models
        if remaining.all():
            losses = models.losses(rows, noises)
        else:
            losses = rows.z.new_zeros(1 + remaining.shape[1], len(rows), len(at))
            for number, rows_left in enumerate([remaining.any(axis=1), *remaining.T]):
                positions = torch.from_numpy(np.flatnonzero(rows_left))
                losses[number, positions.to(losses.device)] = models.losses(rows[positions], noises, [number])[0]
        require_finite_losses(losses, rows)
        measured = skews(losses[0], losses[1:], epsilon=self.change.epsilon[torch.from_numpy(at)])
        table[:, :, at] = measured.transpose(0, 1).cpu().numpy()

    def score(self, rows: Batch) -> Float[Tensor, "b i"]:
        """Return scores that are exact where they can matter for the top-k."""
        return self.columns(rows)["score"]

    def forwards(self, columns: Columns) -> int:
        """Count F2 as often as there were noises for an item, and F1 as often as for any item."""
        used = columns.get("noises")
        if used is None:
            return super().forwards(columns)
        return int(used.sum() + used.amax(dim=1).sum())
