"""Forward-INF equals a hand-written loop of torch's AdamW up the item's loss, which nothing holds back (spec 9.7)."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from mucs_ray.attribution.base import ItemState, MethodContext
from mucs_ray.attribution.cards.forward_inf import ForwardINFConfig
from mucs_ray.attribution.forward_inf import ForwardINF
from mucs_ray.diffusion.batch import Item
from mucs_ray.diffusion.condition import for_each
from mucs_ray.diffusion.edm import EDM
from mucs_ray.diffusion.loss import denoising_loss
from mucs_ray.diffusion.noise import generator, normal
from mucs_ray.diffusion.schedule import training_sigmas
from mucs_ray.errors import RunFailed
from mucs_ray.models.dit import DiT, DiTConfig
from mucs_ray.models.dit_edm import DiTEDM
from mucs_ray.training.config import TrainConfig
from mucs_ray.training.ema import frozen_copy

MODEL = DiTConfig(
    image_size=8, patch_size=4, width=16, depth=2, num_heads=2, registers=1, condition_channels=16, condition_dim=3,
    kernel_size=3, dropout=0.1,
)  # fmt: skip
SEED = 5
CONFIG = ForwardINFConfig(updates=4, draws=12)


@pytest.fixture(scope="module")
def trained() -> DiTEDM:
    """Return F1 with an output that depends on all its inputs and parameters."""
    denoiser = frozen_copy(DiTEDM(DiT(MODEL)))
    for number, parameter in enumerate(denoiser.parameters()):
        parameter.copy_(0.2 * normal(generator(3, f"parameter={number}"), *parameter.shape))
    return denoiser


def item(idx: int = 60, *, number: int = 0) -> Item:
    image = 0.5 * normal(generator(7, f"image={idx}"), 3, 8, 8)
    return Item(number=number, idx=idx, condition={"condition": torch.tensor([0.0, 1.0, 0.0])}, z=image)


def adapt(
    denoiser: DiTEDM, what: Item, config: ForwardINFConfig = CONFIG, updates: list[tuple[int, float]] | None = None
) -> ItemState:
    knobs = SimpleNamespace(seed=SEED, train=TrainConfig(learning_rate=0.02), method={"forward-inf": config})
    context = MethodContext(settings=knobs, device=torch.device("cpu"), num_images=40, denoiser=denoiser)
    updates = [] if updates is None else updates
    return ForwardINF(context).fit_item(what, {}, lambda *now: updates.append(now))


def hand_loss(denoiser: DiTEDM, what: Item, name: str, num: int) -> Tensor:
    """Return the mean over draws of the training distribution: first the sigmas are drawn, then the noise."""
    stream = generator(SEED, name)
    sigma, noise = training_sigmas(stream, num), normal(stream, num, 3, 8, 8)
    return denoising_loss(EDM(), 
        denoiser, what.z.repeat(num, 1, 1, 1), noise, sigma, for_each(what.condition, num)
    ).mean()  # fmt: skip


def changed_by(denoiser: DiTEDM, tensors: dict[str, Tensor]) -> DiTEDM:
    changed = copy.deepcopy(denoiser)
    changed.network.load_state_dict(tensors, strict=False)
    return changed


def test_it_is_adamw_without_decay_up_the_loss_of_the_item(trained: DiTEDM):
    """All weights move, at the training's rate over the divisor, on new draws at each update."""
    by_hand = copy.deepcopy(trained).requires_grad_(True)
    optimizer = torch.optim.AdamW(by_hand.parameters(), lr=0.02 / 10, weight_decay=0.0, fused=True)
    trace = []
    for step in range(4):
        loss = hand_loss(by_hand, item(), f"forward-inf/item=60/step={step}", 12)
        trace.append(loss.item())
        optimizer.zero_grad()
        loss.neg().backward()
        optimizer.step()
    trace.append(hand_loss(by_hand, item(), "forward-inf/item=60/step=4", 12).item())
    updates: list[tuple[int, float]] = []
    actual = adapt(trained, item(), updates=updates)
    assert set(actual.tensors) == {name for name, _ in trained.network.named_parameters()}
    for name, parameter in by_hand.network.named_parameters():
        assert torch.equal(actual.tensors[name], parameter), name
    assert actual.facts["item_loss"] == trace
    assert (actual.facts["outcome"], actual.facts["updates"]) == ("fixed", 4)
    assert updates == list(enumerate(actual.facts["item_loss"]))


def test_the_loss_of_the_item_rises_without_bound(trained: DiTEDM):
    """It is measured on other draws than those of the ascent; it rises with more updates, and beyond any null loss."""
    losses = [hand_loss(trained, item(), "check", 300).item()]
    for updates in (2, 10):
        tensors = adapt(trained, item(), replace(CONFIG, updates=updates, learning_rate_divisor=1.0)).tensors
        losses.append(hand_loss(changed_by(trained, tensors), item(), "check", 300).item())
    assert losses[0] * 1.05 < losses[1] < losses[2]
    assert losses[2] > 2


def test_the_rate_is_divided(trained: DiTEDM):
    """AdamW's first step moves what has a gradient by the rate."""
    for divisor in (1.0, 8.0):
        actual = adapt(trained, item(), replace(CONFIG, updates=1, learning_rate_divisor=divisor))
        name = "dit_backbone.1.attention.qkv.weight"
        moved = (actual.tensors[name] - trained.network.get_parameter(name)).abs()
        assert moved.median().item() == pytest.approx(0.02 / divisor, rel=1e-2)


def test_f1_is_lent_and_there_is_no_dropout(trained: DiTEDM):
    """F1 does not change, and torch's global generator is neither read nor moved."""
    before, state = copy.deepcopy(trained.state_dict()), torch.get_rng_state()
    actual = adapt(trained, item())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained.state_dict().items())
    assert not any(parameter.requires_grad for parameter in trained.parameters())
    assert not any(tensor.requires_grad for tensor in actual.tensors.values())


def test_an_item_does_not_depend_on_its_number_but_on_its_idx(trained: DiTEDM):
    alone, again = adapt(trained, item(61)), adapt(trained, item(61, number=9))
    assert alone.facts == again.facts
    assert all(torch.equal(tensor, again.tensors[name]) for name, tensor in alone.tensors.items())
    assert adapt(trained, replace(item(61), idx=62)).facts != alone.facts


def test_a_loss_that_is_not_finite_names_the_item(trained: DiTEDM):
    broken = replace(item(61, number=4), z=torch.full((3, 8, 8), float("nan")))
    with pytest.raises(RunFailed, match=r"item 4, update 0: .* idx=61 is not finite"):
        adapt(trained, broken)
    with pytest.raises(RunFailed, match=r"item 0, update [1-4]: .* idx=60 is not finite"):
        adapt(trained, item(), replace(CONFIG, learning_rate_divisor=1e-30))
