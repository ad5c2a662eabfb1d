"""Antithetic MUCS: a second model goes the other way on the same draws, and scores are skews of the two."""

from dataclasses import replace

import torch
from torch import Tensor

from mucs_ray.attribution.cards.mucs import MUCSConfig
from mucs_ray.attribution.config import ScoreConfig
from mucs_ray.attribution.loss_change import LossChange
from mucs_ray.attribution.mucs import MUCS
from mucs_ray.attribution.skew import normalized_skew
from mucs_ray.attribution.unlearn import MINUS, item_losses, measure, model_tensors
from mucs_ray.models.dit_edm import DiTEDM
from mucs_ray.training.ema import frozen_copy
from small_unlearning import F1, NAMES, batches, context, images, item, unlearned

CONFIG = MUCSConfig(antithetic=True, batch_size=4, max_updates=2, bound=1e9)


def tensors_of(number: int, config: MUCSConfig = CONFIG) -> dict[str, Tensor]:
    return unlearned(number, config).tensors


def with_tensors(tensors: dict[str, Tensor]) -> DiTEDM:
    model = frozen_copy(F1)
    model.network.load_state_dict(tensors, strict=False)
    return model


def test_names_beside_a_model_are_not_its_own():
    one = torch.zeros(1)
    tensors = {"a.weight": one, "minus:a.weight": one + 1, "number:updates": one + 2}
    assert model_tensors(tensors) == {"a.weight": one}
    assert model_tensors(tensors, MINUS) == {"a.weight": one + 1}


def test_the_other_model_descends_on_the_item_on_the_same_draws():
    """It is AdamW on the sum of the losses where F2 has their difference, by as many updates, without a bound."""
    plain = tensors_of(0, replace(CONFIG, antithetic=False))
    tensors = tensors_of(0)
    assert all(torch.equal(tensors[name], plain[name]) for name in NAMES)
    by_hand = frozen_copy(F1)
    weights = [by_hand.network.get_parameter(name).requires_grad_(True) for name in NAMES]
    optimizer = torch.optim.AdamW(weights, lr=0.001, weight_decay=0.01)
    pairs = measure(by_hand, item(0), batches("unlearn/item=60", 4), bound=1e9, config=CONFIG, seed=1)
    for _ in range(2):
        losses = next(pairs)
        optimizer.zero_grad()
        (losses.train_loss + 0.2 * losses.item_loss).backward()
        optimizer.step()
    opposite = model_tensors(tensors, MINUS)
    assert opposite.keys() == set(NAMES)
    for name, weight in zip(NAMES, weights, strict=True):
        torch.testing.assert_close(opposite[name], weight.detach(), rtol=1e-4, atol=1e-6)
    up, down = (
        item_losses(with_tensors(each), item(0), 64, seed=1, name="check").mean()
        for each in (model_tensors(tensors), opposite)
    )
    assert up > down


def test_an_item_that_is_not_changed_is_changed_neither_way():
    reached = {"null_loss": torch.tensor(1e-6, dtype=torch.float64)}
    tensors = MUCS(context(CONFIG)).fit_item(item(0), reached, lambda *_: None).tensors
    for name in NAMES:
        assert torch.equal(tensors[name], F1.network.get_parameter(name))
        assert torch.equal(tensors[f"{MINUS}{name}"], tensors[name])


def test_scores_are_skews_of_the_two_models():
    items = [tensors_of(number) for number in (0, 1)]
    method = MUCS(context(replace(CONFIG, antithetic=True)))
    method.load({}, items)
    both = [*(model_tensors(each) for each in items), *(model_tensors(each, MINUS) for each in items)]
    table = LossChange(F1, both, config=ScoreConfig(noises=4), seed=1).losses(images()).after
    columns = method.columns(images())
    for at in (0, 1):
        torch.testing.assert_close(columns["skew"][:, at], normalized_skew(table[2 + at], table[at]))
        torch.testing.assert_close(columns["difference"][:, at], (table[at] - table[2 + at]).mean(dim=1))
    assert columns["skew"].shape == (6, 2)
