"""MUCS against a control: common draws, a control that makes the same updates without an ascent, and its skew."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mucs_ray.attribution.cards.mucs import MUCSConfig
from mucs_ray.attribution.config import ScoreConfig
from mucs_ray.attribution.control import ControlledMUCS
from mucs_ray.attribution.loss_change import LossChange
from mucs_ray.attribution.mucs import MUCS
from mucs_ray.attribution.skew import normalized_skew
from mucs_ray.attribution.unlearn import UPDATES, draw_losses
from mucs_ray.training.ema import frozen_copy
from small_unlearning import F1, FITTED, NAMES, batches, context, images, unlearned

CONFIG = MUCSConfig(draws="common", batch_size=4, max_updates=3, bound=1e9)


def states(*updates: int) -> list[dict[str, Tensor]]:
    return [{UPDATES: torch.tensor(number)} for number in updates]


def test_items_meet_the_same_batches_levels_and_noise():
    common = [unlearned(number, CONFIG) for number in (0, 1)]
    assert common[0].facts["train_loss"][0] == common[1].facts["train_loss"][0]
    assert common[0].tensors[UPDATES].item() == 3
    own = [unlearned(number, replace(CONFIG, draws="own")) for number in (0, 1)]
    assert own[0].facts["train_loss"][0] != own[1].facts["train_loss"][0]
    assert UPDATES not in own[0].tensors


def test_the_control_descends_on_the_same_draws_and_on_nothing_else():
    """Its updates are AdamW on the loss of the training batch, as often as the median item's."""
    by_hand = frozen_copy(F1)
    weights = [by_hand.network.get_parameter(name).requires_grad_(True) for name in NAMES]
    optimizer = torch.optim.AdamW(weights, lr=0.001, weight_decay=0.01)
    batch = batches("unlearn", 4)
    for step in range(2):
        drawn = batch(step)
        loss = draw_losses(by_hand, drawn.z, drawn.condition, seed=1, name=f"unlearn/step={step}/train").mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    control = ControlledMUCS(context(CONFIG)).fit_together(FITTED, states(9, 2, 1))
    assert control.keys() == set(NAMES)
    for name, weight in zip(NAMES, weights, strict=True):
        torch.testing.assert_close(control[name], weight.detach(), rtol=1e-4, atol=1e-6)
        assert not torch.equal(control[name], F1.network.get_parameter(name))


def test_without_updates_the_control_is_f1():
    control = ControlledMUCS(context(CONFIG)).fit_together(FITTED, states(0, 0, 5))
    assert all(torch.equal(control[name], F1.network.get_parameter(name)) for name in NAMES)


def test_scores_are_skews_against_the_control():
    items = [unlearned(number, CONFIG).tensors for number in (0, 1)]
    method = ControlledMUCS(context(CONFIG))
    control = method.fit_together(FITTED, items)
    method.load(control, items)
    table = LossChange(F1, [control, *items], config=ScoreConfig(noises=4), seed=1).losses(images())
    expected = torch.stack([normalized_skew(table.after[0], after) for after in table.after[1:]], dim=1)
    columns = method.columns(images())
    torch.testing.assert_close(columns["skew"], expected)
    torch.testing.assert_close(columns["difference"], (table.after[1:] - table.after[0]).mean(2).T)
    against_f1 = torch.stack([normalized_skew(table.before, after) for after in table.after[1:]], dim=1)
    assert (columns["skew"] - against_f1).abs().max() > 1e-4


def test_plain_mucs_can_have_common_draws_too():
    """The number of updates beside an item's tensors is no part of its model."""
    method = MUCS(context(CONFIG))
    method.load({}, [unlearned(0, CONFIG).tensors])
    assert method.score(images()).shape == (6, 1)


@pytest.mark.parametrize("hook", ["fit_together", "score"])
def test_its_cost_is_counted(hook: str):
    card = ControlledMUCS.card
    (stage,) = [stage for stage in card.stages if stage.hook == hook]
    passes = ControlledMUCS.passes(stage, context(CONFIG).settings, num_images=10, num_items=2)
    assert (passes.forwards, passes.backwards) == ((0, 109 * 8) if hook == "fit_together" else (10 * 4 * 4, 0))
