"""D-TRAK's features equal a plain float64 loop, K^-1 is found two other ways, and a duplicate ranks first."""

import copy
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mucs_ray.attribution.base import Attributor, Columns, MethodContext
from mucs_ray.attribution.cards.dtrak import DTRAKConfig
from mucs_ray.attribution.dtrak import DTRAK
from mucs_ray.attribution.projection import Sketch
from mucs_ray.diffusion.batch import Batch, Item
from mucs_ray.diffusion.noise import generator, normal
from mucs_ray.errors import RunFailed
from mucs_ray.models.dit import DiT, unlearned_names
from mucs_ray.models.dit_edm import DiTEDM
from mucs_ray.training.ema import frozen_copy
from tiny import lively, rows, tiny_recipe

CPU = torch.device("cpu")
NOISES, DIM = 4, 64


def some_images(count: int, *, seed: int) -> Batch:
    made = rows(count, first_idx=100, seed=seed)
    return Batch(
        idx=torch.tensor([row.idx for row in made]),
        z=torch.from_numpy(np.stack([row.image for row in made])).float() / 127.5 - 1,
        condition={"condition": torch.eye(3)[[row.label for row in made]]},
    )


def method(denoiser: DiTEDM | None, **knobs: Any) -> DTRAK:
    recipe = tiny_recipe("nowhere", seed=1, method={"dtrak": {"noises": NOISES, "dim": DIM, **knobs}})
    return DTRAK(MethodContext(settings=recipe, device=CPU, num_images=9, denoiser=denoiser))


DENOISER = lively(tiny_recipe("nowhere").model)
IMAGES = some_images(9, seed=5)
FEATURES = method(DENOISER).features(IMAGES)["feature"]


def item_like(image: Tensor, condition: Tensor) -> Item:
    return Item(number=0, idx=900, condition={"condition": condition}, z=image)


def solved(features: Tensor, **knobs: Any) -> dict[str, Tensor]:
    return method(None, **knobs).fit({}, iter([{"feature": features[:4]}, {"feature": features[4:]}]))


def nothing(step: int, loss: float) -> None:
    pass


@pytest.mark.parametrize("gradients", ["of_average", "per_noise"])
def test_captured_features_equal_eager_ones_bit_for_bit(gradients: str):
    """A GPU replays them: from the second image on nothing but the inputs is new."""
    eager = method(DENOISER, gradients=gradients)
    captured = DTRAK(replace(eager.context, captures=True))
    for order in (torch.arange(9), torch.arange(9).flip(0)):
        batch = Batch(idx=order, z=IMAGES.z[order], condition={"condition": torch.eye(3)[order % 3]})
        assert torch.equal(captured.features(batch)["feature"], eager.features(batch)["feature"])


# --- features ---------------------------------------------------------------------------------------------------------


def hand_feature(image: Tensor, condition: Tensor | None, *, names: list[str], signs: int = 1) -> Tensor:
    """Return the gradient of mean F^2 in float64, one noise at a time, then averaged, then projected."""
    network = copy.deepcopy(DENOISER.network).double().requires_grad_(True)
    sigmas = np.exp(-1.2 + 1.2 * generator(1, "dtrak/sigma").standard_normal(NOISES))
    units = normal(generator(1, "dtrak/noise"), NOISES, 3, 8, 8).double()
    weights = [network.get_parameter(name) for name in names]
    total = [torch.zeros_like(weight) for weight in weights]
    for sigma, unit in zip(sigmas, units, strict=True):
        scaled = (image.double() + sigma * unit) / np.sqrt(sigma**2 + 0.25)
        level = torch.tensor([np.log(sigma + 1e-6) / 4])
        raw = network(scaled[None], level, None if condition is None else condition.double()[None], None)
        gradients = torch.autograd.grad(raw.square().mean(), weights, materialize_grads=True)
        total = [each + gradient / NOISES for each, gradient in zip(total, gradients, strict=True)]
    sizes = {name: weight.numel() for name, weight in zip(names, weights, strict=True)}
    sketch = Sketch(sizes, dim=DIM, signs=signs, seed=1, device=CPU)
    return sketch([each.float() for each in total])


ALL = [name for name, _ in DENOISER.network.named_parameters()]
MLP = unlearned_names(DENOISER.network)


@pytest.mark.parametrize("at_once", [1, 3])
def test_fewer_noises_in_a_pass_give_the_same_features(at_once: int):
    cut = method(DENOISER, noises_per_forward=at_once)
    assert len(cut.gradients.gradient.cuts) == -(-NOISES // at_once)
    torch.testing.assert_close(cut.features(IMAGES)["feature"], FEATURES, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("gradients", ["of_average", "per_noise"])
@pytest.mark.parametrize(("parameters", "names", "signs"), [("all", ALL, 1), ("mlp", MLP, 3)])
def test_features_are_a_plain_loop_over_images_and_noises(
    gradients: str, parameters: str, names: list[str], signs: int
):
    actual = method(DENOISER, gradients=gradients, parameters=parameters, signs=signs).features(IMAGES[:3])["feature"]
    assert actual.dtype == torch.float32
    assert actual.shape == (3, DIM)
    assert not actual.requires_grad
    for at, feature in enumerate(actual):
        expected = hand_feature(IMAGES.z[at], IMAGES.condition["condition"][at], names=names, signs=signs)
        torch.testing.assert_close(feature, expected, rtol=1e-3, atol=2e-4 * expected.norm().item())


def test_features_without_a_condition():
    actual = method(DENOISER).features(replace(IMAGES[:1], condition={}))["feature"][0]
    expected = hand_feature(IMAGES.z[0], None, names=ALL)
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=2e-4 * expected.norm().item())
    assert (actual - FEATURES[0]).norm() > 0.01 * expected.norm()


def test_one_backward_pass_gives_the_features_of_one_for_each_noise():
    actual = method(DENOISER, gradients="per_noise").features(IMAGES)["feature"]
    torch.testing.assert_close(actual, FEATURES, rtol=1e-3, atol=1e-5 * FEATURES.norm().item())


@pytest.mark.parametrize("gradients", ["of_average", "per_noise"])
def test_features_do_not_depend_on_cut_or_order_bit_for_bit(gradients: str):
    made = method(DENOISER, gradients=gradients)
    whole = made.features(IMAGES)["feature"]
    cut = [made.features(IMAGES[slice(a, b)])["feature"] for a, b in [(6, 9), (1, 6), (0, 1)]]
    assert torch.equal(torch.cat(cut[::-1]), whole)
    assert torch.equal(method(DENOISER, gradients=gradients).features(IMAGES[4:5])["feature"][0], whole[4])


def test_the_frozen_denoiser_is_left_alone():
    before = copy.deepcopy(DENOISER.state_dict())
    own = [parameter.data_ptr() for parameter in DENOISER.parameters()]
    method(DENOISER).features(IMAGES[:2])
    assert [parameter.data_ptr() for parameter in DENOISER.parameters()] == own
    assert all(torch.equal(tensor, before[name]) for name, tensor in DENOISER.state_dict().items())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in DENOISER.parameters())


# --- K, K^-1 and scores -----------------------------------------------------------------------------------------------


def test_damping_is_relative_to_the_trace():
    """L L^T - Phi^T Phi = damping trace / dim on the diagonal, so features of another scale are compared the same."""
    factor = solved(FEATURES, damping=0.3)["cholesky"].double()
    exact = FEATURES.double()
    kernel = exact.T @ exact
    expected = kernel + 0.3 * kernel.trace() / DIM * torch.eye(DIM)
    assert torch.equal(factor, factor.tril())
    torch.testing.assert_close(factor @ factor.T, expected, rtol=1e-5, atol=1e-6 * kernel.trace().item())
    scaled = solved(100 * FEATURES, damping=0.3)["cholesky"].double()
    torch.testing.assert_close(scaled, 100 * factor, rtol=0, atol=1e-4 * factor.max().item())


def test_vectors_solve_k_by_inverse_and_by_woodbury():
    """K^-1 phi = (phi - Phi^T (lambda I + Phi Phi^T)^-1 Phi phi) / lambda solves for 9 images, not 64 dimensions."""
    one = some_images(1, seed=77)
    feature = method(DENOISER).features(one)["feature"][0].double()
    adapted = method(DENOISER).fit_item(item_like(one.z[0], one.condition["condition"][0]), solved(FEATURES), nothing)
    phi = FEATURES.double()
    damping = 0.1 * phi.square().sum() / DIM
    small = torch.linalg.inv(damping * torch.eye(9) + phi @ phi.T)
    woodbury = (feature - phi.T @ (small @ (phi @ feature))) / damping
    direct = torch.linalg.inv(phi.T @ phi + damping * torch.eye(DIM)) @ feature
    torch.testing.assert_close(woodbury, direct, rtol=1e-8, atol=1e-8 * direct.norm().item())
    actual = adapted.tensors["vector"]
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), direct, rtol=1e-3, atol=1e-4 * direct.norm().item())


def scores(items: list[Item], features: Tensor = FEATURES) -> Tensor:
    """Run all stages in order, each in a worker of its own, and return the scores."""
    prepared = solved(features)
    adapted = [method(DENOISER).fit_item(item, prepared, nothing).tensors for item in items]
    scorer = method(None)
    scorer.load(prepared, adapted)
    return scorer.columns({"idx": torch.arange(len(features)), "feature": features})["score"]


def test_scores_are_products_with_the_vectors():
    others = some_images(2, seed=78)
    items = [
        item_like(image, condition) for image, condition in zip(others.z, others.condition["condition"], strict=True)
    ]
    actual = scores(items)
    phi, of_items = FEATURES.double(), method(DENOISER).features(others)["feature"].double()
    kernel = phi.T @ phi + 0.1 * phi.square().sum() / DIM * torch.eye(DIM)
    expected = phi @ torch.linalg.inv(kernel) @ of_items.T
    assert actual.shape == (9, 2)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-3, atol=1e-5)
    assert torch.equal(scores(items[1:]), actual[:, 1:])


def test_an_item_is_measured_unclamped_as_a_training_image_would_be():
    bright = 1.7 * IMAGES.z[2]
    assert bright.abs().max() > 1
    prepared = {"cholesky": torch.eye(DIM)}  # K = 1: the vector is the feature
    actual = (
        method(DENOISER)
        .fit_item(item_like(bright, IMAGES.condition["condition"][2]), prepared, nothing)
        .tensors["vector"]
    )
    as_training = method(DENOISER).features(replace(IMAGES[2:3], z=bright[None]))["feature"][0]
    torch.testing.assert_close(actual, as_training, rtol=1e-6, atol=0)
    expected = hand_feature(bright, IMAGES.condition["condition"][2], names=ALL)
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=2e-4 * expected.norm().item())


@pytest.mark.parametrize("planted", [3, 17])
def test_a_planted_duplicate_ranks_first(planted: int):
    """The generated item is a training image (spec 18)."""
    images = some_images(30, seed=9)
    item = item_like(images.z[planted], images.condition["condition"][planted])
    actual = scores([item], method(DENOISER).features(images)["feature"])[:, 0]
    assert actual.argmax() == planted
    assert 0 < actual[planted] < 1  # a leverage


# --- failing, and what the engine is told -----------------------------------------------------------------------------


def test_an_image_with_nan_is_named():
    broken = replace(IMAGES, z=IMAGES.z.clone())
    broken.z[4, 1, 2, 3] = float("nan")
    made = method(DENOISER)
    with pytest.raises(RunFailed, match="D-TRAK: the feature of training image idx=104 is not finite"):
        made.features(broken)
    with pytest.raises(RunFailed, match="D-TRAK, item 0: the feature of the generated image idx="):
        item = item_like(broken.z[4], IMAGES.condition["condition"][4])
        made.fit_item(item, {"cholesky": torch.eye(DIM)}, nothing)
    assert torch.equal(made.features(IMAGES)["feature"], FEATURES)  # the failure has not spread


@pytest.mark.parametrize("value", [0.0, float("inf")])
def test_a_matrix_that_cannot_be_inverted_is_one_clear_line(value: float):
    """Zero features are those of an untrained network, whose output is zero."""
    with pytest.raises(RunFailed, match=r"cannot be inverted .*dtrak\.damping"):
        solved(torch.full((9, DIM), value))


def test_an_untrained_network_has_zero_features():
    columns: Columns = method(frozen_copy(DiTEDM(DiT(tiny_recipe("nowhere").model)))).features(IMAGES[:2])
    assert torch.equal(columns["feature"], torch.zeros(2, DIM))


def test_parts_read_knobs_that_exist():
    """Every knob of its own section is read by one stage."""
    read = [name for part in DTRAK.card.stages for name in part.reads]
    assert sorted(read) == sorted(f"method.dtrak.{each.name}" for each in fields(DTRAKConfig))
    assert [part.hook for part in DTRAK.card.stages] == ["features", "fit", "fit_item", "score"]
    assert [(part.uses_model, part.uses_items) for part in DTRAK.card.stages] == [
        (True, False), (False, False), (True, True), (False, False),
    ]  # fmt: skip
    assert issubclass(DTRAK, Attributor)
    five = {"feature": torch.zeros(5, 2)}
    assert (method(DENOISER).forwards(five), method(None).forwards(five)) == (5 * NOISES, 0)
