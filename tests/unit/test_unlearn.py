"""Unlearning keeps its null loss, objective, stop rule and bound, and changes only what it may (spec 7.1, 7.2, 18)."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mucs_ray.attribution import unlearn as unlearning
from mucs_ray.attribution.cards.mucs import MUCSConfig
from mucs_ray.attribution.unlearn import LevelBound, Unlearned, draw_losses, null_loss, unlearn
from mucs_ray.diffusion.batch import Batch, Item
from mucs_ray.diffusion.condition import Condition, for_each
from mucs_ray.diffusion.edm import EDM, analytic_null_loss
from mucs_ray.diffusion.loss import denoising_loss
from mucs_ray.diffusion.noise import generator, normal
from mucs_ray.diffusion.process import Process
from mucs_ray.diffusion.schedule import random_schedule_sigmas, training_sigmas
from mucs_ray.errors import RunFailed
from mucs_ray.models.dit import DiT, DiTConfig, unlearned_names
from mucs_ray.models.dit_edm import DiTEDM
from tiny import rows

MODEL = DiTConfig(
    image_size=8, patch_size=4, width=16, depth=2, num_heads=2, registers=1, condition_channels=16, condition_dim=3,
    kernel_size=3, dropout=0.1,
)  # fmt: skip
RATE, SEED, FAR = 1e-3, 5, 1e9
"""With FAR as the bound no draw is clamped and the stop rule never fires."""


def training_set() -> Batch:
    made = rows(40, first_idx=0, seed=3)
    return Batch(
        idx=torch.arange(40),
        z=torch.from_numpy(np.stack([row.image for row in made])).float() / 127.5 - 1,
        condition={"condition": torch.eye(3)[[row.label for row in made]]},
    )


IMAGES = training_set()


def batches(step: int) -> Batch:
    """Return sixteen images that change with the step."""
    return IMAGES[slice(step * 7 % 24, step * 7 % 24 + 16)]


@pytest.fixture
def trained() -> DiTEDM:
    """Return F1 with an output that depends on all its inputs and parameters (a fresh network puts out zero)."""
    denoiser = DiTEDM(DiT(MODEL))
    with torch.no_grad():
        for number, parameter in enumerate(denoiser.parameters()):
            parameter.copy_(0.2 * normal(generator(3, f"parameter={number}"), *parameter.shape))
    return denoiser


def item(idx: int = 60, *, number: int = 0) -> Item:
    image = 0.5 * normal(generator(7, f"image={idx}"), 3, 8, 8)
    return Item(number=number, idx=idx, condition={"condition": torch.tensor([0.0, 1.0, 0.0])}, z=image)


def run(
    denoiser: DiTEDM,
    what: Item,
    *,
    bound: float = FAR,
    level_bound: LevelBound | None = None,
    rate: float = RATE,
    **changes: object,
) -> Unlearned:
    config = replace(MUCSConfig(max_updates=3), **changes)
    return unlearn(
        denoiser, what, batches, bound=bound, level_bound=level_bound, config=config, learning_rate=rate, seed=SEED
    )


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def own_tensors(denoiser: DiTEDM) -> dict[str, Tensor]:
    """Return F1's tensors under the names that unlearning changes."""
    state = denoiser.network.state_dict()
    return {name: state[name].clone() for name in unlearned_names(denoiser.network)}


def hand_losses(denoiser: DiTEDM, image: Tensor, condition: Condition, name: str) -> Tensor:
    """Return losses at the draws of a name: first the sigmas are drawn, then the noise."""
    stream = generator(SEED, name)
    sigma = training_sigmas(stream, len(image))
    return denoising_loss(EDM(), denoiser, image, normal(stream, *image.shape), sigma, condition)


def hand_objective(denoiser: DiTEDM, what: Item, step: int, weight: float, bound: float) -> Tensor:
    """Return l_ft - lambda l_ga of a step, computed independently of the code under test."""
    batch, name = batches(step), f"unlearn/item={what.idx}/step={step}"
    descent = hand_losses(denoiser, batch.z, batch.condition, f"{name}/train").mean()
    repeated = what.z[None].repeat(16, 1, 1, 1), for_each(what.condition, 16)
    ascent = torch.minimum(hand_losses(denoiser, *repeated, f"{name}/item"), torch.tensor(bound)).mean()
    return descent - weight * ascent


# --- the objective ----------------------------------------------------------------------------------------------------


def test_no_ascent_is_plain_fine_tuning_bit_for_bit(trained: DiTEDM):
    tuned = copy.deepcopy(trained).eval().requires_grad_(False)
    chosen = [tuned.network.get_parameter(name).requires_grad_() for name in unlearned_names(tuned.network)]
    optimizer = torch.optim.AdamW(chosen, lr=RATE, weight_decay=0.01, fused=True)
    for step in range(3):
        batch = batches(step)
        loss = hand_losses(tuned, batch.z, batch.condition, f"unlearn/item=60/step={step}/train").mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    actual = run(trained, item(), ascent_weight=0.0)
    assert equal(actual.tensors, own_tensors(tuned))
    assert not equal(actual.tensors, own_tensors(trained))


@pytest.mark.parametrize("bound", [FAR, 2.0])
def test_first_update_descends_the_objective_by_hand(trained: DiTEDM, bound: float):
    """AdamW's first step is theta (1 - lr wd) - lr g / (|g| + eps), g being the gradient of l_ft - lambda l_ga."""
    weight = 0.7
    chosen = {name: trained.network.get_parameter(name) for name in unlearned_names(trained.network)}
    trained.eval()
    objective = hand_objective(trained, item(), 0, weight, bound)
    gradients = torch.autograd.grad(objective, list(chosen.values()))
    actual = run(trained, item(), bound=bound, ascent_weight=weight, max_updates=1, tolerance=0.0)
    assert actual.updates == 1
    for (name, before), gradient in zip(chosen.items(), gradients, strict=True):
        moved = before.detach() * (1 - RATE * 0.01) - RATE * gradient / (gradient.abs() + 1e-8)
        steady = gradient.abs() > 1e-5  # nearer to zero, rounding decides the sign
        assert steady.float().mean() > 0.9
        torch.testing.assert_close(actual.tensors[name][steady], moved[steady], rtol=0, atol=2e-6, msg=name)


def test_ascent_raises_the_loss_of_the_item_and_descent_alone_lowers_it(trained: DiTEDM):
    """The loss is measured on other draws than those that unlearning saw."""

    def after(weight: float) -> float:
        changed = copy.deepcopy(trained).eval()
        actual = run(trained, item(), ascent_weight=weight, max_updates=20)
        changed.network.load_state_dict(actual.tensors, strict=False)
        image, condition = (
            item().z.expand(500, -1, -1, -1),
            for_each(item().condition, 500),
        )
        with torch.no_grad():
            return draw_losses(changed, image, condition, seed=99, name="check").mean().item()

    before = after_nothing(trained)
    assert after(5.0) > 1.05 * before
    assert after(0.0) < before


def after_nothing(trained: DiTEDM) -> float:
    """Return the item's loss under F1."""
    image, condition = (
        item().z.expand(500, -1, -1, -1),
        for_each(item().condition, 500),
    )
    with torch.no_grad():
        return draw_losses(copy.deepcopy(trained).eval(), image, condition, seed=99, name="check").mean().item()


def test_saturated_draws_have_no_gradient(trained: DiTEDM):
    """With a bound below every draw the item's loss is the bound, whatever the weights."""
    moment = next(unlearning.measure(trained, item(), batches, bound=1e-3, config=MUCSConfig(), seed=SEED))
    assert moment.item_loss.item() == pytest.approx(1e-3)
    assert moment.reached
    moment.item_loss.backward()
    for name in unlearned_names(trained.network):
        assert not trained.network.get_parameter(name).grad.any(), name


def test_only_unsaturated_draws_pull(trained: DiTEDM):
    """The clamp acts on each draw before the mean, and a clamped draw has zero gradient."""
    trained.eval().requires_grad_(True)
    losses = hand_losses(
        trained,
        item().z.expand(16, -1, -1, -1),
        for_each(item().condition, 16),
        "unlearn/item=60/step=0/item",
    )
    bound = losses.median().item()
    below = losses < bound
    assert 0 < below.sum() < 16
    expected = (losses * below).sum() / 16
    moments = unlearning.measure(trained, item(), batches, bound=bound, config=MUCSConfig(), seed=SEED)
    moment = next(moments)
    by_hand = (losses.detach()[below].sum() + bound * (~below).sum()) / 16
    assert moment.item_loss.item() == pytest.approx(by_hand.item(), rel=1e-6)
    weights = [trained.network.get_parameter(name) for name in unlearned_names(trained.network)]
    for actual, hand in zip(
        torch.autograd.grad(moment.item_loss, weights), torch.autograd.grad(expected, weights), strict=True
    ):
        torch.testing.assert_close(actual, hand, rtol=1e-4, atol=1e-6)


# --- when it ends -----------------------------------------------------------------------------------------------------


def test_stop_rule_is_tested_before_the_update(trained: DiTEDM):
    """An item whose clamped loss is at 0.95 of the null loss at the start is not touched: no update, F1's tensors."""
    start = run(trained, item(), max_updates=1).item_loss[0]
    actual = run(trained, item(), bound=0.01)
    assert (actual.outcome, actual.updates, len(actual.item_loss)) == ("reached", 0, 1)
    assert equal(actual.tensors, own_tensors(trained))
    assert start > 0.01


def test_stop_rule_compares_with_the_tolerated_share_of_the_bound(trained: DiTEDM):
    """The share is just below and just above the clamped loss: one goes on, the other stops."""
    bound = 2.0
    share = run(trained, item(), bound=bound, tolerance=0.0, max_updates=1).item_loss[0] / bound
    assert 0.1 < share < 0.999
    stops = run(trained, item(), bound=bound, tolerance=1 - share + 1e-4)
    goes_on = run(trained, item(), bound=bound, tolerance=1 - share - 1e-4)
    assert (stops.outcome, stops.updates) == ("reached", 0)
    assert goes_on.updates > 0


def test_an_item_is_unlearned_after_some_updates(trained: DiTEDM):
    """The last recorded loss is the one that fired the rule, and all before it did not."""
    bound = 2.0
    start = run(trained, item(), bound=bound, tolerance=0.0, max_updates=1).item_loss[0]
    tolerance = 1 - 1.08 * start / bound
    actual = run(trained, item(), bound=bound, tolerance=tolerance, ascent_weight=20.0, max_updates=200)
    assert actual.outcome == "reached"
    assert 0 < actual.updates < 200
    assert len(actual.item_loss) == len(actual.train_loss) == actual.updates + 1
    target = (1 - tolerance) * bound
    assert [loss >= target for loss in actual.item_loss] == [False] * actual.updates + [True]


@pytest.mark.parametrize("most", [1, 4])
def test_max_updates_is_kept_and_reported(trained: DiTEDM, most: int):
    updates: list[tuple[int, float]] = []
    config = MUCSConfig(max_updates=most)
    actual = unlearn(
        trained, item(), batches, bound=FAR, config=config, learning_rate=RATE, seed=SEED,
        on_update=lambda step, loss: updates.append((step, loss)),
    )  # fmt: skip
    assert (actual.outcome, actual.updates) == ("bound hit", most)
    assert updates == list(enumerate(actual.item_loss))
    assert len(updates) == most + 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("whose", ["train", "item"])
def test_a_loss_that_is_not_finite_names_the_item(
    monkeypatch: pytest.MonkeyPatch, trained: DiTEDM, whose: str, value: float
):
    """So does an infinite draw of the item, which the clamp would turn into the bound."""
    real = unlearning.draw_losses

    def broken(*given: object, name: str, **how: object) -> Tensor:
        losses = real(*given, name=name, **how)
        return losses + value if name.endswith(f"step=2/{whose}") else losses

    monkeypatch.setattr(unlearning, "draw_losses", broken)
    with pytest.raises(RunFailed, match=r"item 4, update 2: .* idx=61 is not finite"):
        run(trained, item(61, number=4))


# --- what may change --------------------------------------------------------------------------------------------------


def test_only_the_mlp_weights_change_and_the_model_is_lent(monkeypatch: pytest.MonkeyPatch, trained: DiTEDM):
    """Frozen tensors are not even decayed; F1 is unchanged in mode, in gradients and to the last bit."""
    copies: list[nn.Module] = []
    real = unlearning.frozen_copy
    monkeypatch.setattr(unlearning, "frozen_copy", lambda module: copies.append(real(module)) or copies[-1])
    before = copy.deepcopy(trained.state_dict())
    actual = run(trained.train(), item(), weight_decay=0.5)
    assert equal(trained.state_dict(), before)
    assert trained.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in trained.parameters())
    (changed,) = copies
    assert not any(part.training for part in changed.modules())
    expected = {
        f"dit_backbone.{block}.mlp.{layer}.weight" for block in (0, 1) for layer in (0, 3)
    } | {"y_embedder.emb_mlp.0.weight", "y_embedder.emb_mlp.3.weight"}  # fmt: skip
    assert set(actual.tensors) == expected
    for name, tensor in changed.network.state_dict().items():
        assert torch.equal(tensor, trained.network.state_dict()[name]) == (name not in expected), name
    assert not any(tensor.requires_grad for tensor in actual.tensors.values())


def test_weight_decay_is_that_of_the_config(trained: DiTEDM):
    """Decay alone tells two first updates apart: by lr (wd' - wd) theta."""
    weak = run(trained, item(), weight_decay=0.0, max_updates=1).tensors
    strong = run(trained, item(), weight_decay=50.0, max_updates=1).tensors
    for name, theta in own_tensors(trained).items():
        torch.testing.assert_close(strong[name], weak[name] - RATE * 50.0 * theta, rtol=0, atol=1e-6)


def test_there_is_no_dropout_and_no_condition_drop(trained: DiTEDM):
    """Eval mode is intended: torch's global generator is neither read nor moved."""
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = run(trained.train(), item())
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert equal(run(trained.eval(), item()).tensors, first.tensors)


# --- the draws --------------------------------------------------------------------------------------------------------


def test_draws_are_independent_named_and_of_the_training_distribution(monkeypatch: pytest.MonkeyPatch, trained: DiTEDM):
    """Training batch and item have sigmas and noise of their own, new at each step (spec 7.2)."""
    seen: list[tuple[Any, ...]] = []

    def spy(process: Process, denoiser: DiTEDM, *given: Any) -> Tensor:
        seen.append(given)
        return denoising_loss(EDM(), denoiser, *given)

    monkeypatch.setattr(unlearning, "denoising_loss", spy)
    run(trained, item(), max_updates=2)
    assert len(seen) == 2 * 3  # before both updates and at the end
    for number, (image, noise, sigma, condition, _) in enumerate(seen):
        step, whose = number // 2, ("train", "item")[number % 2]
        stream = generator(SEED, f"unlearn/item=60/step={step}/{whose}")
        assert torch.equal(sigma, training_sigmas(stream, 16))
        assert torch.equal(noise, normal(stream, 16, 3, 8, 8))
        expected = batches(step) if whose == "train" else None
        assert torch.equal(image, item().z.expand_as(image) if expected is None else expected.z)
        classes = item().condition["condition"].expand(16, -1) if expected is None else expected.condition["condition"]
        assert torch.equal(condition["condition"], classes)
    assert len({sigma for _, _, sigmas, *_ in seen for sigma in sigmas.tolist()}) == 6 * 16


def test_an_item_does_not_depend_on_other_items_or_its_number(trained: DiTEDM):
    alone = run(trained, item(61))
    run(trained, item(60))
    again = run(trained, item(61, number=9))
    assert equal(alone.tensors, again.tensors)
    assert (alone.item_loss, alone.train_loss) == (again.item_loss, again.train_loss)
    same_picture = replace(item(61), idx=62)
    assert not equal(run(trained, same_picture).tensors, alone.tensors)  # idx names the draws


def test_an_unconditional_model_is_unlearned_without_condition(trained: DiTEDM):
    plain = DiTEDM(DiT(replace(MODEL, condition_dim=0)))
    plain.load_state_dict({name: t for name, t in trained.state_dict().items() if "y_embedder" not in name})
    without: Callable[[int], Batch] = lambda step: replace(batches(step), condition={})  # noqa: E731
    config = MUCSConfig(max_updates=2)
    actual = unlearn(
        plain, replace(item(), condition={}), without, bound=FAR, config=config, learning_rate=RATE, seed=SEED
    )
    assert actual.updates == 2
    assert not any(name.startswith("y_embedder") for name in actual.tensors)


# --- ablations (spec 8) -----------------------------------------------------------------------------------------------


def test_without_the_clamp_all_draws_pull(trained: DiTEDM):
    """The losses are averaged as they are: the gradient is that under a bound that no draw reaches."""
    low, config = 1e-3, MUCSConfig(clamp=False)
    repeated = item().z.expand(16, -1, -1, -1), for_each(item().condition, 16)
    losses = hand_losses(trained.eval(), *repeated, "unlearn/item=60/step=0/item")
    free = next(unlearning.measure(trained, item(), batches, bound=low, config=config, seed=SEED))
    assert free.item_loss.item() == pytest.approx(losses.mean().item())
    assert free.item_loss.item() > 100 * low
    unbound = run(trained, item(), bound=low, clamp=False, fixed_updates=3)
    assert equal(unbound.tensors, run(trained, item(), bound=FAR).tensors)
    assert not equal(unbound.tensors, run(trained, item(), bound=low, fixed_updates=3).tensors)


def test_without_the_clamp_the_rule_still_ends_it(trained: DiTEDM):
    actual = run(trained, item(), bound=1e-3, clamp=False)
    assert (actual.outcome, actual.updates) == ("reached", 0)


@pytest.mark.parametrize(("bound", "updates"), [(1e-3, 2), (FAR, 5)])
def test_fixed_updates_are_made_whatever_the_loss_and_the_bound_on_them(trained: DiTEDM, bound: float, updates: int):
    """They are made also where the rule would stop before the first, and beyond `max_updates`."""
    actual = run(trained, item(), bound=bound, fixed_updates=updates, max_updates=1)
    assert (actual.outcome, actual.updates) == ("fixed", updates)
    assert len(actual.item_loss) == len(actual.train_loss) == updates + 1
    assert not equal(actual.tensors, own_tensors(trained))
    if bound == FAR:
        assert equal(actual.tensors, run(trained, item(), max_updates=updates).tensors)


def test_the_block_includes_attention_weights_and_nothing_else(trained: DiTEDM):
    """U-C4 changes qkv and proj matrices beside the MLPs; biases, adapters and all others stay."""
    more = {f"dit_backbone.{block}.attention.{layer}.weight" for block in (0, 1) for layer in ("qkv", "proj")}
    actual = run(trained, item(), parameters="block")
    assert set(actual.tensors) == set(unlearned_names(trained.network)) | more
    before = trained.network.state_dict()
    assert not any(torch.equal(tensor, before[name]) for name, tensor in actual.tensors.items())


def test_levels_of_both_losses_can_be_random_positions_of_the_whole_schedule(
    monkeypatch: pytest.MonkeyPatch, trained: DiTEDM
):
    """In U-C2 no top share is kept; each loss draws its own levels, then its noise."""
    seen: list[tuple[Tensor, Tensor]] = []

    def spy(
        process: Process, denoiser: DiTEDM, image: Tensor, noise: Tensor, sigma: Tensor, condition: Condition, _: None
    ) -> Tensor:
        seen.append((sigma, noise))
        return denoising_loss(EDM(), denoiser, image, noise, sigma, condition)

    monkeypatch.setattr(unlearning, "denoising_loss", spy)
    run(trained, item(), sigmas="schedule", max_updates=1)
    assert len(seen) == 4
    for number, (sigma, noise) in enumerate(seen):
        stream = generator(SEED, f"unlearn/item=60/step={number // 2}/{('train', 'item')[number % 2]}")
        assert torch.equal(sigma, random_schedule_sigmas(stream, 16, 1.0))
        assert torch.equal(noise, normal(stream, 16, 3, 8, 8))
    assert not torch.equal(seen[0][0], seen[1][0])


def test_what_is_masked_of_the_training_images_does_not_count(trained: DiTEDM):
    mask = torch.zeros_like(IMAGES.z)
    mask[:, :, :3] = 1  # the three rows at the top
    with_masks = replace(IMAGES, mask=mask)

    def masked(step: int) -> Batch:
        return with_masks[slice(step * 7 % 24, step * 7 % 24 + 16)]

    config = MUCSConfig(max_updates=1)
    actual = unlearn(trained, item(), masked, bound=FAR, config=config, learning_rate=RATE, seed=SEED)
    batch, stream = batches(0), generator(SEED, "unlearn/item=60/step=0/train")
    sigma, noise = training_sigmas(stream, 16), normal(stream, 16, 3, 8, 8)
    at = sigma[:, None, None, None]
    denoised = trained.eval()(batch.z + at * noise, sigma, batch.condition)
    losses = ((at**2 + 0.25) / (at / 2) ** 2 * (denoised - batch.z).square())[:, :, :3]
    assert actual.train_loss[0] == pytest.approx(losses.mean().item(), rel=1e-5)
    assert actual.train_loss[0] != pytest.approx(run(trained, item(), max_updates=1).train_loss[0], rel=1e-3)


# --- the moments at the start ---------------------------------------------------------------------------------------


def test_warm_moments_are_those_of_gradients_that_made_no_update(trained: DiTEDM, monkeypatch: pytest.MonkeyPatch):
    """By hand: m and v of two gradients at F1, of draws of their own, and the first update with them and the third."""
    monkeypatch.setattr(unlearning, "WARM_GRADIENTS", 2)
    config = MUCSConfig(max_updates=1, weight_decay=0.0)
    changed = copy.deepcopy(trained).eval()
    names = unlearned_names(changed.network)
    weights = [changed.network.get_parameter(name).requires_grad_(True) for name in names]
    first, second = [torch.zeros_like(weight) for weight in weights], [torch.zeros_like(weight) for weight in weights]
    warm = unlearning.measure(changed, item(), batches, bound=FAR, config=config, seed=SEED, stream="warm")
    usual = unlearning.measure(changed, item(), batches, bound=FAR, config=config, seed=SEED)
    for losses in (next(warm), next(warm), next(usual)):
        gradients = torch.autograd.grad(losses.train_loss - 0.2 * losses.item_loss, weights)
        for m, v, gradient in zip(first, second, gradients, strict=True):
            m.mul_(0.9).add_(0.1 * gradient)
            v.mul_(0.999).add_(0.001 * gradient**2)
    found = run(trained, item(), max_updates=1, weight_decay=0.0, moments="warm")
    fresh = run(trained, item(), max_updates=1, weight_decay=0.0)
    for name, weight, m, v in zip(names, weights, first, second, strict=True):
        step = RATE * (m / (1 - 0.9**3)) / ((v / (1 - 0.999**3)).sqrt() + 1e-8)
        torch.testing.assert_close(found.tensors[name], (weight - step).detach(), rtol=1e-3, atol=1e-5)
        assert not torch.equal(found.tensors[name], fresh.tensors[name])
    assert found.item_loss[0] == fresh.item_loss[0]  # no weight has moved before the first update


# --- the bound level by level -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["linear", "zero-output"])
def test_every_draw_is_bound_at_its_own_level_and_so_is_the_stop(trained: DiTEDM, kind: str):
    """Each draw's loss is min(L, b(sigma)).

    b = 4 (sigma^2 + .25) v / (sigma^2 + v), or 4 (sigma^2 v + .0625) / (sigma^2 + .25) (spec/models 2.5).
    """
    v, name, process = 0.3, "unlearn/item=60/step=0/item", EDM()
    sigma = training_sigmas(generator(SEED, name), 16)
    bounds = {
        "linear": 4 * (sigma**2 + 0.25) * v / (sigma**2 + v),
        "zero-output": 4 * (sigma**2 * v + 0.0625) / (sigma**2 + 0.25),
    }[kind]
    level_bound = partial(process.linear_bound if kind == "linear" else process.zero_output_bound, mean_square=v)
    repeated = item().z.expand(16, -1, -1, -1), for_each(item().condition, 16)
    losses = hand_losses(trained.eval(), *repeated, name)
    assert (losses > bounds).any() and (losses < bounds).any()  # both sides of the minimum are there
    expected = torch.minimum(losses, bounds).mean().item()
    actual = run(trained, item(), bound=FAR, level_bound=level_bound, max_updates=1)
    share = expected / bounds.mean().item()
    assert actual.item_loss[0] == pytest.approx(share * FAR, rel=1e-5)
    # whatever the mean over all levels is, these draws are compared with the bound at their own
    for bound in (FAR, 0.5):
        near, far = (
            run(trained, item(), bound=bound, level_bound=level_bound, max_updates=1, tolerance=t)
            for t in (1 - share + 1e-4, 1 - share - 1e-4)
        )
        assert near.updates == 0 and near.outcome == "reached"
        assert far.updates == 1
    unbound = run(trained, item(), bound=FAR, level_bound=level_bound, clamp=False, max_updates=1)
    assert unbound.item_loss[0] == pytest.approx(losses.mean().item(), rel=1e-5)


# --- the null loss ----------------------------------------------------------------------------------------------------


class Zero(nn.Module):
    """This is a raw network that puts out zero."""

    def forward(self, x: Tensor, *_: Tensor | None) -> Tensor:
        return torch.zeros_like(x)


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_null_loss_of_a_zero_network_is_the_closed_form(scale: float):
    """L_null(sigma) = (sigma^2 v + sd^4) / (sd^2 (sigma^2 + sd^2)), averaged over ln sigma ~ N(-1.2, 1.2^2), within 1
    %.
    """
    data = replace(IMAGES, z=IMAGES.z * scale)
    v = data.z.double().square().mean().item()
    actual = null_loss(DiTEDM(Zero()), lambda step: data, num_batches=500, seed=1)
    z = np.linspace(-8, 8, 4001)
    sigma, density = np.exp(-1.2 + 1.2 * z), np.exp(-(z**2) / 2)
    closed = ((sigma**2 * v + 0.5**4) / (0.25 * (sigma**2 + 0.25)) * density).sum() / density.sum()
    assert actual == pytest.approx(closed, rel=0.01)
    assert analytic_null_loss(v) == pytest.approx(closed, rel=1e-6)


def test_null_loss_of_an_untrained_network_is_that_of_a_zero_network():
    """F is 0 at initialisation, so neither the network nor the mode it is lent in matters."""
    fresh = DiTEDM(DiT(MODEL)).train()
    actual = null_loss(fresh, batches, num_batches=4, seed=1)
    assert actual == null_loss(DiTEDM(Zero()), batches, num_batches=4, seed=1)
    assert fresh.training


def test_null_loss_is_the_mean_over_named_batches():
    """Batch after batch is drawn from "null/step=i": of two batches it is the mean of the two."""
    zero = DiTEDM(Zero())
    first = draw_losses(zero, IMAGES.z, {}, seed=1, name="null/step=0").mean().item()
    second = draw_losses(zero, IMAGES.z, {}, seed=1, name="null/step=1").mean().item()
    assert null_loss(zero, lambda step: IMAGES, num_batches=1, seed=1) == pytest.approx(first)
    assert null_loss(zero, lambda step: IMAGES, num_batches=2, seed=1) == pytest.approx((first + second) / 2)
    assert not math.isclose(first, second)
