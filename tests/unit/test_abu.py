"""AbU's Fisher matrix and step equal closed forms on a linear network, and plain autograd (spec 9.8)."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from mucs_ray.attribution.abu import AbU
from mucs_ray.attribution.base import ItemState, MethodContext, Tensors
from mucs_ray.attribution.cards.abu import AbUConfig
from mucs_ray.diffusion.batch import Batch, Item
from mucs_ray.diffusion.condition import for_each
from mucs_ray.diffusion.edm import EDM
from mucs_ray.diffusion.loss import denoising_loss
from mucs_ray.diffusion.noise import generator, normal
from mucs_ray.diffusion.schedule import training_sigmas
from mucs_ray.errors import RunFailed
from mucs_ray.models.dit import DiT, DiTConfig, unlearned_names
from mucs_ray.models.dit_edm import DiTEDM
from mucs_ray.training.ema import frozen_copy

MODEL = DiTConfig(
    image_size=8, patch_size=4, width=16, depth=2, num_heads=2, registers=1, condition_channels=16, condition_dim=3,
    kernel_size=3, dropout=0.1,
)  # fmt: skip
SEED, NUM_IMAGES = 5, 40
SCALE_CONFIG = AbUConfig(parameters="all", fisher_draws=3, draws=50, draws_per_forward=20)


class Scale(nn.Module):
    """This network computes F = w u with a weight for each channel, so its loss is quadratic in w. It does not use
    `idle`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.3, -0.2, 0.5]))
        self.idle = nn.Parameter(torch.tensor([7.0]))

    def forward(self, x: Tensor, *_: Tensor | None) -> Tensor:
        return x * self.weight[:, None, None] + 0 * self.idle


def scale_gradient(weight: Tensor, image: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    """Return dL / dw_c = 2 / (C H W) sum_hw (w_c u - F*) u in float64; u is the network's input and F* its target (spec
    3.1).
    """
    image, sigma, noise = image.double(), sigma.double(), noise.double()
    noisy = image + sigma * noise
    u = noisy / (sigma**2 + 0.25).sqrt()
    target = (image - 0.25 / (sigma**2 + 0.25) * noisy) / (0.5 * sigma / (sigma**2 + 0.25).sqrt())
    return 2 / image.numel() * ((weight.double()[:, None, None] * u - target) * u).sum(dim=(1, 2))


def draws(name: str, num: int) -> tuple[Tensor, Tensor]:
    """Return levels and noise, each from a stream of its own."""
    return training_sigmas(generator(SEED, f"{name}/sigma"), num), normal(
        generator(SEED, f"{name}/noise"), num, 3, 8, 8
    )


def images(count: int = 6) -> Batch:
    return Batch(
        idx=torch.arange(100, 100 + count),
        z=0.5 * normal(generator(2, "images"), count, 3, 8, 8),
        condition={"condition": torch.eye(3)[torch.arange(count) % 3]},
    )


def item(idx: int = 60, *, number: int = 0) -> Item:
    image = 0.5 * normal(generator(7, f"image={idx}"), 3, 8, 8)
    return Item(number=number, idx=idx, condition={"condition": torch.tensor([0.0, 1.0, 0.0])}, z=image)


def abu(denoiser: DiTEDM, config: AbUConfig = SCALE_CONFIG) -> AbU:
    knobs = SimpleNamespace(seed=SEED, method={"abu": config})
    return AbU(MethodContext(settings=knobs, device=torch.device("cpu"), num_images=NUM_IMAGES, denoiser=denoiser))


def adapt(method: AbU, what: Item, total: Tensors) -> ItemState:
    return method.fit_item(what, total, lambda step, loss: None)


@pytest.fixture(scope="module")
def linear() -> DiTEDM:
    return frozen_copy(DiTEDM(Scale()))


@pytest.fixture(scope="module")
def trained() -> DiTEDM:
    """Return F1 with an output that depends on all its inputs and parameters."""
    denoiser = frozen_copy(DiTEDM(DiT(MODEL)))
    for number, parameter in enumerate(denoiser.parameters()):
        parameter.copy_(0.2 * normal(generator(3, f"parameter={number}"), *parameter.shape))
    return denoiser


# --- the Fisher matrix ------------------------------------------------------------------------------------------------


def test_fisher_of_a_linear_network_is_the_closed_form(linear: DiTEDM):
    """Each draw's gradient is squared, then averaged over an image's draws, then summed over images."""
    expected = torch.zeros(3, dtype=torch.float64)
    for idx, image in zip(images().idx.tolist(), images().z, strict=True):
        for sigma, noise in zip(*draws(f"abu/fisher/idx={idx}", 3), strict=True):
            expected += scale_gradient(linear.network.weight, image, sigma, noise) ** 2 / 3
    actual = abu(linear).accumulate(images())
    assert set(actual) == {"weight", "idle", "count"}
    assert actual["weight"].dtype == torch.float64
    torch.testing.assert_close(actual["weight"], expected, rtol=1e-4, atol=0)
    assert (actual["idle"].item(), actual["count"].item()) == (0, 6)


def test_fisher_of_a_transformer_is_that_of_plain_autograd(trained: DiTEDM):
    """Autograd takes one draw at a time, with torch's own attention kernel, conditions and all parameters."""
    actual = abu(trained).accumulate(images(2))
    exact = copy.deepcopy(trained).requires_grad_(True)
    expected = {name: torch.zeros_like(parameter) for name, parameter in exact.network.named_parameters()}
    for at in range(2):
        sigma, noise = draws(f"abu/fisher/idx={100 + at}", 3)
        for draw in range(3):
            one, cut = images(2)[at : at + 1], slice(draw, draw + 1)
            loss = denoising_loss(EDM(), exact, one.z, noise[cut], sigma[cut], one.condition)
            gradients = torch.autograd.grad(loss.sum(), list(exact.network.parameters()))
            for (name, _), gradient in zip(exact.network.named_parameters(), gradients, strict=True):
                expected[name] += gradient.square() / 3
    assert set(actual) == {*expected, "count"}
    for name, squares in expected.items():  # a bias before a norm has a gradient of rounding errors alone
        nearly = 1e-5 * float(squares.max()) + 1e-11
        torch.testing.assert_close(actual[name].float(), squares, rtol=1e-3, atol=nearly, msg=name)


def test_fisher_does_not_depend_on_how_the_data_is_cut(trained: DiTEDM):
    """It does not depend on the order of images either: only float64 sums are added in another order."""
    method = abu(trained, AbUConfig(fisher_draws=2))
    whole = method.accumulate(images())
    parts = [method.accumulate(images()[slice(a, b)]) for a, b in ((4, 6), (0, 1), (1, 4))]
    for name, squares in whole.items():
        torch.testing.assert_close(sum(part[name] for part in parts), squares, rtol=1e-12, atol=0)


@pytest.mark.parametrize("parameters", ["attention", "mlp", "all"])
def test_only_the_chosen_tensors_are_in_it_and_change(trained: DiTEDM, parameters: str):
    before, state = copy.deepcopy(trained.state_dict()), torch.get_rng_state()
    method = abu(trained, replace(SCALE_CONFIG, parameters=parameters, fisher_draws=1))
    total = method.accumulate(images(2))
    actual = adapt(method, item(), total)
    expected = {
        "attention": {f"dit_backbone.{block}.attention.qkv.weight" for block in (0, 1)},
        "mlp": set(unlearned_names(trained.network)),
        "all": {name for name, _ in trained.network.named_parameters()},
    }[parameters]
    assert set(actual.tensors) == set(total) - {"count"} == expected
    still = {name for name, tensor in actual.tensors.items() if torch.equal(tensor, before[f"network.{name}"])}
    assert still <= {"y_embedder.xdrop"}  # no image here goes without its condition
    assert not any(tensor.requires_grad for tensor in actual.tensors.values())
    # F1 is lent, and in eval mode there is no dropout to draw
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained.state_dict().items())
    assert not any(parameter.requires_grad for parameter in trained.parameters())
    assert torch.equal(torch.get_rng_state(), state)


# --- the step ---------------------------------------------------------------------------------------------------------

TOTAL = {
    "weight": torch.tensor([4.0, 0.4, 0.0], dtype=torch.float64),
    "idle": torch.zeros(1, dtype=torch.float64),
    "count": torch.tensor(4.0, dtype=torch.float64),
}


def hand_step(weight: Tensor, step: int, config: AbUConfig) -> Tensor:
    """Return w + alpha g / (N (F + damping mean F)) with F = (1, 0.1, 0)."""
    pairs = zip(*draws(f"abu/item=60/step={step}", config.draws), strict=True)
    gradient = torch.stack([scale_gradient(weight, item().z, *pair) for pair in pairs]).mean(0)
    fisher = torch.tensor([1.0, 0.1, 0.0], dtype=torch.float64)
    return weight.double() + config.step * gradient / (NUM_IMAGES * (fisher + config.damping * 1.1 / 3))


@pytest.mark.parametrize("damping", [0.1, 0.5])
def test_a_step_on_a_quadratic_is_the_closed_form(linear: DiTEDM, damping: float):
    """It goes up the item's loss, and farther the less the training set cares; damping alone holds the third weight."""
    config = replace(SCALE_CONFIG, damping=damping, step=0.3)
    actual = adapt(abu(linear, config), item(), TOTAL)
    expected = hand_step(linear.network.weight, 0, config)
    torch.testing.assert_close(actual.tensors["weight"].double(), expected, rtol=1e-5, atol=1e-6)
    assert (expected - linear.network.weight).abs().min() > 1e-4
    assert actual.tensors["idle"].item() == 7


def test_every_update_has_draws_of_its_own_and_starts_where_the_last_one_ended(linear: DiTEDM):
    config = replace(SCALE_CONFIG, updates=2, step=0.3)
    expected = hand_step(hand_step(linear.network.weight, 0, config), 1, config)
    actual = adapt(abu(linear, config), item(), TOTAL)
    torch.testing.assert_close(actual.tensors["weight"].double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("at_once", [1, 7, 50, 1000])
def test_draws_at_once_change_nothing_but_rounding(linear: DiTEDM, at_once: int):
    actual, whole = (
        adapt(abu(linear, replace(SCALE_CONFIG, draws_per_forward=each)), item(), TOTAL) for each in (at_once, 20)
    )
    torch.testing.assert_close(actual.tensors["weight"], whole.tensors["weight"], rtol=1e-6, atol=0)
    assert actual.facts["item_loss"] == pytest.approx(whole.facts["item_loss"], rel=1e-5)


def test_the_first_and_last_loss_are_on_the_same_draws(linear: DiTEDM):
    """A step that is next to nothing leaves the first and last value equal, whatever was drawn between."""
    updates: list[tuple[int, float]] = []
    config = replace(SCALE_CONFIG, updates=2, step=1e-12)
    facts = abu(linear, config).fit_item(item(), TOTAL, lambda *now: updates.append(now)).facts
    first, between, last = facts["item_loss"]
    assert updates == list(enumerate(facts["item_loss"]))
    assert first == last != between
    assert (facts["outcome"], facts["updates"]) == ("fixed", 2)
    sigma, noise = draws("abu/item=60/step=0", 50)
    image, condition = item().z.expand_as(noise), for_each(item().condition, 50)
    assert first == pytest.approx(denoising_loss(EDM(), linear, image, noise, sigma, condition).mean().item(), rel=1e-5)


def test_there_is_a_floor_under_the_fisher_matrix(linear: DiTEDM):
    """The floor is a millionth of the mean over all tensors; with neither gradient nor F there is no step."""
    config = replace(SCALE_CONFIG, damping=0.0, step=1e-6)
    actual = adapt(abu(linear, config), item(), TOTAL)
    weight = linear.network.weight
    slope = (hand_step(weight, 0, replace(config, damping=0.1)) - weight)[2] * (0.1 * 1.1 / 3)  # alpha g / N
    expected = weight[2] + slope / (1e-6 * 1.1 / 4)
    assert actual.tensors["weight"][2].item() == pytest.approx(expected.item(), rel=1e-4)
    assert actual.tensors["idle"].item() == 7


def test_a_bias_in_front_of_a_norm_stays_near(trained: DiTEDM):
    """The F of such a bias is made of rounding errors."""
    method = abu(trained, AbUConfig(parameters="all", fisher_draws=1, draws=20))
    actual = adapt(method, item(), method.accumulate(images(2))).tensors
    for name in ("encoder.0.conv1.bias", "decoder.1.conv1.bias"):
        assert (actual[name] - trained.network.get_parameter(name)).abs().max() < 10


def test_the_loss_of_the_item_rises(trained: DiTEDM):
    """The item's own Fisher matrix is used, and the loss is measured on other draws than those of the step."""
    method = abu(trained, AbUConfig(fisher_draws=2, draws=200, parameters="mlp"))
    actual = adapt(method, item(), method.accumulate(images()))
    changed = copy.deepcopy(trained)
    changed.network.load_state_dict(actual.tensors, strict=False)
    sigma, noise = draws("check", 300)
    given = item().z.expand_as(noise), noise, sigma, for_each(item().condition, 300)
    before, after = (denoising_loss(EDM(), model, *given).mean().item() for model in (trained, changed))
    assert after > 1.01 * before
    assert actual.facts["item_loss"][1] > 1.01 * actual.facts["item_loss"][0]


def test_what_is_not_finite_is_named(linear: DiTEDM):
    batch = images()
    batch.z[4, 0, 0, 0] = float("nan")
    with pytest.raises(RunFailed, match="training image idx=104 is not finite"):
        abu(linear).accumulate(batch)
    broken = replace(item(61, number=4), z=torch.full((3, 8, 8), float("nan")))
    with pytest.raises(RunFailed, match=r"item 4, update 0: .* idx=61 is not finite"):
        adapt(abu(linear), broken, TOTAL)
    with pytest.raises(RunFailed, match=r"item 0, update 1: .* idx=60 is not finite"):
        adapt(abu(linear, replace(SCALE_CONFIG, step=1e60)), item(), TOTAL)
