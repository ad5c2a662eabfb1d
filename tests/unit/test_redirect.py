"""Unlearning of a group by redirection to anchors: reference losses, one update by hand, and what is refused."""

from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fixture_files import document, tensors
from mucs_ray.attribution.forgetting.config import ANCHORED, GroupsConfig, Unlearner, rates
from mucs_ray.attribution.forgetting.forget import Forgotten, forget_group
from mucs_ray.attribution.forgetting.losses import Anchors, Draws, Help, draw, retained_losses
from mucs_ray.attribution.forgetting.redirect import anchor_answer, redirected_losses
from mucs_ray.diffusion.batch import Batch
from mucs_ray.diffusion.condition import Condition
from mucs_ray.diffusion.edm import EDM
from mucs_ray.diffusion.model import DiffusionModel, Selector
from mucs_ray.diffusion.noise import generator, normal
from mucs_ray.diffusion.process import Coefficients, Process
from mucs_ray.diffusion.vp import VP
from mucs_ray.diffusion.vp_config import Betas
from mucs_ray.errors import InputError
from toy_models import Toy

SHAPE, SEED = (1, 4, 4), 5
PROCESSES: dict[str, Process] = {
    "noise": VP(betas=Betas(schedule="squaredcos_cap_v2")),
    "velocity": VP(betas=Betas(schedule="squaredcos_cap_v2"), prediction="v_prediction"),
    "EDM": EDM(),
}
REFERENCE = tensors("guda_c/loss")
STREAM = generator(SEED, "anchors")


class TextConditional(DiffusionModel):
    """A UNet on latents that attends to the tokens of a text."""

    process = VP(betas=Betas(schedule="scaled_linear", first=0.00085, last=0.012))

    @property
    def shape(self) -> tuple[int, ...]:
        return (4, 4, 4)

    def raw(self, noisy: Tensor, at: Coefficients, condition: Condition, stem: Any = None) -> Tensor:
        return self.network(noisy, at.time, encoder_hidden_states=condition["text"]).sample

    def nothing(self, num: int) -> Condition:
        return {"text": torch.zeros(num, 7, 12)}

    def names(self, which: Selector) -> list[str]:
        return [name for name, _ in self.network.named_parameters()]


@cache
def latent_model(*changes: str) -> TextConditional:
    """Build the full model of the reference, or the trained one, which has some other tensors."""
    diffusers = pytest.importorskip("diffusers")
    network = diffusers.UNet2DConditionModel(**document("guda_c/config")["unet"])
    weights = tensors("guda_c/unet2dcondition_tiny_weights", "full.")
    for prefix in changes:
        weights |= tensors("guda_c/unet2dcondition_tiny_weights", prefix)
    network.load_state_dict(weights)
    return TextConditional(network.eval().requires_grad_(False))


def reference_draws(part: str) -> Draws:
    z = REFERENCE[f"latent_{part}"]
    batch = Batch(idx=torch.arange(len(z)), z=z, condition={"text": REFERENCE[f"text_{part}"]})
    never = torch.zeros(len(z), dtype=torch.bool)
    return Draws(batch=batch, noise=REFERENCE[f"noise_{part}"], level=REFERENCE[f"t_{part}"].float(), mirrored=never)


REFERENCE_ANCHORS = {
    "prompt_anchor": Anchors(condition={"text": REFERENCE["text_anchor"]}),
    "matched_retain": Anchors(
        condition={"text": REFERENCE["text_retain"][[2, 0]]}, z=REFERENCE["latent_retain"][[2, 0]]
    ),
}


def test_the_network_of_the_reference_answers_as_there():
    forward = tensors("guda_c/unet2dcondition_forward")
    found = latent_model().network(forward["x"], forward["t"], encoder_hidden_states=forward["text_embedding"]).sample
    torch.testing.assert_close(found, forward["eps"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", REFERENCE_ANCHORS)
def test_losses_and_targets_are_the_reference_ones(kind: str):
    """Its loss is redirect + 2 preserve, and ours half of it, preserve + redirect / 2."""
    full, changed = latent_model(), latent_model("changed.")
    helped = Help(anchors=lambda idx, stream: REFERENCE_ANCHORS[kind])
    forget, retain = reference_draws("forget"), reference_draws("retain")
    target = anchor_answer(full, forget, REFERENCE_ANCHORS[kind], helped)
    torch.testing.assert_close(target, REFERENCE[f"{kind}_target"], rtol=0, atol=1e-6)
    redirect = redirected_losses(changed, full, forget, helped, STREAM).target.mean()
    preserve = retained_losses(changed, retain, full).mean()
    torch.testing.assert_close(redirect, REFERENCE[f"{kind}_redirect"], rtol=1e-5, atol=0)
    torch.testing.assert_close(preserve, REFERENCE[f"{kind}_preserve"], rtol=1e-5, atol=0)
    weight = rates(GroupsConfig(), "awss").forget_weight
    torch.testing.assert_close(2 * (preserve + weight * redirect), REFERENCE[f"{kind}_loss"], rtol=1e-5, atol=0)


def toy(process: Process, **conditions: tuple[int, ...]) -> Toy:
    """Build a model whose weights depend on their names."""
    model = Toy(SHAPE, process, conditions).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.copy_(0.2 * normal(generator(3, name), *parameter.shape))
    return model


def batch(name: str, step: int = 0, label: int = 2) -> Batch:
    """Return images of one of three classes."""
    z = normal(generator(3, f"{name}/{step}"), 6, *SHAPE) / 2
    return Batch(idx=torch.arange(6), z=z, condition={"label": torch.eye(3)[[label] * 6]})


def first_class(idx: Tensor, stream: np.random.Generator) -> Anchors:
    return Anchors(condition={"label": torch.eye(3)[[0] * len(idx)]})


def forgotten(model: Toy, *, helped: Help, retained: int = 2, **config: Any) -> Forgotten:
    settings = GroupsConfig(**{"updates": 2, "learning_rate": 1e-3, **config})
    retain, forget = partial(batch, "retain", label=retained), partial(batch, "forget")
    return forget_group(model, 7, "uniform", retain=retain, forget=forget, config=settings, seed=SEED, helped=helped)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_updates_by_hand(process: Process):
    """The images are of class 2 and seen as class 0; other images keep the answers of the full model."""
    full, model = toy(process, label=(3,)), toy(process, label=(3,)).requires_grad_(True)
    found = forgotten(full, helped=Help(anchors=first_class))
    optimizer = torch.optim.AdamW(model.network.parameters(), lr=1e-3, weight_decay=0.01)
    for step in range(2):
        losses = []
        for part, seen in (("retain", 2), ("forget", 0)):
            stream, z = generator(SEED, f"guda/unlearn/group=7/step={step}/{part}"), batch(part, step).z
            level, noise = process.training_levels(stream, 6), normal(stream, 6, *SHAPE)
            at, noisy = process.at(level), process.noised(z, noise, level)
            answer = model.raw(noisy, at, {"label": torch.eye(3)[[2] * 6]})
            target = full.raw(noisy, at, {"label": torch.eye(3)[[seen] * 6]})
            losses.append((at.weight * (answer - target).square().flatten(1).mean(dim=1)).mean())
        optimizer.zero_grad()
        (losses[0] + 0.5 * losses[1]).backward()
        optimizer.step()
        assert found.retain_loss[step] == pytest.approx(losses[0].item(), rel=1e-5)
        assert found.forget_loss[step] == pytest.approx(losses[1].item(), rel=1e-5)
    for name, parameter in model.network.named_parameters():
        torch.testing.assert_close(found.tensors[name], parameter.detach(), rtol=1e-5, atol=1e-7)


def test_an_anchor_that_is_the_image_itself_leaves_nothing_to_unlearn():
    found = forgotten(toy(EDM(), label=(3,)), helped=Help(anchors=lambda idx, stream: Anchors(condition={})))
    assert found.forget_loss[0] == found.retain_loss[0] == 0


def test_images_of_other_groups_are_mirrored_where_those_of_the_group_are():
    """With the images themselves as anchors, the loss is 0 only if both sides are mirrored alike."""
    own = Help(anchors=lambda idx, stream: Anchors(condition={}, z=batch("forget").z), mirror=lambda z: z.flip(-1))
    drawn = draw(EDM(), batch("forget"), "mirrors", GroupsConfig(), SEED, own)
    assert 0 < drawn.mirrored.sum() < 6
    full = toy(EDM(), label=(3,))
    assert redirected_losses(full, full, drawn, own, STREAM).target.max() == 0


def test_a_redirected_group_is_seen_more_like_its_anchor():
    """It is measured on the same images and noise before and after; the other images are of another class."""
    full, changed = toy(EDM(), label=(3,)), toy(EDM(), label=(3,))
    helped = Help(anchors=first_class)
    found = forgotten(full, helped=helped, retained=1, updates=60, learning_rate=3e-3, forget_weight=2.0)
    changed.network.load_state_dict(found.tensors)
    drawn = draw(full.process, batch("test"), "test", GroupsConfig(), SEED, helped)
    before, after = (redirected_losses(m, full, drawn, helped, STREAM).target.mean() for m in (full, changed))
    assert after < 0.5 * before


@pytest.mark.parametrize("unlearner", ANCHORED)
def test_what_is_missing_is_told(unlearner: Unlearner):
    with pytest.raises(InputError, match=f"{unlearner} needs anchors"):
        forget_group(
            toy(EDM(), label=(3,)), 7, unlearner, retain=partial(batch, "retain"), forget=partial(batch, "forget"),
            config=GroupsConfig(), seed=SEED,
        )  # fmt: skip


def test_rates_are_those_of_guda_c():
    assert {(r.learning_rate, r.warmup, r.weight_decay, r.forget_weight, r.largest_norm) for r in (
        rates(GroupsConfig(), unlearner) for unlearner in ANCHORED
    )} == {(2e-6, 1, 0.01, 0.5, None)}  # fmt: skip
