"""Loss changes and MUCS equal hand-computed values and a plain loop, do not depend on the cut, and find a duplicate."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from torch import Tensor

from mucs_ray.attribution.abu import AbU
from mucs_ray.attribution.base import Attributor, MethodContext
from mucs_ray.attribution.cards.abu import AbUConfig
from mucs_ray.attribution.cards.forward_inf import ForwardINFConfig
from mucs_ray.attribution.cards.mucs import MUCSConfig
from mucs_ray.attribution.config import RankConfig, ScoreConfig
from mucs_ray.attribution.first_losses import FirstLosses
from mucs_ray.attribution.forward_inf import ForwardINF
from mucs_ray.attribution.loss_change import LossChange, fp16, select_measure
from mucs_ray.attribution.model_bank import swapped
from mucs_ray.attribution.mucs import MUCS, resolve_bound
from mucs_ray.attribution.skew import noise_losses, normalized_skew
from mucs_ray.attribution.unlearn import null_loss, unlearn
from mucs_ray.diffusion.batch import Batch, Item
from mucs_ray.diffusion.condition import Condition, joined, one_by_one
from mucs_ray.diffusion.edm import EDM, analytic_null_loss
from mucs_ray.diffusion.noise import NoiseSet, generator, name_torch_stream, normal
from mucs_ray.diffusion.schedule import random_schedule_sigmas, scoring_sigmas, training_sigmas
from mucs_ray.errors import RunFailed
from mucs_ray.models.dit import DiT, DiTConfig, unlearned_names
from mucs_ray.models.dit_edm import DiTEDM
from mucs_ray.training.config import TrainConfig
from mucs_ray.training.order import batch_rows
from mucs_ray.training.step import TrainState, WorkerContext, training
from tiny import lively, rows

MODEL = DiTConfig(
    image_size=8, patch_size=4, width=16, depth=2, num_heads=2, registers=1, condition_channels=16, condition_dim=3,
    kernel_size=3, dropout=0.1,
)  # fmt: skip
CONFIG = ScoreConfig(noises=7)


def some_images(count: int, *, seed: int) -> Batch:
    made = rows(count, first_idx=100, seed=seed)
    return Batch(
        idx=torch.tensor([row.idx for row in made]),
        z=torch.from_numpy(np.stack([row.image for row in made])).float() / 127.5 - 1,
        condition={"condition": torch.eye(3)[[row.label for row in made]]},
    )


def picked(batch: Batch, at: list[int]) -> Batch:
    return batch[torch.tensor(at)]


def other_tensors(denoiser: DiTEDM, name: str, *, size: float = 0.05) -> dict[str, Tensor]:
    """Return tensors such as an unlearning might have left."""
    stream = generator(4, name)
    own = {each: denoiser.network.get_parameter(each) for each in unlearned_names(denoiser.network)}
    return {each: tensor + size * normal(stream, *tensor.shape) for each, tensor in own.items()}


DENOISER = lively(MODEL)
BANK = [other_tensors(DENOISER, f"item={number}") for number in range(3)]
IMAGES = some_images(9, seed=5)


def change(bank: list[dict[str, Tensor]], config: ScoreConfig = CONFIG, *, seed: int = 1) -> LossChange:
    return LossChange(DENOISER, bank, config=config, seed=seed)


def skews(scorer: LossChange, batch: Batch = IMAGES) -> Tensor:
    return scorer.skew(scorer.losses(batch))


SCORES = skews(change(BANK))


# --- the formula ------------------------------------------------------------------------------------------------------


def test_skew_by_hand():
    """Two images, three noises; the mean goes over noises, and epsilon stands in every denominator."""
    before = torch.tensor([[1.0, 2.0, 0.0], [0.5, 0.0, 3.0]])
    after = torch.tensor([[3.0, 1.0, 0.0], [0.5, 4.0, 1.0]])
    actual = normalized_skew(before, after, epsilon=0.5)
    first = (2 / 4.5 - 1 / 3.5 + 0) / 3
    second = (0 / 1.5 + 4 / 4.5 - 2 / 4.5) / 3
    torch.testing.assert_close(actual, torch.tensor([first, second]))
    small = normalized_skew(torch.tensor([[0.0]]), torch.tensor([[0.001]]))  # epsilon is 1e-3 unless told
    torch.testing.assert_close(small, torch.tensor([0.5]))


losses = st.lists(st.floats(0, 1e6, width=32), min_size=4, max_size=4)


@given(losses, losses)
def test_skew_is_within_one_and_changes_sign_with_the_order(first: list[float], second: list[float]):
    before, after = torch.tensor([first], dtype=torch.float64), torch.tensor([second], dtype=torch.float64)
    skew = normalized_skew(before, after)
    assert (skew.abs() < 1).all()
    assert torch.equal(normalized_skew(after, before), -skew)
    assert torch.equal(normalized_skew(before, before), torch.zeros(1, dtype=torch.float64))


@given(st.lists(st.floats(0, 100), min_size=1, max_size=6), st.floats(0.01, 10))
def test_raising_every_loss_is_a_positive_influence(values: list[float], by: float):
    before = torch.tensor([values])
    assert normalized_skew(before, before + by).item() > 0
    assert normalized_skew(before + by, before).item() < 0


def test_an_unchanged_model_scores_exactly_zero():
    own = {name: DENOISER.network.get_parameter(name).clone() for name in unlearned_names(DENOISER.network)}
    scores = skews(change([own, BANK[0]]))
    assert torch.equal(scores[:, 0], torch.zeros(9))
    assert (scores[:, 1] != 0).all()


# --- the losses -------------------------------------------------------------------------------------------------------


def hand_losses(denoiser: DiTEDM, batch: Batch, noises: NoiseSet) -> Tensor:
    """Return omega (D - x)^2 in float64, one image and one noise at a time."""
    exact = copy.deepcopy(denoiser).double()
    table = torch.zeros(len(batch), len(noises.level), dtype=torch.float64)
    for i in range(len(batch)):
        x, condition = batch.z[i].double(), batch.condition["condition"][i : i + 1].double()
        for j, (sigma, unit) in enumerate(zip(noises.level.double(), noises.unit.double(), strict=True)):
            noisy = x + sigma * unit
            scaled, level = noisy / (sigma**2 + 0.25).sqrt(), (sigma + 1e-6).log() / 4
            raw = exact.network(scaled[None], level[None], condition, None)[0]
            denoised = 0.25 / (sigma**2 + 0.25) * noisy + 0.5 * sigma / (sigma**2 + 0.25).sqrt() * raw
            table[i, j] = ((sigma**2 + 0.25) / (0.5 * sigma) ** 2 * (denoised - x) ** 2).mean()
    return table


NOISES = NoiseSet.draw(2, "check", scoring_sigmas(7, 0.7), (3, 8, 8))


@pytest.mark.parametrize("images_per_forward", [1, 4, 9, 100])
def test_noise_losses_are_a_plain_loop_over_images_and_noises(images_per_forward: int):
    actual = noise_losses(DENOISER, IMAGES, NOISES, images_per_forward=images_per_forward)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), hand_losses(DENOISER, IMAGES, NOISES), rtol=2e-4, atol=1e-5)


def test_every_image_meets_every_noise_with_its_own_condition():
    """The denoiser leaves its inputs in the answer: sigma identifies the noise, and the condition the image."""
    sigma, marks = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0, 20.0, 30.0])
    noises = NoiseSet(level=sigma, unit=marks[:, None, None, None].expand(3, 3, 8, 8))
    batch = Batch(
        idx=torch.arange(2), z=torch.tensor([0.1, 0.2])[:, None, None, None].expand(2, 3, 8, 8),
        condition={"condition": torch.tensor([[5.0], [7.0]])},
    )  # fmt: skip

    def tell(noisy: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        return noisy - 100 * condition["condition"][:, :, None, None]

    tell.process = EDM()
    actual = noise_losses(tell, batch, noises, images_per_forward=2)
    weight = (sigma**2 + 0.25) / (0.5 * sigma) ** 2
    expected = torch.stack([weight * (sigma * marks - 100 * condition) ** 2 for condition in (5.0, 7.0)])
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize(("noises", "keep", "grid"), [(100, 0.7, 142), (7, 0.7, 10), (5, 1.0, 5)])
def test_the_grid_is_the_upper_part_of_the_schedule(noises: int, keep: float, grid: int):
    """The levels are sigma(u) on `grid` even points, of which the first `noises` are used, from 80 down (spec 7.3)."""
    actual = change([], ScoreConfig(noises=noises, keep=keep)).shared
    u = np.arange(noises) / (grid - 1)
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    np.testing.assert_allclose(actual.level.numpy(), (high + u * (low - high)) ** 7, rtol=1e-6)
    assert actual.unit.shape == (noises, 3, 8, 8)
    if noises == 100:
        assert actual.level[99].item() == pytest.approx(0.3102, abs=5e-5)
        assert int((actual.level > 1).sum()) == 85


def test_the_noise_is_drawn_once_a_run_from_its_name():
    """Two scorers of a run have the same noise, whatever their bank; another seed has another."""
    first, second, other = change([]), change(BANK), change([], seed=2)
    assert torch.equal(first.shared.unit, second.shared.unit)
    assert torch.equal(first.shared.unit, normal(generator(1, "score/noise"), 7, 3, 8, 8))
    assert not torch.equal(first.shared.unit, other.shared.unit)


def test_scores_are_the_skews_of_two_loss_tables_by_hand():
    """The tables are l1 of F1 and l2 of each F2 on the same noise; scores are positive where losses rose."""
    scorer = change(BANK)
    before = hand_losses(DENOISER, IMAGES, scorer.shared)
    for number, tensors in enumerate(BANK):
        changed = copy.deepcopy(DENOISER)
        changed.network.load_state_dict(tensors, strict=False)
        after = hand_losses(changed, IMAGES, scorer.shared)
        expected = ((after - before) / (after + before + 1e-3)).mean(1)
        torch.testing.assert_close(SCORES[:, number].double(), expected, rtol=1e-3, atol=1e-5)
    assert SCORES.shape == (9, 3)


def test_epsilon_of_the_config_is_used():
    config = replace(CONFIG, epsilon=1e3)
    table = change(BANK, config).losses(IMAGES)
    expected = ((table.after[1] - table.before) / (table.after[1] + table.before + 1e3)).mean(1)
    torch.testing.assert_close(skews(change(BANK, config))[:, 1], expected)


# --- other measures, levels and noise (spec 8) ------------------------------------------------------------------------


def test_difference_is_the_mean_change_by_hand():
    """S-C1 is after minus before, image by item."""
    scorer = change(BANK)
    before = hand_losses(DENOISER, IMAGES, scorer.shared)
    changed = copy.deepcopy(DENOISER)
    changed.network.load_state_dict(BANK[1], strict=False)
    expected = (hand_losses(changed, IMAGES, scorer.shared) - before).mean(1)
    actual = scorer.difference(scorer.losses(IMAGES))
    assert actual.shape == (9, 3)
    torch.testing.assert_close(actual[:, 1].double(), expected, rtol=1e-3, atol=1e-5)


def test_the_measure_chooses_among_the_stored_columns():
    columns = {"skew": torch.tensor([[0.5, -0.5]]), "difference": torch.tensor([[3.0, -4.0]])}
    assert torch.equal(select_measure(columns, "skew"), columns["skew"])
    assert torch.equal(select_measure(columns, "difference"), columns["difference"])
    assert torch.equal(select_measure(columns, "absolute"), torch.tensor([[3.0, 4.0]]))


def test_training_levels_are_drawn_once_and_log_normal():
    """S-C3 is a fixed set, and `keep` does not matter."""
    config = replace(CONFIG, noises=3000, sigmas="training")
    sigma = change([], config).shared.level
    assert torch.equal(sigma, training_sigmas(generator(1, "score/sigma"), 3000))
    assert torch.equal(sigma, change(BANK, replace(config, keep=0.1)).shared.level)
    assert sigma.log().mean().item() == pytest.approx(-1.2, abs=0.1)
    assert sigma.log().std().item() == pytest.approx(1.2, abs=0.1)


INDEPENDENT = replace(CONFIG, noise="independent")


def own_noises(name: str, config: ScoreConfig) -> NoiseSet:
    """Return levels and noise of one image and one model, drawn independently of the code under test."""
    stream = generator(1, f"{name}/sigma")
    schedule = config.sigmas == "schedule"
    sigma = random_schedule_sigmas(stream, 7, config.keep) if schedule else training_sigmas(stream, 7)
    return NoiseSet.draw(1, f"{name}/noise", sigma, (3, 8, 8))


@pytest.mark.parametrize("sigmas", ["schedule", "training"])
def test_independent_noise_belongs_to_the_image_and_the_model(sigmas: str):
    """In S-C2 no two losses have a draw in common."""
    config = replace(INDEPENDENT, sigmas=sigmas)
    actual = change(BANK, config).losses(IMAGES)
    for at in (0, 4):
        one, name = IMAGES[at : at + 1], f"score/idx={100 + at}"
        by_hand = hand_losses(DENOISER, one, own_noises(f"{name}/before", config))
        torch.testing.assert_close(actual.before[at : at + 1].double(), by_hand, rtol=2e-4, atol=1e-5)
        changed = copy.deepcopy(DENOISER)
        changed.network.load_state_dict(BANK[2], strict=False)
        by_hand = hand_losses(changed, one, own_noises(f"{name}/item=2", config))
        torch.testing.assert_close(actual.after[2, at : at + 1].double(), by_hand, rtol=2e-4, atol=1e-5)
    same = change([{}, {}], config).losses(IMAGES)  # three times F1, on other draws
    assert not (same.before == same.after[0]).any()
    assert not (same.after[0] == same.after[1]).any()


def test_with_independent_noise_the_skew_is_that_of_averages():
    scorer = change(BANK, INDEPENDENT)
    table = scorer.losses(IMAGES)
    before, after = table.before.mean(1), table.after.mean(2)
    expected = ((after - before) / (after + before + 1e-3)).T
    torch.testing.assert_close(scorer.skew(table), expected)
    average_of_skews = torch.stack([normalized_skew(table.before, each) for each in table.after], dim=1)
    assert (average_of_skews - expected).abs().max() > 0.01


def test_independent_noise_does_not_depend_on_cut_or_order():
    order, edges = [4, 0, 8, 1, 7, 2, 6, 3, 5], [0, 2, 3, 9]
    scorer, shuffled = change(BANK, INDEPENDENT), picked(IMAGES, order)
    cut = torch.cat([skews(scorer, shuffled[slice(a, b)]) for a, b in pairwise(edges)])
    assert torch.equal(cut, skews(scorer)[order])


@given(st.integers(0, 10_000), st.integers(1, 40), st.sampled_from([0.3, 0.56, 0.7, 1.0]))
def test_random_levels_are_the_largest_of_more_positions_on_the_schedule(seed: int, num: int, keep: float):
    actual = random_schedule_sigmas(generator(seed, "levels"), num, keep)
    u = generator(seed, "levels").random(int(num / keep + 1e-9))
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    every = np.sort((high + u * (low - high)) ** 7)[::-1]
    np.testing.assert_allclose(actual.numpy(), every[:num], rtol=1e-5)
    assert (actual.diff() <= 0).all()
    assert 0.002 <= actual.min() <= actual.max() <= 80


# --- invariance -------------------------------------------------------------------------------------------------------

cuts_and_items = st.tuples(
    st.permutations(range(9)),
    st.lists(st.integers(1, 8), unique=True).map(sorted),
    st.lists(st.sampled_from([0, 1, 2]), min_size=1, max_size=3),
)


@settings(max_examples=25, deadline=None)
@given(cuts_and_items)
def test_scores_do_not_depend_on_cut_order_or_other_items_bit_for_bit(drawn: tuple[list[int], list[int], list[int]]):
    """With one image a forward and fp32, images may come in any order, cut anywhere, with any bank (spec 18)."""
    order, cuts, items = drawn
    scorer = change([BANK[number] for number in items])
    shuffled = picked(IMAGES, order)
    edges = [0, *cuts, 9]
    scores = torch.cat([skews(scorer, shuffled[slice(a, b)]) for a, b in pairwise(edges)])
    assert torch.equal(scores, SCORES[order][:, items])


@pytest.mark.parametrize("images_per_forward", [2, 5, 9])
def test_more_images_a_forward_give_the_same_scores_to_rounding(images_per_forward: int):
    scores = skews(change(BANK, replace(CONFIG, images_per_forward=images_per_forward)))
    torch.testing.assert_close(scores, SCORES, rtol=0, atol=1e-5)
    assert torch.equal(scores.topk(4, dim=0).indices, SCORES.topk(4, dim=0).indices)


def test_bf16_scores_are_near():
    scores = skews(change(BANK, replace(CONFIG, precision="bf16")))
    assert not torch.equal(scores, SCORES)
    torch.testing.assert_close(scores, SCORES, rtol=0, atol=0.02)


# --- swapping, failing ------------------------------------------------------------------------------------------------


def test_swapped_tensors_are_used_and_given_back():
    network, before = DENOISER.network, copy.deepcopy(DENOISER.state_dict())
    name = "dit_backbone.1.mlp.0.weight"
    own = network.get_parameter(name).data_ptr()
    with swapped(network, BANK[0]):
        assert network.get_parameter(name).data_ptr() == BANK[0][name].data_ptr()
    assert network.get_parameter(name).data_ptr() == own
    with pytest.raises(KeyError), swapped(network, BANK[1]):
        raise KeyError("stopped in the middle")
    assert network.get_parameter(name).data_ptr() == own
    assert all(torch.equal(tensor, before[key]) for key, tensor in DENOISER.state_dict().items())


def test_a_swap_that_fails_half_way_is_undone():
    """A tensor of another type is refused by torch after others were swapped."""
    network = DENOISER.network
    names = unlearned_names(network)
    wrong = {**BANK[0], names[-1]: BANK[0][names[-1]].double().to_sparse()}
    own = [network.get_parameter(name).data_ptr() for name in names]
    with pytest.raises(RuntimeError), swapped(network, wrong):
        pass
    assert [network.get_parameter(name).data_ptr() for name in names] == own


def test_unlearned_models_leave_no_trace_in_f1():
    scorer = change(BANK)
    first = scorer.losses(IMAGES)
    assert torch.equal(scorer.losses(IMAGES).before, first.before)
    assert first.after.shape == (3, 9, 7)
    assert change([]).losses(IMAGES).after.shape == (0, 9, 7)


def test_an_image_with_nan_is_named():
    broken = replace(IMAGES, z=IMAGES.z.clone())
    broken.z[4, 1, 2, 3] = float("nan")
    with pytest.raises(RunFailed, match="training image idx=104 is not finite"):
        skews(change(BANK), broken)
    name = unlearned_names(DENOISER.network)[0]
    poisoned = {**BANK[0], name: BANK[0][name] * float("nan")}
    with pytest.raises(RunFailed, match="training image idx=100 is not finite"):
        skews(change([poisoned]))
    assert torch.equal(skews(change(BANK)), SCORES)  # the failure has not spread


# --- MUCS by the contract -----------------------------------------------------------------------------------------


def nothing(step: int, loss: float) -> None:
    """Show no progress."""


def shuffled_cuts(batch: Batch):
    """Return `MethodContext.batches` over a few images in memory."""

    def named(name: str, size: int):
        return lambda step: picked(batch, batch_rows(1, name, step, num_images=len(batch), batch_size=size).tolist())

    return named


def context(unlearning: MUCSConfig, *, measure: str = "skew", score: ScoreConfig = CONFIG) -> MethodContext:
    knobs = SimpleNamespace(
        seed=1, model=MODEL, train=TrainConfig(learning_rate=0.01), method={"mucs": unlearning}, score=score,
        rank=RankConfig(measure=measure),
    )  # fmt: skip
    return MethodContext(
        settings=knobs, device=torch.device("cpu"), num_images=9, denoiser=DENOISER, batches=shuffled_cuts(IMAGES)
    )


def unread() -> Iterator[Batch]:
    raise AssertionError("the training set was read")
    yield


def test_null_loss_can_be_given_computed_or_drawn():
    """The training set is streamed only for the computed one; the drawn one is that of an untrained network."""
    given_bound = MUCS(context(MUCSConfig(bound=2.5))).fit({}, unread())
    assert given_bound["null_loss"].item() == 2.5
    parts = iter([IMAGES[slice(0, 4)], IMAGES[slice(4, 9)]])
    computed = MUCS(context(MUCSConfig(bound="zero-output"))).fit({}, parts)["null_loss"].item()
    assert computed == pytest.approx(analytic_null_loss(IMAGES.z.square().mean().item()), rel=1e-6)
    drawn = MUCS(context(MUCSConfig(null_batches=3))).fit({}, unread())["null_loss"].item()
    batches = shuffled_cuts(IMAGES)("null", 9)
    assert drawn == pytest.approx(null_loss(DiTEDM(DiT(MODEL)), batches, num_batches=3, seed=1))
    assert len({2.5, computed, drawn}) == 3


def test_the_linear_bound_comes_with_the_mean_square_that_it_is_computed_from():
    """The bound does not need the model's weights, and its stage does not get them."""
    bare = replace(context(MUCSConfig(bound="linear")), denoiser=None)
    actual = MUCS(bare).fit({}, iter([IMAGES[slice(0, 4)], IMAGES[slice(4, 9)]]))
    v = IMAGES.z.double().square().mean().item()
    assert actual["second_moment"].item() == pytest.approx(v, rel=1e-6)
    assert actual["null_loss"].item() == pytest.approx(EDM().null_loss(v), rel=1e-6)
    config = MUCSConfig(bound="linear", batch_size=4, max_updates=1, learning_rate_divisor=5.0)
    what = Item(number=3, idx=60, condition={"condition": torch.eye(3)[0]}, z=IMAGES.z[0])
    unlearned = MUCS(context(config)).fit_item(what, actual, lambda *_: None)
    how = {"bound": actual["null_loss"].item(), "config": config}
    by_level = partial(EDM().linear_bound, mean_square=actual["second_moment"].item())
    batches = shuffled_cuts(IMAGES)("unlearn/item=60", 4)
    by_hand = unlearn(DENOISER, what, batches, level_bound=by_level, learning_rate=0.002, seed=1, **how)
    assert unlearned.facts["item_loss"] == by_hand.item_loss


def test_the_bound_by_level_of_edm_is_the_loss_of_an_output_of_0_at_each_level():
    """Of a network that is not zero at first it is the linear one. At one level both are those by hand."""
    config = MUCSConfig(bound="by-level", batch_size=4, max_updates=1)
    method = MUCS(replace(context(config), denoiser=None))
    fitted = method.fit({}, iter([IMAGES]))
    v = IMAGES.z.double().square().mean().item()
    assert fitted["null_loss"].item() == pytest.approx(analytic_null_loss(v), rel=1e-6)
    level = torch.tensor([0.5, 2.0], dtype=torch.float64)
    by_level = method.level_bound(fitted)
    assert by_level is not None
    expected = [4 * (0.25 * v + 0.0625) / 0.5, 4 * (4 * v + 0.0625) / 4.25]
    assert by_level(level).tolist() == pytest.approx(expected, rel=1e-6)
    assert resolve_bound(config, SimpleNamespace(model=SimpleNamespace(bound="linear"))) == "linear"
    assert method.level_bound({"null_loss": torch.tensor(2.0)}) is None


def test_mucs_unlearns_each_item_by_the_recipe():
    config = MUCSConfig(batch_size=4, max_updates=2, learning_rate_divisor=5.0)
    what = Item(number=3, idx=60, condition={"condition": torch.eye(3)[0]}, z=normal(generator(9, "item"), 3, 8, 8))
    updates: list[tuple[int, float]] = []
    prepared = {"null_loss": torch.tensor(50.0, dtype=torch.float64)}
    actual = MUCS(context(config)).fit_item(what, prepared, lambda *now: updates.append(now))
    batches = shuffled_cuts(IMAGES)("unlearn/item=60", 4)
    by_hand = unlearn(DENOISER, what, batches, bound=50.0, config=config, learning_rate=0.002, seed=1)
    assert actual.tensors.keys() == by_hand.tensors.keys()
    assert all(torch.equal(actual.tensors[name], by_hand.tensors[name]) for name in actual.tensors)
    assert actual.facts == {
        "outcome": "bound hit", "updates": 2, "null_loss": 50.0, "target": 47.5,
        "item_loss": by_hand.item_loss, "train_loss": by_hand.train_loss,
    }  # fmt: skip
    assert updates == list(enumerate(by_hand.item_loss))


def test_what_is_stored_of_a_scored_batch():
    method = MUCS(context(MUCSConfig(), measure="absolute", score=replace(CONFIG, keep_losses=True)))
    method.load({}, BANK)
    columns, table = method.columns(IMAGES), change(BANK).losses(IMAGES)
    assert set(columns) == {"skew", "difference", "before", "after"}
    assert torch.equal(columns["skew"], SCORES)
    assert torch.equal(columns["before"], table.before.half())
    assert torch.equal(columns["after"].view(9, 3, 7), table.after.transpose(0, 1).half())
    assert torch.equal(method.score(IMAGES), columns["difference"].abs())
    assert method.forwards(columns) == 9 * 7 * 4
    plain = MUCS(context(MUCSConfig()))
    plain.load({}, BANK)
    assert set(plain.columns(IMAGES)) == {"skew", "difference"}
    assert torch.equal(plain.score(IMAGES), SCORES)


def beside(first: FirstLosses, bank: list[dict[str, Tensor]], *, seed: int = 1, **score: Any) -> LossChange:
    """Return a method in a worker that holds others too."""
    config = replace(CONFIG, **score)
    return LossChange(DENOISER, bank, config=config, seed=seed, first_losses=first, num_banks=2)


def test_methods_of_one_pass_compute_the_losses_of_f1_once_bit_for_bit():
    """This holds also where one of them changed the stem of the network, which is then not computed once for its
    models.
    """
    first = FirstLosses()
    wholes = [{name: size * own for name, own in DENOISER.network.named_parameters()} for size in (0.9, 1.1)]
    one, whole, other = beside(first, BANK), beside(first, wholes), beside(first, BANK[:2], epsilon=0.1)
    for batch in (IMAGES[:4], IMAGES[4:]):
        for method, bank, models in ((one, BANK, 4), (whole, wholes, 2), (other, BANK[:2], 2)):
            together, alone = method.losses(batch), change(bank).losses(batch)
            assert torch.equal(together.before, alone.before) and torch.equal(together.after, alone.after)
            assert method.forwards == len(batch) * CONFIG.noises * models


@pytest.mark.parametrize(
    "different",
    [{"sigmas": "training"}, {"keep": 0.5}, {"images_per_forward": 3}, {"precision": "bf16"}, {"seed": 2}],
)
def test_what_losses_of_f1_depend_on_keeps_methods_apart(different: dict[str, Any]):
    first = FirstLosses()
    beside(first, BANK).losses(IMAGES)
    apart = beside(first, BANK, **different)
    losses, alone = apart.losses(IMAGES), beside(FirstLosses(), BANK, **different).losses(IMAGES)
    assert apart.forwards == len(IMAGES) * CONFIG.noises * 4
    assert torch.equal(losses.before, alone.before) and torch.equal(losses.after, alone.after)


def test_a_loss_beyond_fp16_is_stored_as_the_largest():
    assert fp16(torch.tensor([[0.25, 70_000.0]])).tolist() == [[0.25, 65_504.0]]


# --- the method as a whole ----------------------------------------------------------------------------------------


class Memory:
    """This holds images in memory, in the form that training expects."""

    def __init__(self, batch: Batch) -> None:
        self.all = batch

    def __len__(self) -> int:
        return len(self.all)

    def batch(self, rows: np.ndarray, stream: np.random.Generator | None = None) -> Batch:
        return picked(self.all, rows.tolist())


@pytest.fixture(scope="module")
def memorised() -> Iterator[SimpleNamespace]:
    """Return F1 trained for some seconds on 60 images, which are few enough to be remembered."""
    images = some_images(60, seed=11)
    config = TrainConfig(
        updates=600, updates_per_epoch=600, batch_size=20, learning_rate=4e-3, warmup_epochs=0, ema_decay=0.95,
        augment=0.0, flip=False, patience=0,
    )  # fmt: skip
    name_torch_stream(1, "train/init")
    state = TrainState.fresh(DiTEDM(DiT(replace(MODEL, width=32, dropout=0.0))), config)
    for _ in training(state, Memory(images), Memory(images), config, seed=1, worker=WorkerContext()):
        pass
    yield SimpleNamespace(denoiser=state.average, images=images, learning_rate=config.learning_rate)


def attributed(method: Attributor, items: list[Item], images: Batch) -> Tensor:
    """Run all hooks of a method on images in memory, as a run calls them."""
    hooks = {part.hook for part in method.card.stages}
    total = method.accumulate(images) if "accumulate" in hooks else {}
    prepared = method.fit(total, iter([images])) if "fit" in hooks else total
    method.load(prepared, [method.fit_item(item, prepared, nothing).tensors for item in items])
    return method.score(images)


def test_bf16_keeps_the_ranks_of_a_trained_model(memorised: SimpleNamespace):
    """Over 180 images, of which the model knows 60, the rank correlation is above .99, and the top 2 % nearly equal."""
    seen: Batch = memorised.images
    others = some_images(120, seed=12)
    images = Batch(
        idx=torch.arange(180),
        z=torch.cat([seen.z, others.z]),
        condition=joined([seen.condition, others.condition]),
    )
    conditions = one_by_one(seen.condition, 3)
    items = [Item(number=n, idx=1000 + n, condition=conditions[n], z=seen.z[n]) for n in range(3)]
    config = MUCSConfig(max_updates=20, batch_size=20, learning_rate_divisor=4.0)
    bank = [
        unlearn(
            memorised.denoiser, item, shuffled_cuts(seen)(f"item={item.number}", 20), bound=4.0, config=config,
            learning_rate=memorised.learning_rate / 4, seed=1,
        ).tensors
        for item in items
    ]  # fmt: skip
    scores = {}
    for precision in ("fp32", "bf16"):
        score = ScoreConfig(noises=20, images_per_forward=20, precision=precision)
        change = LossChange(memorised.denoiser, bank, config=score, seed=1)
        scores[precision] = change.skew(change.losses(images))
    exact, fast = scores["fp32"], scores["bf16"]
    assert not torch.equal(exact, fast)
    for one, other in zip(exact.T, fast.T, strict=True):
        assert spearmanr(one.numpy(), other.numpy()).statistic > 0.99
        assert len({*one.topk(4).indices.tolist()} & {*other.topk(4).indices.tolist()}) >= 3


@pytest.mark.parametrize(
    ("kind", "score", "measure"),
    [
        (MUCS, ScoreConfig(noises=20, images_per_forward=20), "skew"),
        (ForwardINF, ScoreConfig(noises=60, sigmas="training", noise="independent"), "difference"),
        (ForwardINF, ScoreConfig(noises=20, images_per_forward=20), "skew"),
        (AbU, ScoreConfig(noises=20, keep=1.0, images_per_forward=20), "difference"),
        (AbU, ScoreConfig(noises=20, images_per_forward=20), "skew"),
    ],
)
def test_planted_duplicates_rank_in_the_top_decile(
    memorised: SimpleNamespace, kind: type[Attributor], score: ScoreConfig, measure: str
):
    """The generated item is a training image: that image is among the 6 of 60 that unlearning it hurts most."""
    images: Batch = memorised.images
    planted = [7, 22, 51]
    items = [
        Item(
            number=number,
            idx=1000 + at,
            condition=one_by_one(images.condition, len(images))[at],
            z=images.z[at],
        )
        for number, at in enumerate(planted)
    ]
    knobs = SimpleNamespace(
        seed=1, model=MODEL, train=TrainConfig(learning_rate=memorised.learning_rate), score=score,
        method={
            "mucs": MUCSConfig(bound="zero-output", max_updates=40, batch_size=20, learning_rate_divisor=4.0),
            "forward-inf": ForwardINFConfig(learning_rate_divisor=10.0), "abu": AbUConfig(),
        },
        rank=RankConfig(measure=measure),
    )  # fmt: skip
    device = torch.device("cpu")
    context = MethodContext(
        settings=knobs, device=device, num_images=60, denoiser=memorised.denoiser, batches=shuffled_cuts(images)
    )
    scores = attributed(kind(context), items, images)
    places = [int((scores[:, number] > scores[at, number]).sum()) for number, at in enumerate(planted)]
    assert max(places) < 6, places
    assert all(scores[at, number] > 0 for number, at in enumerate(planted))
