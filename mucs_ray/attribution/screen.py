"""MUCS for a fraction of the forwards: exact scores for the images that can be in the top-k, predictions for the rest.

A random sample of the training images is scored in full. From it follow bounds (screening.py): an image whose predicted
score is below its item's bound after a tenth of the noises, or after three tenths, is left out for that item.
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
from mucs_ray.attribution.ranking import tie_break, top_k
from mucs_ray.attribution.screening import Round, held_out, learn, noise_counts, van_der_corput_order
from mucs_ray.attribution.skew import skews
from mucs_ray.diffusion.batch import Batch

LEFT_OUT = 2.0
"""What is taken off the prediction for an image that was left out: a skew is in (-1, 1), so all of these are below all
exact ones."""
BOUNDS = ("weights", "constant", "threshold")
GUESSED_SHARE = 0.3
"""The share of forwards after the first round, for `mucs-ray plan`; the true one is known once the sample is scored."""


class ScreenedMUCS(LossAttributor):
    """MUCS by successive halving over the noises."""

    card = CARD
    config: ScreenConfig

    @classmethod
    def passes(cls, stage: MethodStage, settings: MethodSettings, *, num_images: int, num_items: int) -> Passes:
        """The sample in full, then all images on the noises of the first round, and a guessed share on the others."""
        config: ScreenConfig = cls.config_in(settings)
        whole = settings.score.noises * (1 + num_items)
        first = config.rounds[0]
        forwards = {
            "sample": min(num_images, config.sample) * whole,
            "score": round(num_images * whole * (first + GUESSED_SHARE * (1 - first))),
        }
        return Passes(forwards=forwards.get(stage.hook, 0))

    @classmethod
    def expectation(cls, facts: Mapping[str, float]) -> str:
        """The share of the top-k that is found, and for which share of the forwards."""
        low, high = facts["recall_low"], facts["recall_high"]
        return (
            f"finds {facts['recall']:.1%} of the top-k (95 % interval {low:.1%} to {high:.1%}, on held-out images of a"
            f" sample of {facts['sample']:,.0f}) for {facts['share_of_forwards']:.0%} of the forwards"
        )

    def in_sample(self, idx: np.ndarray) -> Bool[np.ndarray, " b"]:
        """Each image with the same probability, whatever else is there."""
        share = min(1.0, self.config.sample / self.context.num_images)
        return tie_break(idx, self.context.settings.seed, "screen/sample") <= share * float(2**64 - 1)

    def sample(self, batch: Batch) -> Columns:
        """Every skew of these images."""
        losses = self.change.losses(batch)
        table = skews(losses.before[:, None], losses.after.transpose(0, 1), epsilon=self.change.epsilon)
        return {"skews": table.flatten(1).cpu()}

    def fit_screen(self, rows: Iterator[Any]) -> Tensors:
        """From the skews of the sample, [b, i n]: weights [r, n], constants and thresholds [r, i] of the rounds; and
        what to expect of them.
        """
        settings = self.context.settings
        table = torch.cat([columns["skews"].cpu() for columns in rows]).numpy()
        table = table.reshape(len(table), -1, settings.score.noises)
        num = self.context.num_images
        asked: dict[str, Any] = {
            "top_share": top_k(num, settings.rank.top_percent) / num,
            "counts": noise_counts(settings.score.noises, self.config.rounds),
            "recall": self.config.recall,
        }
        rounds, expected = learn(table, **asked), held_out(table, **asked)
        facts = {"recall": expected.recall, "recall_low": expected.low, "recall_high": expected.high}
        facts |= {"share_of_forwards": expected.share, "sample": len(table), "tops": expected.tops}
        return {
            **{name: torch.from_numpy(np.asarray([getattr(each, name) for each in rounds])) for name in BOUNDS},
            **{name: torch.tensor(float(value), dtype=torch.float64) for name, value in facts.items()},
        }

    def load(self, fitted: Tensors, item_states: Sequence[Tensors]) -> None:
        """The bank of all F2, and the bounds if they are known."""
        super().load(fitted, item_states)
        if "threshold" in fitted:
            columns = [fitted[name].cpu().numpy() for name in BOUNDS]
            self.rounds = [Round(**dict(zip(BOUNDS, each, strict=True))) for each in zip(*columns, strict=True)]

    def columns(self, rows: Batch) -> Columns:
        """score[items], the skew or, below all of those, its prediction - 2; and noises[items] that it is from."""
        num_noises = self.change.config.noises
        order, counts = van_der_corput_order(num_noises), noise_counts(num_noises, self.config.rounds)
        table = np.zeros((len(rows), self.change.num_items, num_noises), dtype=np.float32)
        alive = np.ones(table.shape[:2], dtype=bool)
        used, score = np.zeros(table.shape[:2], dtype=np.int16), np.zeros(table.shape[:2], dtype=np.float32)
        for number, (start, stop) in enumerate(zip([0, *counts], counts, strict=False)):
            self.measure(rows, alive, np.sort(order[start:stop]), table)
            used[alive] = stop
            if number < len(self.rounds):
                predicted, before = self.rounds[number].predict(table), alive.copy()
                alive &= predicted >= self.rounds[number].threshold
                score[before & ~alive] = predicted[before & ~alive] - LEFT_OUT
        score[alive] = torch.from_numpy(table).mean(dim=2).numpy()[alive]
        return {"score": torch.from_numpy(score), "noises": torch.from_numpy(used)}

    def measure(self, rows: Batch, alive: Bool[np.ndarray, "b i"], at: np.ndarray, table: np.ndarray) -> None:
        """Fill in the skews at these noises, of the images that are still there for an item."""
        noises, models = self.change.shared_noises[torch.from_numpy(at)], self.change.models
        if alive.all():
            losses = models.losses(rows, noises)
        else:
            losses = rows.z.new_zeros(1 + alive.shape[1], len(rows), len(at))
            for number, rows_left in enumerate([alive.any(axis=1), *alive.T]):
                some = torch.from_numpy(np.flatnonzero(rows_left))
                losses[number, some.to(losses.device)] = models.losses(rows[some], noises, [number])[0]
        require_finite_losses(losses, rows)
        measured = skews(losses[0], losses[1:], epsilon=self.change.epsilon[torch.from_numpy(at)])
        table[:, :, at] = measured.transpose(0, 1).cpu().numpy()

    def score(self, rows: Batch) -> Float[Tensor, "b i"]:
        """Exact where it can matter for the top-k."""
        return self.columns(rows)["score"]

    def forwards(self, columns: Columns) -> int:
        """F2 as often as there were noises for an item, F1 as often as for any item."""
        used = columns.get("noises")
        if used is None:
            return super().forwards(columns)
        return int(used.sum() + used.amax(dim=1).sum())
