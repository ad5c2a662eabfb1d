"""Unlearning of a group: targets, neighbours, one update by hand, and what is refused."""

from dataclasses import replace
from functools import partial
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from mucs_ray.attribution.config import ScoreConfig
from mucs_ray.attribution.forgetting import losses as forgetting_losses
from mucs_ray.attribution.forgetting.config import GroupsConfig, Unlearner, learning_rate, rates
from mucs_ray.attribution.forgetting.forget import Forgotten, forget_group, rows_of_step
from mucs_ray.attribution.forgetting.losses import Anchors, Help, draw
from mucs_ray.attribution.forgetting.neighbours import nearest
from mucs_ray.attribution.forgetting.score import group_score, query_errors, score_grid
from mucs_ray.attribution.forgetting.targets import (
    clipped,
    esd_target,
    implied_noise,
    levels_from,
    neighbour_weights,
    retrack_target,
    shifts,
)
from mucs_ray.diffusion.batch import Batch, Item
from mucs_ray.diffusion.edm import EDM
from mucs_ray.diffusion.loss import denoising_loss
from mucs_ray.diffusion.noise import generator, normal
from mucs_ray.diffusion.process import Process
from mucs_ray.diffusion.vp import VP
from mucs_ray.diffusion.vp_config import Betas
from mucs_ray.errors import InputError, RunFailed
from toy_models import Toy

COSINE = Betas(schedule="squaredcos_cap_v2")
PROCESSES: dict[str, Process] = {
    "noise": VP(betas=COSINE),
    "velocity": VP(betas=COSINE, prediction="v_prediction"),
    "image": VP(betas=COSINE, prediction="sample"),
    "EDM": EDM(),
}
SHAPE, SEED = (1, 4, 4), 5
UNLEARNERS: tuple[Unlearner, ...] = get_args(Unlearner)


def named(name: str, *shape: int) -> Tensor:
    return normal(generator(3, name), *shape)


def toy(process: Process, **conditions: tuple[int, ...]) -> Toy:
    """Build a model whose weights depend on their names."""
    model = Toy(SHAPE, process, conditions).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.copy_(0.2 * named(name, *parameter.shape))
    return model


def batch(name: str, step: int = 0, num: int = 6, **conditions: int) -> Batch:
    z = named(f"{name}/{step}", num, *SHAPE) / 2
    return Batch(idx=torch.arange(num), z=z, condition={key: torch.eye(w)[:num] for key, w in conditions.items()})


def near(idx: Tensor) -> Tensor:
    return named("neighbours", 8, 3, *SHAPE)[idx] / 2


def anchors_of(idx: Tensor, stream: np.random.Generator) -> Anchors:
    return Anchors(condition={}, z=normal(stream, len(idx), *SHAPE) / 2)


def forgotten(model: Toy, unlearner: Unlearner, *, config: dict[str, Any] | None = None, **changes: Any) -> Forgotten:
    settings = GroupsConfig(**{"updates": 3, "learning_rate": 1e-3, **(config or {})})
    given: dict[str, Any] = {
        "retain": partial(batch, "retain"),
        "forget": partial(batch, "forget"),
        "helped": Help(neighbours=near),
        "seed": SEED,
        **changes,
    }
    return forget_group(model, 7, unlearner, config=settings, **given)


# --- targets ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_the_noise_that_a_perfect_answer_implies_is_the_noise(process: Process):
    level = process.training_levels(generator(1, "levels"), 40).double()
    z, noise = named("z", 40, *SHAPE).double(), named("noise", 40, *SHAPE).double()
    noisy, answer = process.noised(z, noise, level), process.target(z, noise, level)
    torch.testing.assert_close(implied_noise(process, answer, noisy, level), noise, rtol=1e-6, atol=1e-6)


def test_what_a_network_that_predicts_noise_answers_is_the_noise_it_implies():
    process, level = PROCESSES["noise"], torch.tensor([3.0, 700.0])
    answer = named("answer", 2, *SHAPE)
    assert torch.equal(implied_noise(process, answer, named("noisy", 2, *SHAPE), level), answer)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_with_one_neighbour_the_target_makes_a_noisy_neighbour_of_the_image(process: Process):
    """tau = (x - alpha a_r) / s exactly."""
    level = process.training_levels(generator(1, "levels"), 6).double()
    z, noise, others = (named(name, 6, *SHAPE).double() for name in ("z", "noise", "other"))
    at = process.at(level)
    found = retrack_target(process, z, others[:, None], noise, level)
    alpha, s = (values.view(-1, 1, 1, 1) for values in (at.alpha, at.s))
    torch.testing.assert_close(found, (process.noised(z, noise, level) - alpha * others) / s, rtol=1e-9, atol=1e-9)


def test_targets_and_weights_by_hand():
    """At alpha = s the shifts are image - neighbour: (2, 0) and (0, 1); the noise is (1, 0)."""
    process = VP(betas=Betas(schedule="trained", trained=(0.5,), steps=1))
    z, others = torch.tensor([[3.0, 4.0]]).double(), torch.tensor([[[1.0, 4.0], [3.0, 3.0]]]).double()
    noise, level = torch.tensor([[1.0, 0.0]]).double(), torch.zeros(1).double()
    shift = shifts(process, z, others, level)
    torch.testing.assert_close(shift, torch.tensor([[[2.0, 0.0], [0.0, 1.0]]]).double())
    first = 1 / (1 + np.exp(4.5 - 1))  # exp(-|(3, 0)|^2 / 2) against exp(-|(1, 1)|^2 / 2)
    torch.testing.assert_close(neighbour_weights(noise, shift), torch.tensor([[first, 1 - first]]).double())
    expected = torch.tensor([[1 + 2 * first, 1 - first]]).double()
    torch.testing.assert_close(retrack_target(process, z, others, noise, level), expected)
    short = torch.tensor([[[2**0.5, 0.0], [0.0, 1.0]]]).double()  # sqrt(2 kappa) = 1.414
    torch.testing.assert_close(clipped(shift, 1.0), short)
    expected = torch.tensor([[1 + 2**0.5 * first, 1 - first]]).double()
    torch.testing.assert_close(retrack_target(process, z, others, noise, level, kl_cap=1.0), expected)
    assert torch.equal(clipped(torch.zeros(1, 2, 2), 1.0), torch.zeros(1, 2, 2))


def test_weights_do_not_underflow_where_the_published_ones_do():
    """In 3072 numbers exp(-|n + delta|^2 / 2) is 0 in fp32; the softmax still sums to 1, and the noise is kept."""
    noise, shift = named("noise", 2, 3072), named("shift", 2, 10, 3072)
    assert (torch.exp(-(noise[:, None] + shift).square().sum(2) / 2) == 0).all()
    weights = neighbour_weights(noise, shift)
    torch.testing.assert_close(weights.sum(1), torch.ones(2))
    short = clipped(shift, 8.0)
    torch.testing.assert_close(short.norm(dim=2), torch.full((2, 10), 4.0))


def test_the_target_of_esd_is_away_from_the_class():
    guide = toy(PROCESSES["velocity"], label=(3,))
    level, noisy = torch.tensor([10.0, 600.0]), named("noisy", 2, *SHAPE)
    label = {"label": torch.eye(3)[:2]}

    def seen(condition: dict[str, Tensor]) -> Tensor:
        raw = guide.raw(noisy, guide.process.at(level), condition)
        at = guide.process.at(level)
        alpha, s = at.alpha.view(-1, 1, 1, 1), at.s.view(-1, 1, 1, 1)
        return alpha * raw + s * noisy  # n_hat of a velocity

    without, having = seen({"label": torch.zeros(2, 3)}), seen(label)
    expected = without - 7.5 * (having - without)
    torch.testing.assert_close(esd_target(guide, noisy, level, label, guidance=7.5), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("lowest_sigma", "first"), [(0.1, 225), (0.2, 475)])
def test_retrack_starts_at_the_stated_steps_of_the_published_schedule(lowest_sigma: float, first: int):
    process = VP(betas=Betas(schedule="squaredcos_cap_v2", steps=4000))
    levels = levels_from(process, generator(1, "levels"), 40_000, lowest_sigma)
    assert (len(levels), levels.min().item()) == (40_000, first)
    assert levels.mean().item() == pytest.approx((first + 3999) / 2, rel=0.01)  # even on what is left
    with pytest.raises(InputError, match=r"groups.lowest_sigma is 1000000.0, but training draws"):
        levels_from(process, generator(1, "levels"), 10, 1e6)


# --- neighbours ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 5, 40])
def test_neighbours_are_exact_and_ties_go_to_the_smaller_idx(rows: int):
    """Small whole numbers make many equal distances."""
    stream = np.random.default_rng(1)
    images, others = (stream.integers(0, 3, (n, 6)).astype(np.float32) / 255 - 0.3 for n in (9, 40))
    idx = stream.permutation(100)[:40]
    order = stream.permutation(40)
    tables = [(idx[order[at : at + rows]], others[order[at : at + rows]]) for at in range(0, 40, rows)]
    found = nearest(images, tables, 4)
    squares = ((images[:, None].astype(float) - others[None].astype(float)) ** 2).sum(2)
    for row in range(9):
        best = sorted(zip(squares[row], idx, strict=True))[:4]
        assert found.idx[row].tolist() == [number for _, number in best]
        np.testing.assert_allclose(found.distance[row], np.sqrt([square for square, _ in best]), rtol=1e-12)


def test_too_few_neighbours_are_told():
    table = (np.arange(3), np.zeros((3, 2)))
    with pytest.raises(InputError, match=r"groups.neighbours is 4, but there are only 3 images outside the group"):
        nearest(np.zeros((2, 2)), [table], 4)


# --- updates ------------------------------------------------------------------------------------------------------


def test_two_updates_by_hand():
    """The loss of `zero` for a network that predicts noise is mean (e - n)^2 + 0.03 mean e^2."""
    process, names = PROCESSES["noise"], "guda/unlearn/group=7/step"
    found = forgotten(toy(process), "zero", config={"updates": 2, "warmup": 4})
    model = toy(process).requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-4)
    for step in range(2):
        means = {}
        for part in ("retain", "forget"):
            stream, z = generator(SEED, f"{names}={step}/{part}"), batch(part, step).z
            level, noise = process.training_levels(stream, 6), normal(stream, 6, *SHAPE)
            answer = model.raw(process.noised(z, noise, level), process.at(level), {})
            means[part] = (answer - (noise if part == "retain" else 0)).square().mean()
        optimizer.param_groups[0]["lr"] = 1e-3 * (step + 1) / 4
        optimizer.zero_grad()
        (means["retain"] + 0.03 * means["forget"]).backward()
        optimizer.step()
        assert found.retain_loss[step] == pytest.approx(means["retain"].item(), rel=1e-5)
        assert found.forget_loss[step] == pytest.approx(means["forget"].item(), rel=1e-5)
    for name, parameter in model.network.named_parameters():
        torch.testing.assert_close(found.tensors[name], parameter.detach(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("unlearner", UNLEARNERS)
def test_every_unlearner_forgets_with_every_process(unlearner: Unlearner, process: Process):
    model = toy(process)
    before = {name: tensor.clone() for name, tensor in model.network.named_parameters()}
    helped = Help(neighbours=near, guide=toy(process, label=(6,)), anchors=anchors_of)
    labelled = {"retain": partial(batch, "retain", label=6), "forget": partial(batch, "forget", label=6)}
    found = forgotten(model, unlearner, helped=helped, **labelled)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.network.named_parameters())
    assert found.tensors.keys() == before.keys() and 0 < found.moved < 1
    assert all(not torch.equal(found.tensors[name], before[name]) for name in before)
    assert (found.updates, len(found.retain_loss)) == (3, 3) and (found.outcome == "fixed" or unlearner == "ascent")
    assert len(found.forget_loss) == len(found.group_loss) == (0 if unlearner == "retain-only" else 3)
    again = forgotten(model, unlearner, helped=helped, **labelled)
    assert all(torch.equal(again.tensors[name], found.tensors[name]) for name in before)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_training_losses_are_those_of_training(process: Process):
    """On the other images and on the group's, weight (r - target)^2 is the loss that the model was trained with."""
    model = toy(process)
    found = forgotten(model, "zero", config={"updates": 1})
    for part, loss in (("retain", found.retain_loss), ("forget", found.group_loss)):
        drawn = draw(process, batch(part), f"guda/unlearn/group=7/step=0/{part}", GroupsConfig(), SEED, Help())
        expected = denoising_loss(process, model, drawn.batch.z, drawn.noise, drawn.level).mean()
        assert loss[0] == pytest.approx(expected.item(), rel=2e-3)


def test_distillation_to_the_full_model_starts_at_zero():
    found = forgotten(toy(PROCESSES["EDM"]), "zero", config={"retain": "distil"})
    assert found.retain_loss[0] == 0 < found.retain_loss[2]


def test_retain_only_is_what_any_unlearner_is_without_its_weight():
    model = toy(PROCESSES["noise"])
    control = forgotten(model, "retain-only", config={"forget_weight": 0.9})
    without_weight = forgotten(model, "zero", config={"forget_weight": 0.0})
    assert all(torch.equal(control.tensors[name], tensor) for name, tensor in without_weight.tensors.items())


def with_tensors(model: Toy, tensors: dict[str, Tensor]) -> Toy:
    changed = toy(model.process)
    changed.network.load_state_dict(tensors)
    return changed


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_zero_makes_the_implied_noise_smaller(process: Process):
    """It is measured on the same images and noise before and after."""
    model, config = toy(process), {"updates": 12, "forget_weight": 30.0, "learning_rate": 3e-3}
    drawn = draw(process, batch("test", num=64), "test", GroupsConfig(), SEED, Help())
    noisy = drawn.noisy(process)

    def size(of: Toy) -> float:
        raw = of.raw(noisy, process.at(drawn.level), {})
        return implied_noise(process, raw, noisy, drawn.level).square().mean().item()

    assert size(with_tensors(model, forgotten(model, "zero", config=config).tensors)) < 0.99 * size(model)


def test_ascent_makes_the_loss_higher():
    model, config = toy(EDM()), {"updates": 12, "forget_weight": 30.0, "learning_rate": 3e-3}
    drawn = draw(model.process, batch("test", num=64), "test", GroupsConfig(), SEED, Help())

    def loss(of: Toy) -> float:
        return denoising_loss(of.process, of, drawn.batch.z, drawn.noise, drawn.level).mean().item()

    found = forgotten(model, "ascent", config=config, helped=Help(second_moment=1e3))  # far above the loss of the toy
    assert loss(with_tensors(model, found.tensors)) > 1.01 * loss(model)


def test_ascent_is_bounded_draw_by_draw_and_tells_when_all_draws_are_at_the_bound():
    found = forgotten(toy(PROCESSES["noise"]), "ascent", helped=Help(second_moment=1e-9))
    assert found.outcome == "bound hit" and max(found.forget_loss) < 1e-3 < min(found.group_loss)
    retained = forgotten(toy(PROCESSES["noise"]), "retain-only")  # at the bound there is no gradient
    assert all(torch.equal(retained.tensors[name], tensor) for name, tensor in found.tensors.items())


def test_retrack_draws_no_levels_below_its_lowest_and_the_others_do(monkeypatch: pytest.MonkeyPatch):
    drawn: dict[str, list[Tensor]] = {}
    losses = forgetting_losses.noise_target

    def recorded(process: Process, draws: Any, noisy: Tensor, unlearner: str, *rest: Any) -> Tensor:
        drawn.setdefault(unlearner, []).append(draws.level)
        return losses(process, draws, noisy, unlearner, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(forgetting_losses, "noise_target", recorded)
    for unlearner in ("retrack", "retrack-clipped"):
        forgotten(toy(PROCESSES["noise"]), unlearner, config={"updates": 8, "lowest_sigma": 2.0})  # type: ignore[arg-type]
    at = {name: PROCESSES["noise"].at(torch.cat(levels).double()) for name, levels in drawn.items()}
    assert (
        (at["retrack"].s / at["retrack"].alpha).min()
        >= 2.0
        > (at["retrack-clipped"].s / at["retrack-clipped"].alpha).min()
    )


def test_an_image_and_its_neighbours_are_mirrored_together():
    """The pull towards a neighbour is the mirrored one, so that the distances stay the same."""
    process, seen = PROCESSES["noise"], []

    def flipped(images: Tensor) -> Tensor:
        return images.flip(-1)

    config = GroupsConfig()
    helped = Help(neighbours=near, mirror=flipped)
    drawn = draw(process, batch("forget", num=8), "x", config, SEED, helped)
    plain = draw(process, batch("forget", num=8), "x", replace(config, flip=False), SEED, helped)
    assert 0 < drawn.mirrored.sum() < 8 and plain.mirrored.sum() == 0
    expected = torch.where(drawn.mirrored.view(-1, 1, 1, 1), plain.batch.z.flip(-1), plain.batch.z)
    assert torch.equal(drawn.batch.z, expected) and torch.equal(drawn.noise, plain.noise)
    for draws in (drawn, plain):
        noise = torch.zeros_like(draws.noise)
        still = replace(draws, noise=noise)
        arguments = (process, still, still.noisy(process), "retrack", config, SEED, "x", helped)
        seen.append(forgetting_losses.noise_target(*arguments))  # type: ignore[arg-type]
    torch.testing.assert_close(seen[0], torch.where(drawn.mirrored.view(-1, 1, 1, 1), seen[1].flip(-1), seen[1]))


def test_a_group_that_is_not_named_alike_forgets_otherwise():
    model = toy(PROCESSES["noise"])
    settings = {
        "retain": partial(batch, "retain"),
        "forget": partial(batch, "forget"),
        "config": GroupsConfig(updates=1),
    }
    first, other = (forget_group(model, group, "noise", seed=SEED, **settings) for group in (0, 1))  # type: ignore[arg-type]
    assert first.retain_loss != other.retain_loss


def test_rows_of_an_update_are_named_and_repeat_only_in_small_groups():
    rows = rows_of_step("guda/unlearn/group=1/step=0/forget", 50, 20, SEED)
    assert len(set(rows.tolist())) == 20 and rows.max() < 50
    assert sorted(rows_of_step("x", 4, 8, SEED).tolist()) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert (rows_of_step("guda/unlearn/group=1/step=1/forget", 50, 20, SEED) != rows).any()


def test_what_an_unlearner_lacks_is_one_line():
    model = toy(PROCESSES["noise"])
    with pytest.raises(InputError, match="retrack needs the neighbours"):
        forgotten(model, "retrack", helped=Help())
    for guide in (None, model):  # none, and one without classes
        with pytest.raises(InputError, match="esd needs a class-conditional model"):
            forgotten(model, "esd", helped=Help(guide=guide))
    with pytest.raises(InputError, match="trained on other noise levels"):
        forgotten(model, "esd", helped=Help(guide=toy(VP(), label=(6,))))


def test_a_loss_that_is_not_finite_names_the_image_and_the_update():
    def bad(step: int) -> Batch:
        images = batch("forget", step)
        if step == 1:
            images.z[4, 0, 0, 0] = float("nan")
        return images

    with pytest.raises(
        RunFailed, match="unlearning group 7, update 1: the loss of the group's image idx=4 is not finite"
    ):
        forgotten(toy(PROCESSES["noise"]), "zero", forget=bad)
    with pytest.raises(RunFailed, match="unlearning group 7, update 1: the loss of training image idx=4 is not finite"):
        forgotten(toy(PROCESSES["noise"]), "zero", retain=bad)


def test_rates_are_the_published_ones_unless_they_are_given():
    """GUDA's rate is 1e-5 times the update over 5000; after 1170 updates it has reached 2.34e-6."""
    usual, esd = (rates(GroupsConfig(), unlearner) for unlearner in ("zero", "esd"))
    assert learning_rate(usual, 1169, 1170) == pytest.approx(1e-5 * 1170 / 5000)
    assert learning_rate(usual, 0, 1170) == pytest.approx(1e-5 / 5000)
    assert learning_rate(esd, 99, 1950) == pytest.approx(0.2 * 3e-5)
    assert learning_rate(esd, 499, 1950) == learning_rate(esd, 1949, 1950) == 3e-5
    given = GroupsConfig(learning_rate=1e-3, warmup=7, weight_decay=0.5, forget_weight=0.0)
    for unlearner in ("zero", "esd", "ascent"):
        found = rates(given, unlearner)  # type: ignore[arg-type]
        assert (found.learning_rate, found.warmup, found.weight_decay, found.forget_weight) == (1e-3, 7, 0.5, 0.0)


# --- scores -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("kind", ["elbo", "unweighted", "skew"])
def test_a_worse_model_has_a_positive_score_and_the_same_one_has_none(kind: Any, process: Process):
    groups, score = GroupsConfig(score=kind, skip=100, levels=9), ScoreConfig(noises=9)
    full, query = toy(process), Item(number=0, idx=3, condition={}, z=named("query", *SHAPE) / 3)
    grid = score_grid(process, groups, score)
    errors = query_errors(full, query, grid, seed=SEED)
    of = partial(group_score, groups, score, process, grid, num_elements=16)
    assert of(errors, errors) == 0
    assert of(errors, 1.5 * errors) > 0 > of(errors, errors / 2)
    if kind == "skew":
        assert of(errors, 3 * errors) == pytest.approx(0.5, rel=0.02)  # (3 - 1) / (3 + 1), but for epsilon
    assert not torch.equal(errors, query_errors(full, query, grid, seed=SEED, draw=1))


def test_a_query_is_scored_as_it_is_seen():
    """A model of pictures scores what a picture can show; the other queries change nothing."""
    model = toy(EDM())
    grid = score_grid(model.process, GroupsConfig(levels=5), ScoreConfig())
    bright = Item(number=0, idx=3, condition={}, z=torch.full(SHAPE, 3.0))
    unlimited = query_errors(model, bright, grid, seed=SEED)
    Toy.limit, before = 1.0, Toy.limit
    try:
        limited = query_errors(model, bright, grid, seed=SEED)
        expected = query_errors(model, replace(bright, z=torch.ones(SHAPE)), grid, seed=SEED)
    finally:
        Toy.limit = before
    assert torch.equal(limited, expected) and not torch.equal(limited, unlimited)
