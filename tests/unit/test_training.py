"""Training: what an update is made of, augmentation, validation, stopping, resuming, and workers (spec 2, 5, 18)."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mucs_ray.config.recipe import Recipe
from mucs_ray.data.local import LocalImages
from mucs_ray.data.table import Dataset
from mucs_ray.diffusion.condition import Condition
from mucs_ray.diffusion.edm import EDM
from mucs_ray.diffusion.noise import generator, name_torch_stream, normal
from mucs_ray.diffusion.process import Process
from mucs_ray.diffusion.schedule import training_sigmas
from mucs_ray.errors import InputError
from mucs_ray.models.dit import DiT
from mucs_ray.models.dit_edm import DiTEDM
from mucs_ray.spaces import augment as augmentation
from mucs_ray.spaces.augment import augment, distorted_and_told_of_flips, distortions, flipped_only, warp
from mucs_ray.store.run import Stage
from mucs_ray.store.weights import load_state, save_state, state_tensors
from mucs_ray.training import captured as captured_pass
from mucs_ray.training import step as stepping
from mucs_ray.training.config import TrainConfig
from mucs_ray.training.ema import frozen_copy, update_ema
from mucs_ray.training.order import batch_rows
from mucs_ray.training.step import (
    TrainState,
    UpdateDraws,
    WorkerContext,
    draw_update,
    learning_rate,
    out_of_patience,
    train_update,
    training,
    validation_loss,
)
from tiny import rows, tiny_dataset, tiny_recipe, write_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dataset]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MUCS_RAY_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield tiny_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture
def images(dataset: Dataset) -> LocalImages:
    return LocalImages(dataset, "train")


@pytest.fixture
def test_images(dataset: Dataset) -> LocalImages:
    return LocalImages(dataset, "test")


@pytest.fixture
def recipe(dataset: Dataset) -> Recipe:
    return tiny_recipe(dataset.url)


def fresh(recipe: Recipe, *, captures: bool = False) -> TrainState:
    name_torch_stream(recipe.seed, "train/init")
    return TrainState.fresh(DiTEDM(DiT(recipe.model)), recipe.train, captures=captures)


def train(recipe: Recipe, images: LocalImages, test: LocalImages, state: TrainState | None = None) -> TrainState:
    """All updates in a plain loop."""
    state = state or fresh(recipe)
    for _ in training(state, images, test, recipe.train, seed=recipe.seed, worker=WorkerContext()):
        pass
    return state


def same_tensors(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# --- learning rate, order, EMA, optimiser ---------------------------------------------------------------------------


def test_learning_rate_staircase():
    config = TrainConfig(learning_rate=2e-4)
    factors = [0.005, 0.1045, 0.204, 0.3035, 0.403, 0.5025, 0.602, 0.7015, 0.801, 0.9005, 1, 1]
    for epoch, factor in enumerate(factors):
        for step in (1000 * epoch, 1000 * epoch + 999):  # constant within an epoch
            assert learning_rate(config, step) == pytest.approx(2e-4 * factor, rel=1e-12)


def test_without_warmup_the_rate_is_constant():
    config = TrainConfig(learning_rate=0.3, warmup_epochs=0)
    assert [learning_rate(config, step) for step in (0, 999, 10**6)] == [0.3, 0.3, 0.3]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 9), st.integers(1, 40), st.integers(1, 40), st.integers(0, 3))
def test_a_pass_shows_every_image_once_less_the_incomplete_batch(seed: int, images: int, batch: int, epoch: int):
    if images < batch:
        return
    steps = images // batch
    order = [batch_rows(seed, "train", epoch * steps + s, num_images=images, batch_size=batch) for s in range(steps)]
    seen = np.concatenate(order)
    assert len(seen) == steps * batch
    assert len(set(seen.tolist())) == len(seen)
    assert set(seen.tolist()) <= set(range(images))


def test_order_is_a_pure_function_of_seed_name_and_step():
    def first(seed: int, name: str, step: int) -> list[int]:
        return batch_rows(seed, name, step, num_images=1000, batch_size=50).tolist()

    asked = [first(1, "train", step) for step in (0, 30, 7)]
    assert [first(1, "train", step) for step in (7, 0, 30)] == [asked[2], asked[0], asked[1]]
    different = [first(1, "train", 0), first(2, "train", 0), first(1, "null", 0), first(1, "train", 20)]
    assert len({tuple(each) for each in different}) == 4


def test_fewer_images_than_a_batch_is_an_input_error():
    with pytest.raises(InputError, match="7 training images are fewer than one batch of 8"):
        batch_rows(1, "train", 0, num_images=7, batch_size=8)


def test_ema_by_hand():
    live, average = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    nn.init.constant_(average.weight, 1.0)
    expected = 1.0
    for value in (2.0, -4.0, 3.0):
        nn.init.constant_(live.weight, value)
        update_ema(average, live, 0.9)
        expected = 0.9 * expected + 0.1 * value
    assert average.weight.item() == pytest.approx(expected)
    assert expected == pytest.approx(0.831)  # 0.9 (0.9 (0.9 + 0.2) - 0.4) + 0.3
    assert live.weight.item() == 3.0


def test_frozen_copy_is_a_copy_in_eval_mode_without_gradients():
    module = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    copied = frozen_copy(module)
    assert not any(part.training for part in copied.modules())
    assert not any(parameter.requires_grad for parameter in copied.parameters())
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert copied[0].weight.data_ptr() != module[0].weight.data_ptr()


def test_adamw_decays_all_parameters(recipe: Recipe):
    state = fresh(recipe)
    (group,) = state.optimizer.param_groups
    kept = (group["weight_decay"], group["betas"], group["eps"])
    assert kept == (0.01, (0.9, 0.999), 1e-8)
    assert {id(p) for p in group["params"]} == {id(p) for p in state.live.parameters()}
    before = {name: parameter.detach().clone() for name, parameter in state.live.named_parameters()}
    group["lr"] = 0.5
    for parameter in state.live.parameters():
        parameter.grad = torch.zeros_like(parameter)
    state.optimizer.step()
    for name, parameter in state.live.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name] * (1 - 0.5 * 0.01), msg=name)


def draws_of(state: TrainState, images: LocalImages, recipe: Recipe) -> UpdateDraws:
    return draw_update(state.live.process, images, recipe.train, seed=recipe.seed, step=state.step)


def test_draws_made_ahead_are_those_made_when_needed(recipe: Recipe, images: LocalImages):
    """What a thread draws while a GPU works: the same tensors, from any first step, and no more of them."""
    pairs = [stepping.draws_ahead, stepping.draws_when_needed]
    ahead, needed = (list(draws(EDM(), images, recipe.train, seed=3, first=5)) for draws in pairs)
    assert len(ahead) == len(needed) == recipe.train.updates - 5
    for one, other in zip(ahead, needed, strict=True):
        for name in ("z", "condition", "augmented", "level", "noise"):
            assert torch.equal(one.tensors()[name], other.tensors()[name])
    with pytest.raises(InputError, match="fewer than one batch"):
        next(stepping.draws_ahead(EDM(), images, replace(recipe.train, batch_size=1000), seed=3, first=0))


def test_a_captured_update_equals_an_eager_one_bit_for_bit(recipe: Recipe, images: LocalImages):
    """The same weights after some updates with dropout and dropped conditions, at gradients that stay in place."""
    eager, captured = fresh(recipe), fresh(recipe, captures=True)
    places = []
    for _ in range(4):
        for state in (eager, captured):
            train_update(state, draws_of(state, images, recipe), recipe.train, seed=recipe.seed, worker=WorkerContext())
        places.append([parameter.grad.data_ptr() for parameter in captured.live.parameters()])  # pyright: ignore
    for one, other in zip(eager.average.parameters(), captured.average.parameters(), strict=True):
        assert torch.equal(one, other)
    assert places[1:] == places[:-1]


def test_an_update_that_cannot_be_captured_is_made_eagerly(
    recipe: Recipe, images: LocalImages, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_: object) -> None:
        raise torch.OutOfMemoryError("artificial")

    monkeypatch.setattr(captured_pass, "Replay", refuse)
    eager, refused = fresh(recipe), fresh(recipe, captures=True)
    with pytest.warns(UserWarning, match="not captured as a CUDA graph.*: artificial"):
        for state in (eager, refused):
            train_update(state, draws_of(state, images, recipe), recipe.train, seed=recipe.seed, worker=WorkerContext())
    assert refused.captured is None
    for one, other in zip(eager.live.parameters(), refused.live.parameters(), strict=True):
        assert torch.equal(one, other)


def test_first_update_by_hand(recipe: Recipe, images: LocalImages):
    """Adam's first step is lr * grad / (|grad| + eps) after decay, at the first stair of the learning rate."""
    state = fresh(recipe)
    before = {name: parameter.detach().clone() for name, parameter in state.live.named_parameters()}
    loss = train_update(state, draws_of(state, images, recipe), recipe.train, seed=recipe.seed, worker=WorkerContext())
    rate = 0.005 * 5e-3
    for name, parameter in state.live.named_parameters():
        assert parameter.grad is not None
        moved = before[name] * (1 - rate * 0.01) - rate * parameter.grad / (parameter.grad.abs() + 1e-8)
        torch.testing.assert_close(parameter.detach(), moved, msg=name, rtol=1e-5, atol=1e-9)
    for live, average in zip(state.live.parameters(), state.average.parameters(), strict=True):
        assert not average.requires_grad
        assert torch.isfinite(live).all()
    last, averaged = (each.network.last.proj.weight.detach() for each in (state.live, state.average))
    assert last.any()
    torch.testing.assert_close(averaged, 0.2 * last, rtol=1e-4, atol=0)  # from zero, decay 0.8, after the step
    assert (state.step, loss.ndim, loss.requires_grad) == (1, 0, False)


# --- augmentation -----------------------------------------------------------------------------------------------------


class StubStream(np.random.Generator):
    """Answers instead of random numbers: `chosen` of (scale, rotation, stretch, translation) is applied."""

    def __init__(self, chosen: int | None, *, uniform: float = 0.0, normal: object = 0.0, tilted: bool = False) -> None:
        super().__init__(np.random.PCG64(0))
        self.chosen, self.angle, self.z, self.tilted = chosen, uniform, normal, tilted

    def random(self, shape: int | tuple[int, ...]) -> np.ndarray:
        if isinstance(shape, int):
            return np.full(shape, 0.0 if self.tilted else 1.0)
        answers = np.ones(shape)
        if self.chosen is not None:
            answers[self.chosen] = 0.0
        return answers

    def uniform(self, low: float, high: float, num: int) -> np.ndarray:
        assert (low, high) == (-math.pi, math.pi)
        return np.full(num, self.angle)

    def standard_normal(self, shape: int | tuple[int, ...]) -> np.ndarray:
        if isinstance(shape, int):
            return np.full(shape, self.z if np.isscalar(self.z) else 0.0)
        return np.broadcast_to(np.reshape(self.z, (-1, 1)), shape)


SCALE, ROTATION, STRETCH, TRANSLATION = range(4)


def marked(row: int, column: int, *, size: int = 16) -> Tensor:
    """One white pixel on black (value 0, so that a warp cannot invent light)."""
    image = torch.zeros(1, 3, size, size)
    image[:, :, row, column] = 1.0
    return image


def warped(image: Tensor, stream: StubStream) -> Tensor:
    matrix, distorted = distortions(stream, len(image), 0.5)
    assert distorted.all()
    return warp(image, matrix)


def centre_of_light(image: Tensor) -> tuple[float, float]:
    """(row, column), weighted by brightness."""
    light = image[0].sum(0)
    at = torch.arange(light.shape[0], dtype=torch.float32)
    return (light.sum(1) @ at / light.sum()).item(), (light.sum(0) @ at / light.sum()).item()


def test_translation_moves_by_a_share_of_the_width_right_and_down():
    """N(0, 0.125) (W, H): one standard deviation in x is 2 of 16 pixels to the right, two in y are 4 down (spec 2)."""
    moved = warped(marked(5, 9), StubStream(TRANSLATION, normal=[1.0, 2.0]))
    assert centre_of_light(moved) == pytest.approx((9, 11), abs=1e-3)


def test_quarter_turn_takes_right_to_down():
    turned = warped(marked(7, 12), StubStream(ROTATION, uniform=math.pi / 2))
    # about the centre (7.5, 7.5): (x, y) = (4.5, -0.5) -> (-y, x) = (0.5, 4.5)
    assert centre_of_light(turned) == pytest.approx((12, 8), abs=1e-3)


def test_scale_two_makes_content_larger():
    """2^(0.2 z) with z = 5: twice as far from the centre, four times the area."""
    scaled = warped(marked(9, 10), StubStream(SCALE, normal=5.0))
    assert centre_of_light(scaled) == pytest.approx((7.5 + 2 * 1.5, 7.5 + 2 * 2.5), abs=1e-3)
    assert scaled.sum().item() == pytest.approx(4 * 3, rel=1e-3)


@pytest.mark.parametrize(("tilted", "expected"), [(False, (0.5, 2.0)), (True, (2.0, 0.5))])
def test_stretch_keeps_the_area_and_follows_its_frame(tilted: bool, expected: tuple[float, float]):
    """x by 2, y by 1/2; in a frame turned by 90 degrees the other way round."""
    stretched = warped(marked(9, 9), StubStream(STRETCH, normal=5.0, uniform=math.pi / 2, tilted=tilted))
    stretched[..., :4, :] = stretched[..., 12:, :] = 0  # squeezed, the mirror images beyond the borders come into view
    stretched[..., :4] = stretched[..., 12:] = 0
    row, column = expected
    assert centre_of_light(stretched) == pytest.approx((7.5 + row * 1.5, 7.5 + column * 1.5), abs=0.3)
    assert stretched.sum().item() == pytest.approx(3, rel=0.3)  # squeezed light is caught by few samples


def test_an_image_is_scaled_then_moved():
    """All four at once: the shift is not scaled or turned, so the centre of the image moves by exactly the shift."""

    class All(StubStream):
        def random(self, shape: int | tuple[int, ...]) -> np.ndarray:
            return np.zeros(shape)

        def standard_normal(self, shape: int | tuple[int, ...]) -> np.ndarray:
            return np.full(shape, 2.0) if isinstance(shape, int) else np.broadcast_to([[1.0], [-2.0]], shape)

    matrix, distorted = distortions(All(None, uniform=0.7), 1, 0.5)
    shift = torch.tensor([0.25, -0.5])
    torch.testing.assert_close(matrix[0, :, :2] @ shift + matrix[0, :, 2], torch.zeros(2), rtol=0, atol=1e-6)
    # |det| of output -> input: scale 2^0.4 in both axes; rotation and stretch keep areas
    assert torch.linalg.det(matrix[0, :, :2]).item() == pytest.approx(2 ** (-2 * 0.4), rel=1e-5)
    assert distorted.all()


def test_nothing_chosen_is_the_identity_and_not_a_distortion():
    matrix, distorted = distortions(StubStream(None, uniform=1.0, normal=3.0, tilted=True), 4, 0.12)
    expected = torch.tensor([[1.0, 0, 0], [0, 1, 0]]).expand(4, 2, 3)
    torch.testing.assert_close(matrix, expected, rtol=0, atol=1e-7)
    assert not distorted.any()


def test_borders_reflect():
    """Moved 4 of 16 pixels to the right, the strip on the left is the mirror image of what was beside it."""
    image = torch.zeros(1, 3, 16, 16)
    image[..., 0] = 1.0  # the left column, which lands in column 4 and, mirrored, in column 3
    moved = warped(image, StubStream(TRANSLATION, normal=[2.0, 0.0]))
    columns = moved[0, 0].sum(0)
    assert columns[3].item() == pytest.approx(columns[4].item(), rel=1e-5)
    assert columns[3] > 8 > columns[6]


def test_no_probability_and_no_flip_is_the_identity_bit_for_bit():
    image = torch.rand(7, 3, 8, 8) * 2 - 1
    same, flag = augment(image, generator(1, "x"), probability=0.0, flip=False)
    assert torch.equal(same, image)
    assert flag.tolist() == [0] * 7


def test_a_flip_that_the_network_is_told_of_is_as_rare_as_a_distortion():
    """As DiT-VP and UNet-EDM are trained: mirrored with probability .1, which sets the flag (spec/backbones 1.4)."""
    image = torch.arange(16.0).view(1, 1, 4, 4).expand(5000, 3, 4, 4)
    with_flips, told = distorted_and_told_of_flips(image, generator(1, "x"), probability=0.1, flip=True)
    mirrored = (with_flips == image.flip(3)).all(dim=(1, 2, 3))
    unchanged = (with_flips == image).all(dim=(1, 2, 3))
    assert (told["augmented"] == (~unchanged).long()).all()
    assert mirrored.float().mean().item() == pytest.approx(0.1 * 0.9**4, abs=0.015)  # and nothing else happened to it
    assert unchanged.float().mean().item() == pytest.approx(0.9**5, abs=0.03)
    _, told = distorted_and_told_of_flips(image, generator(1, "x"), probability=0.0, flip=True)
    assert not told["augmented"].any()
    without, told = distorted_and_told_of_flips(image, generator(1, "x"), probability=0.1, flip=False)
    assert not (without == image.flip(3)).all(dim=(1, 2, 3)).any()


def test_a_network_that_cannot_be_told_sees_mirrored_images_and_no_distorted_ones():
    image = torch.arange(16.0).view(1, 1, 4, 4).expand(2000, 3, 4, 4)
    flipped, told = flipped_only(image, generator(1, "x"), probability=0.5, flip=True)
    mirrored = (flipped == image.flip(3)).all(dim=(1, 2, 3))
    assert told == {} and (mirrored | (flipped == image).all(dim=(1, 2, 3))).all()
    assert mirrored.float().mean().item() == pytest.approx(0.5, abs=0.05)


def test_flip_mirrors_half_of_the_images_left_to_right_and_tells_nothing():
    image = torch.rand(400, 3, 4, 4)
    flipped, flag = augment(image, generator(1, "x"), probability=0.0, flip=True)
    mirrored = torch.tensor([torch.equal(a, b.flip(2)) for a, b in zip(flipped, image, strict=True)])
    kept = torch.tensor([torch.equal(a, b) for a, b in zip(flipped, image, strict=True)])
    assert (mirrored ^ kept).all()
    assert 160 < int(mirrored.sum()) < 240  # 4 standard deviations
    assert not flag.any()


def test_flag_is_one_exactly_where_the_image_was_distorted():
    image = torch.rand(300, 3, 8, 8)
    out, flag = augment(image, generator(1, "x"), probability=0.12, flip=False)
    changed = torch.tensor([not torch.equal(a, b) for a, b in zip(out, image, strict=True)])
    assert torch.equal(flag.bool(), changed)
    share = 1 - 0.88**4  # any of four
    assert abs(int(flag.sum()) / 300 - share) < 4 * math.sqrt(share * (1 - share) / 300)


def test_augmentation_does_not_change_the_image_it_is_given_and_is_deterministic():
    image = torch.rand(20, 3, 8, 8)
    copy = image.clone()
    first = augment(image, generator(1, "x"), probability=0.5, flip=True)
    assert torch.equal(image, copy)
    again = augment(image, generator(1, "x"), probability=0.5, flip=True)
    other = augment(image, generator(1, "y"), probability=0.5, flip=True)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


def test_strengths_are_those_of_the_spec():
    assert (augmentation.SCALE_STD, augmentation.ANISOTROPY_STD, augmentation.TRANSLATION_STD) == (0.2, 0.2, 0.125)


# --- the images -------------------------------------------------------------------------------------------------------


def test_local_images_drop_exactly_the_removed(dataset: Dataset):
    removed = frozenset({0, 17, 59, 12345})
    less = LocalImages(dataset, "train", removed=removed)
    expected = [idx for idx in range(60) if idx not in removed]
    batch = less.batch(np.arange(len(less)))
    assert batch.idx.tolist() == expected
    whole = LocalImages(dataset, "train").batch(np.asarray(expected))
    assert torch.equal(batch.z, whole.z)
    assert torch.equal(batch.condition["condition"], whole.condition["condition"])


def test_local_images_are_those_of_the_table(images: LocalImages):
    drawn = rows(60, first_idx=0, seed=1)
    batch = images.batch(np.asarray([5, 0, 41]))
    for position, number in enumerate((5, 0, 41)):
        pixels = torch.from_numpy(drawn[number].image).float()
        torch.testing.assert_close(batch.z[position], (pixels / 255 - 0.5) / 0.5)
        assert batch.condition["condition"][position].tolist() == [float(drawn[number].label == k) for k in range(3)]
    assert batch.idx.tolist() == [5, 0, 41]


def test_crops_are_random_in_training_and_central_elsewhere(tmp_path: Path):
    long = [replace(row, image=np.repeat(np.arange(12, dtype=np.uint8), 8).reshape(1, 12, 8).repeat(3, 0))
            for row in rows(3, first_idx=0, seed=1)]  # fmt: skip
    images = LocalImages(write_dataset(str(tmp_path), long, rows(3, first_idx=3, seed=2)), "train")
    tops = [((image[0, 0, 0] + 1) * 127.5).round().item() for image in images.batch(np.arange(3)).z]
    assert tops == [2, 2, 2]
    stream, at = generator(1, "crop"), np.zeros(200, dtype=np.int64)
    tops = [((image[0, 0, 0] + 1) * 127.5).round().item() for image in images.batch(at, stream).z]
    assert set(tops) == {0, 1, 2, 3, 4}


# --- the loop -------------------------------------------------------------------------------------------------------


def test_training_learns(recipe: Recipe, images: LocalImages):
    """Well below the loss of a fresh network, on the images it was trained on, within seconds."""
    recipe = tiny_recipe(
        recipe.data,
        model={"width": 32, "dropout": 0.0},
        train={"updates": 300, "updates_per_epoch": 100, "warmup_epochs": 0, "augment": 0.0, "flip": False},
    )
    first = validation_loss(fresh(recipe).average, images, recipe.train, seed=1, worker=WorkerContext())
    state = train(recipe, images, images)
    assert state.best_loss < 0.75 * first


def test_epochs_end_with_a_validation_of_the_average(recipe: Recipe, images: LocalImages, test_images: LocalImages):
    """12 updates of 4 an epoch, and 14 with a short last epoch; the best is the least."""
    for updates, ends in ((12, [4, 8, 12]), (14, [4, 8, 12, 14])):
        longer = tiny_recipe(recipe.data, train={"updates": updates})
        state, told = fresh(longer), []
        for update in training(state, images, test_images, longer.train, seed=1, worker=WorkerContext()):
            assert update.step == state.step
            if update.validation is not None:
                told.append((update.validation, update.step))
                again = validation_loss(state.average, test_images, longer.train, seed=1, worker=WorkerContext())
                assert update.validation == again
        assert [step for _, step in told] == ends
        assert (state.best_loss, state.best_step) == min(told)


def test_early_stopping_counts_epochs_since_the_best(
    monkeypatch: pytest.MonkeyPatch, recipe: Recipe, images: LocalImages
):
    recipe = tiny_recipe(recipe.data, train={"updates": 100, "updates_per_epoch": 2, "patience": 3})
    losses = iter([5.0, 4.0, 4.5, 3.0, 3.0, 3.5, 3.1])
    monkeypatch.setattr(stepping, "validation_loss", lambda *_, **__: next(losses))

    def count(state: TrainState, *_: object, **__: object) -> Tensor:
        state.step += 1
        return torch.zeros(())

    monkeypatch.setattr(stepping, "train_update", count)
    state = fresh(recipe)
    updates = list(training(state, images, images, recipe.train, seed=1, worker=WorkerContext()))
    assert (state.best_loss, state.best_step, state.step) == (3.0, 8, 14)  # best in epoch 4 and not 5; three more
    assert len(updates) == 14
    assert not out_of_patience(state, replace(recipe.train, patience=0))


def test_nan_never_becomes_the_best(monkeypatch: pytest.MonkeyPatch, recipe: Recipe, images: LocalImages):
    losses = iter([float("nan"), 2.0, float("nan")])
    monkeypatch.setattr(stepping, "validation_loss", lambda *_, **__: next(losses))
    state = train(recipe, images, images)
    assert (state.best_loss, state.best_step) == (2.0, 8)


def until(recipe: Recipe, stage: Stage, images: LocalImages, test: LocalImages, stop_after: int | None) -> TrainState:
    """What a worker does, from the published state if there is one; dropped dead after some updates."""
    state = fresh(recipe)
    load_state(stage, state)
    for update in training(state, images, test, recipe.train, seed=recipe.seed, worker=WorkerContext()):
        if update.validation is not None:
            save_state(stage, state, {})
        if update.step == stop_after:
            break
    return state


@pytest.mark.parametrize("stop_after", [1, 4, 5, 8, 11])
def test_stopped_and_resumed_is_not_stopped_bit_for_bit(
    recipe: Recipe, images: LocalImages, test_images: LocalImages, tmp_path: Path, stop_after: int
):
    stage = Stage(run_url=str(tmp_path), name="pretrain", reads={}, inputs={})
    until(recipe, stage, images, test_images, stop_after)
    resumed_from = TrainState.fresh(fresh(recipe).live, recipe.train)
    assert load_state(stage, resumed_from) == (stop_after >= 4)
    assert resumed_from.step == stop_after // 4 * 4
    resumed = until(recipe, stage, images, test_images, None)
    whole = train(recipe, images, test_images)
    assert same_tensors(state_tensors(resumed), state_tensors(whole))
    assert all(resumed.optimizer.state[parameter]["step"] == 12 for parameter in resumed.live.parameters())
    assert (resumed.step, resumed.best_loss, resumed.best_step) == (whole.step, whole.best_loss, whole.best_step)
    assert resumed.step == 12


def test_an_early_stop_is_remembered(recipe: Recipe, images: LocalImages, test_images: LocalImages, tmp_path: Path):
    """Best loss and step come back, so a training that has stopped does not go on when it is resumed."""
    recipe = tiny_recipe(recipe.data, train={"updates": 100, "patience": 2})
    stage = Stage(run_url=str(tmp_path), name="pretrain", reads={}, inputs={})
    state = fresh(recipe)
    train_update(state, draws_of(state, images, recipe), recipe.train, seed=recipe.seed, worker=WorkerContext())
    state.step, state.best_loss, state.best_step = 4, 0.25, 4
    save_state(stage, state, {})  # publishes the best weights too
    state.step = 12
    save_state(stage, state, {})
    resumed = until(recipe, stage, images, test_images, None)
    assert (resumed.step, resumed.best_loss, resumed.best_step) == (12, 0.25, 4)


def test_a_state_survives_a_generator_left_at_any_update(recipe: Recipe, images: LocalImages, test_images: LocalImages):
    """Whenever `training` yields the state is whole: leaving the loop and calling it anew changes nothing."""
    state = fresh(recipe)
    for _ in range(100):
        if (
            next(training(state, images, test_images, recipe.train, seed=recipe.seed, worker=WorkerContext()), None)
            is None
        ):
            break
    assert same_tensors(state_tensors(state), state_tensors(train(recipe, images, test_images)))


def test_removing_nothing_retrains_the_same_weights_bit_for_bit(
    recipe: Recipe, dataset: Dataset, images: LocalImages, test_images: LocalImages
):
    whole = state_tensors(train(recipe, images, test_images))
    unchanged = train(recipe, LocalImages(dataset, "train", removed=frozenset({777})), test_images)
    changed = train(recipe, LocalImages(dataset, "train", removed=frozenset({7})), test_images)
    assert same_tensors(state_tensors(unchanged), whole)
    assert not same_tensors(state_tensors(changed), whole)


def test_weights_depend_on_the_seed(recipe: Recipe):
    first, second = fresh(recipe), fresh(replace(recipe, seed=2))
    assert not torch.equal(first.live.network.x_embedder.proj.weight, second.live.network.x_embedder.proj.weight)


# --- workers ----------------------------------------------------------------------------------------------------------


def seen_by(
    monkeypatch: pytest.MonkeyPatch, recipe: Recipe, images: LocalImages, worker: WorkerContext, step: int = 3
) -> dict[str, Tensor]:
    """The arguments of denoising_loss in one update of a worker."""
    seen: dict[str, Tensor] = {}

    def spy(
        process: Process, denoiser: nn.Module, image: Tensor, noise: Tensor, sigma: Tensor, condition: Condition
    ) -> Tensor:
        seen.update({"image": image, "noise": noise, "sigma": sigma, **condition})
        return denoiser(image, sigma, condition).square().mean((1, 2, 3))

    monkeypatch.setattr(stepping, "denoising_loss", spy)
    state = fresh(recipe)
    state.step = step
    train_update(state, draws_of(state, images, recipe), recipe.train, seed=recipe.seed, worker=worker)
    return seen


@pytest.mark.parametrize("size", [2, 4])
def test_workers_share_out_the_batch_of_a_single_worker(
    monkeypatch: pytest.MonkeyPatch, recipe: Recipe, images: LocalImages, size: int
):
    """Disjoint rows whose union is the batch, each with the image, sigma, noise, condition and flag it has there."""
    recipe = tiny_recipe(recipe.data, train={"augment": 0.2})
    whole = seen_by(monkeypatch, recipe, images, WorkerContext())
    shares = [seen_by(monkeypatch, recipe, images, WorkerContext(rank=rank, size=size)) for rank in range(size)]
    position = {sigma: row for row, sigma in enumerate(whole["sigma"].tolist())}
    rows_of = [[position[sigma] for sigma in share["sigma"].tolist()] for share in shares]
    assert sorted(row for rows in rows_of for row in rows) == list(range(8))
    assert {len(rows) for rows in rows_of} == {8 // size}
    for share, mine in zip(shares, rows_of, strict=True):
        for name, values in share.items():
            assert torch.equal(values, whole[name][mine]), name
    assert 0 < int(whole["augmented"].sum()) < 8


def test_an_update_draws_from_its_own_name(monkeypatch: pytest.MonkeyPatch, recipe: Recipe, images: LocalImages):
    """Sigma and noise are independent draws that change with the update's number and not with the history."""
    third, again, fourth = (seen_by(monkeypatch, recipe, images, WorkerContext(), step) for step in (3, 3, 4))
    assert torch.equal(third["noise"], again["noise"])
    assert torch.equal(third["sigma"], again["sigma"])
    assert not set(third["sigma"].tolist()) & set(fourth["sigma"].tolist())
    assert not torch.equal(third["noise"], fourth["noise"])


def test_dropout_is_on_and_drawn_from_a_name(monkeypatch: pytest.MonkeyPatch, recipe: Recipe, images: LocalImages):
    """torch's global generator is seeded by update and rank: not by history, and no two workers drop the same."""
    drawn: list[float] = []

    def spy(process: Process, denoiser: nn.Module, image: Tensor, *given: Any) -> Tensor:
        assert all(part.training for part in denoiser.modules())
        drawn.append(torch.rand(()).item())
        return denoiser(image, given[1], given[2]).square().mean((1, 2, 3))

    monkeypatch.setattr(stepping, "denoising_loss", spy)
    for step, rank in ((3, 0), (3, 0), (4, 0), (3, 1)):
        state = fresh(recipe)
        state.step = step
        state.live.eval()
        torch.manual_seed(len(drawn))
        train_update(
            state,
            draws_of(state, images, recipe),
            recipe.train,
            seed=recipe.seed,
            worker=WorkerContext(rank=rank, size=2),
        )
        assert not state.average.training
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) == 3


def lively(recipe: Recipe) -> DiTEDM:
    """A network whose output depends on everything (a fresh one puts out zero)."""
    denoiser = fresh(recipe).average
    for number, parameter in enumerate(denoiser.parameters()):
        parameter.add_(0.2 * normal(generator(3, f"parameter={number}"), *parameter.shape))
    return denoiser


def test_validation_loss_is_a_float64_loop_by_hand(recipe: Recipe, test_images: LocalImages):
    """omega (D - x)^2 over pixels, at the noise that belongs to the image's idx (spec 3.1, 5)."""
    denoiser = lively(recipe)
    batch = test_images.batch(np.arange(12))
    exact = frozen_copy(denoiser).double()
    losses = []
    for idx, image, condition in zip(batch.idx.tolist(), batch.z, batch.condition["condition"], strict=True):
        stream = generator(recipe.seed, f"validate/idx={idx}")
        sigma, noise = training_sigmas(stream, 1).double(), normal(stream, 3, 8, 8).double()
        noisy = image.double()[None] + sigma * noise
        with torch.no_grad():
            raw = exact.network(
                noisy / (sigma**2 + 0.25).sqrt(), (sigma + 1e-6).log() / 4, condition.double()[None], None
            )
        denoised = 0.25 / (sigma**2 + 0.25) * noisy + sigma * 0.5 / (sigma**2 + 0.25).sqrt() * raw
        weight = (sigma**2 + 0.25) / (0.5 * sigma) ** 2
        losses.append((weight * (denoised - image.double()) ** 2).mean().item())
    found = validation_loss(denoiser, test_images, recipe.train, seed=recipe.seed, worker=WorkerContext())
    assert found == pytest.approx(np.mean(losses), rel=1e-5)


class Shuffled:
    """The same images in another order."""

    def __init__(self, images: LocalImages) -> None:
        self.images, self.order = images, np.random.default_rng(0).permutation(len(images))

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, rows: np.ndarray, stream: np.random.Generator | None = None) -> object:
        return self.images.batch(self.order[rows], stream)


@pytest.mark.parametrize(("batch", "workers"), [(5, 1), (1, 1), (3, 2), (5, 3), (128, 2)])
def test_validation_loss_does_not_depend_on_batches_order_or_workers(
    monkeypatch: pytest.MonkeyPatch, recipe: Recipe, test_images: LocalImages, batch: int, workers: int
):
    denoiser, config = lively(recipe), recipe.train
    whole = validation_loss(denoiser, test_images, config, seed=1, worker=WorkerContext())
    monkeypatch.setattr(stepping, "VALIDATION_BATCH", batch)
    totals: list[Tensor] = []

    def mean(values: Tensor) -> Tensor:
        """Over the workers that have run so far; of the last, over all."""
        totals.append(values)
        return torch.stack(totals).sum(0) / workers

    for rank in range(workers):
        worker = WorkerContext(rank=rank, size=workers, mean=mean)
        found = validation_loss(denoiser, Shuffled(test_images), config, seed=1, worker=worker)
    assert found == pytest.approx(whole, rel=1e-6)
