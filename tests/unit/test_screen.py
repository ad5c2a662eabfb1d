"""Screening has bounds that hold on tables of skews, states its recall, and scores as MUCS what it keeps."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mucs_ray.attribution.base import MethodContext
from mucs_ray.attribution.cards.screen import ScreenConfig
from mucs_ray.attribution.config import RankConfig, ScoreConfig
from mucs_ray.attribution.loss_change import LossAttributor, LossChange
from mucs_ray.attribution.mucs import MUCS
from mucs_ray.attribution.registry import find_method
from mucs_ray.attribution.screen import LEFT_OUT, ScreenedMUCS
from mucs_ray.attribution.screening import (
    Round,
    held_out,
    kept,
    learn,
    noise_counts,
    regression,
    van_der_corput_order,
    wilson,
)
from mucs_ray.diffusion.batch import Batch
from mucs_ray.diffusion.noise import generator, normal
from mucs_ray.errors import RunFailed
from mucs_ray.models.dit import DiTConfig, unlearned_names
from tiny import lively

MODEL = DiTConfig(
    image_size=8, patch_size=4, width=16, depth=1, num_heads=2, registers=0, condition_channels=16, kernel_size=3,
    dropout=0.0,
)  # fmt: skip
SCORE = ScoreConfig(noises=10, images_per_forward=8)


# --- bounds -----------------------------------------------------------------------------------------------------------


@settings(deadline=None)  # the first call imports scipy.stats
@given(st.integers(1, 300))
def test_every_beginning_is_spread_evenly(num: int):
    order = van_der_corput_order(num)
    assert sorted(order) == list(range(num))
    for count in range(2, num, 7):  # no gap among the first ones is more than three times the mean gap
        assert np.diff([-1, *np.sort(order[:count]), num]).max() <= 3 * (num + 1) / (count + 1) + 1


def test_cuts():
    assert noise_counts(100, (0.1, 0.3)) == [10, 30, 100]
    assert noise_counts(10, (0.1, 0.3)) == [1, 3, 10]
    assert noise_counts(4, (0.1, 0.3)) == [1, 4]
    assert noise_counts(1, (0.1, 0.3)) == [1]


def tables(seed: int, num: int, items: int = 8, noises: int = 40) -> np.ndarray:
    """Return skews [b, i, n]: each pair has a heavy-tailed influence, seen through each noise with an error."""
    rng = np.random.default_rng(seed)
    influence = 0.02 * rng.standard_t(5, (num, items)) * rng.uniform(0.5, 2, items)
    seen = influence[:, :, None] * rng.normal(1, 0.3, noises) + rng.normal(0, 0.05, noises)
    return (seen + rng.normal(0, 0.05, (num, items, noises))).astype(np.float32)


def test_regression_finds_the_weights():
    """Noises 1 and 3 are copies of 0 and 2, so these determine the whole mean, with weights of one half."""
    rng = np.random.default_rng(1)
    pair = rng.normal(0, 1, (200, 3, 2))
    skews = np.stack([pair[..., 0], pair[..., 0], pair[..., 1], pair[..., 1]], axis=2)
    np.testing.assert_allclose(regression(skews, np.asarray([0, 2])), [0.5, 0, 0.5, 0], atol=1e-9)


def test_kept_by_hand():
    """Two rounds read one noise, then both; an image that is left out stays out."""
    rounds = [
        Round(weights=np.asarray([1.0, 0.0]), constant=np.asarray([0.5, 0.5]), threshold=np.asarray([1.0, 2.0])),
        Round(weights=np.asarray([0.5, 0.5]), constant=np.zeros(2), threshold=np.asarray([1.0, 1.0])),
    ]
    skews = np.asarray([[[0.5, 1.5], [2.0, -1.0]], [[0.0, 9.0], [1.5, 0.5]]])  # image, item, noise
    first = [[True, True], [False, True]]
    assert kept(rounds, skews).tolist() == [first, [[True, False], [False, True]]]


@pytest.mark.parametrize("recall", [0.9, 0.98])
def test_the_recall_that_is_asked_for_holds_on_images_that_were_not_seen(recall: float):
    """Bounds from 500 of 6,000 images are tried on the others, in ten populations of 8 items."""
    arguments: dict[str, Any] = {"top_share": 0.02, "counts": [4, 12, 40], "recall": recall}
    actual, estimates, shares = [], [], []
    for seed in range(10):
        population = tables(seed, 6000)
        scores = population.mean(axis=2)
        top = scores >= np.quantile(scores, 0.98, axis=0)
        alive = kept(learn(population[:500], **arguments), population)[-1]
        actual.append((alive & top)[500:].sum() / top[500:].sum())
        estimates.append(held_out(population[:500], **arguments))
        shares.append(alive.mean())
    assert np.mean(actual) >= recall
    assert min(actual) >= 1 - 2 * (1 - recall)
    assert np.mean(shares) < 0.35
    assert sum(each.low <= real <= each.high for each, real in zip(estimates, actual, strict=True)) >= 9
    assert abs(np.mean([each.recall for each in estimates]) - np.mean(actual)) < 0.01


def test_the_recall_is_that_of_images_that_bounds_were_not_learned_from():
    """40 weights learned from 80 images fit these too well: on the same images they seem to lose next to nothing."""
    arguments: dict[str, Any] = {"top_share": 0.1, "counts": [40, 60], "recall": 0.9}
    inside, outside = [], []
    for seed in range(10):
        sample = np.random.default_rng(seed).normal(0, 1, (100, 2, 60))
        scores = sample.mean(axis=2)
        top = scores >= np.quantile(scores, 0.9, axis=0)
        inside.append((kept(learn(sample, **arguments), sample)[-1] & top).sum() / top.sum())
        outside.append(held_out(sample, **arguments).recall)
    assert np.mean(outside) < np.mean(inside) - 0.02


def test_the_share_of_forwards_is_counted():
    """Nothing can be left out if every noise is a surprise: then nearly everything is measured."""
    noise = np.random.default_rng(2).normal(0, 1, (400, 4, 20)).astype(np.float32)
    blind = held_out(noise, top_share=0.02, counts=[2, 6, 20], recall=0.98)
    seen = held_out(tables(3, 400, noises=20), top_share=0.02, counts=[2, 6, 20], recall=0.98)
    assert 0.1 < seen.share < 0.6 < blind.share <= 1
    assert (blind.tops, seen.tops) == (4 * 8, 8 * 8)  # 2 % of 400, of 4 and 8 items


def test_an_item_whose_scores_are_all_the_same_changes_nothing_for_the_others():
    """Unlearning may have nothing to do: F2 is F1, and every skew is 0."""
    table = tables(5, 600, items=4)
    silent = np.insert(table, 2, 0.0, axis=1)
    arguments: dict[str, Any] = {"top_share": 0.02, "counts": [4, 12, 40], "recall": 0.98}
    for one, other in zip(learn(table, **arguments), learn(silent, **arguments), strict=True):
        np.testing.assert_allclose(np.delete(other.threshold, 2), one.threshold, rtol=1e-6)
        assert other.threshold[2] == -np.inf
    assert kept(learn(np.zeros((60, 2, 40)), **arguments), np.zeros((60, 2, 40))).all()


def test_wilson_by_hand():
    """For 18 of 20: (18/20 + z^2/40 -+ z sqrt(.9 .1 / 20 + z^2/1600)) / (1 + z^2/20) with z = 1.96."""
    low, high = wilson(18, 20)
    assert (round(low, 4), round(high, 4)) == (0.6990, 0.9721)
    assert all(wilson(tops, tops)[1] == 1.0 for tops in range(1, 100))


# --- the method -------------------------------------------------------------------------------------------------------


DENOISER = lively(MODEL)
BANK = [
    {
        name: DENOISER.network.get_parameter(name) + 0.1 * normal(generator(4, f"{item}/{name}"), *tensor.shape)
        for name, tensor in DENOISER.network.named_parameters()
        if name in unlearned_names(DENOISER.network)
    }
    for item in range(3)
]
IMAGES = Batch(idx=torch.arange(120), z=(0.8 * normal(generator(5, "images"), 120, 3, 8, 8)).clamp(-1, 1), condition={})


def method(
    *, screen: ScreenConfig | None = None, num_images: int = 120, kind: type[LossAttributor] = ScreenedMUCS
) -> Any:
    screen = screen or ScreenConfig(recall=0.9, sample=50, rounds=(0.2, 0.5))
    knobs = SimpleNamespace(seed=1, model=MODEL, score=SCORE, rank=RankConfig(top_percent=5.0))
    knobs.method = {"mucs/screen": screen}
    device = torch.device("cpu")
    return kind(MethodContext(settings=knobs, device=device, num_images=num_images, denoiser=DENOISER))  # pyright: ignore


def bounds_of(method: Any, images: Batch = IMAGES) -> dict[str, torch.Tensor]:
    method.load({}, BANK)
    inside = torch.from_numpy(np.flatnonzero(method.in_sample(images.idx.numpy())))
    return method.fit_screen(iter([method.sample(images[inside[:20]]), method.sample(images[inside[20:]])]))


@pytest.fixture(scope="module")
def screened() -> Any:
    made = method()
    made.load(bounds_of(made), BANK)
    return made


def test_what_is_kept_is_scored_as_without_screening(screened: Any):
    columns = screened.columns(IMAGES)
    change = LossChange(DENOISER, BANK, config=SCORE, seed=1)
    exact = change.skew(change.losses(IMAGES))
    whole = columns["noises"] == 10
    assert 5 * 3 < whole.sum() < 300  # something is left out, and more than the top is kept
    torch.testing.assert_close(columns["score"][whole], exact[whole], rtol=0, atol=1e-7)
    assert columns["score"][~whole].max() < -1 < exact.min()
    assert set(columns["noises"].unique().tolist()) <= {2, 5, 10}
    top = exact >= exact.quantile(0.95, dim=0)
    assert (top & whole).sum() / top.sum() >= 0.8


def test_what_is_left_out_has_its_prediction(screened: Any):
    """It has the weights of the round after which it was left out."""
    columns = screened.columns(IMAGES)
    table = screened.sample(IMAGES)["skews"].view(120, 3, 10).numpy()
    for number, count in enumerate([2, 5]):
        out = (columns["noises"] == count).numpy()
        predicted = screened.rounds[number].predict(table)[out]
        np.testing.assert_allclose(columns["score"].numpy()[out], predicted - LEFT_OUT, atol=1e-6)
        assert (predicted < np.broadcast_to(screened.rounds[number].threshold, out.shape)[out]).all()


def test_forwards_are_counted(screened: Any):
    """The network is counted as it is called: F1 for an image as far as any item goes."""
    sizes = []
    handle = DENOISER.network.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    columns = screened.columns(IMAGES)
    handle.remove()
    assert screened.forwards(columns) == sum(sizes) < 120 * 10 * 4
    assert screened.forwards(screened.sample(IMAGES)) == 120 * 10 * 4


def test_scores_do_not_depend_on_the_cut_bit_for_bit(screened: Any):
    """A forward has one image."""
    alone, images = method(), IMAGES[:30]
    alone.context.settings.score = replace(SCORE, images_per_forward=1)
    alone.load(bounds_of(screened), BANK)
    whole = alone.columns(images)
    cuts = [alone.columns(images[at]) for at in (slice(0, 7), slice(7, 12), slice(12, 30))]
    for name, column in whole.items():
        assert torch.equal(torch.cat([each[name] for each in cuts]), column)
    assert len(whole["noises"].unique()) == 3


def test_the_sample_is_random_and_as_large_as_asked_for():
    idx = np.arange(20_000)
    inside = method(num_images=20_000, screen=ScreenConfig(sample=1000)).in_sample(idx)
    assert abs(inside.sum() - 1000) < 4 * np.sqrt(950)
    assert abs(inside[:10_000].sum() - 500) < 4 * np.sqrt(475)
    assert method(num_images=50).in_sample(idx).all()


def test_the_expectation_is_a_sentence(screened: Any):
    bounds = bounds_of(screened)
    assert bounds["weights"].shape == (2, 10) and bounds["constant"].shape == bounds["threshold"].shape == (2, 3)
    assert 0 < bounds["recall_low"] <= bounds["recall"] <= bounds["recall_high"] <= 1
    assert 0.2 <= bounds["share_of_forwards"] <= 1
    assert bounds["sample"] == screened.in_sample(IMAGES.idx.numpy()).sum()


def test_few_noises_leave_nothing_out():
    """With one noise there is one round, and all of it is exact."""
    one = method()
    one.context.settings.score = replace(SCORE, noises=1)
    one.load(bounds_of(one), BANK)
    assert one.rounds == []
    assert (one.columns(IMAGES[:5])["noises"] == 1).all()


def test_a_loss_that_is_not_finite_is_named(screened: Any):
    image = IMAGES.z[:9].clone()
    image[4, 0, 0, 0] = torch.nan
    broken = Batch(idx=IMAGES.idx[:9], z=image, condition={})
    with pytest.raises(RunFailed, match="idx=4 is not finite"):
        screened.columns(broken)


def test_it_shares_the_unlearning_of_mucs():
    attributor = find_method("mucs/screen").load()
    assert attributor is ScreenedMUCS
    assert [(part.name, part.owner) for part in ScreenedMUCS.card.stages[:2]] == [
        ("null", MUCS.card.implementation),
        ("unlearn", MUCS.card.implementation),
    ]
    assert all(not part.owner for part in ScreenedMUCS.card.stages[2:])
