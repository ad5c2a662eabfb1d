"""Which sampler draws on which process: all of them draw the distribution that the model knows."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mucs_ray.config.recipe import build
from mucs_ray.diffusion.condition import Condition
from mucs_ray.diffusion.edm import EDM
from mucs_ray.diffusion.model import DiffusionModel, Selector
from mucs_ray.diffusion.noise import generator, normal
from mucs_ray.diffusion.process import Coefficients, Process
from mucs_ray.diffusion.sampler import sample
from mucs_ray.diffusion.samplers import Sampler, draw, evaluations, sampler_for
from mucs_ray.diffusion.vp import VP
from mucs_ray.diffusion.vp_config import Betas
from mucs_ray.diffusion.vp_continuous import ContinuousVP
from mucs_ray.errors import InputError
from mucs_ray.pipeline.method_stages import recipe_slice

COSINE = VP(betas=Betas(schedule="squaredcos_cap_v2"))
MEAN, STD = 0.4, 0.2


class Gaussian(DiffusionModel):
    """Knows that every number of z is drawn from N(.4, .2^2)."""

    def __init__(self, process: Process, limit: float | None = None) -> None:
        super().__init__(nn.Identity())
        self.process, self.asked = process, 0
        self.limit = limit  # type: ignore[misc]

    @property
    def shape(self) -> tuple[int, ...]:
        return (4,)

    def raw(self, noisy: Tensor, at: Coefficients, condition: Condition, stem: Any = None) -> Tensor:
        self.asked += 1
        alpha, s = at.alpha[:, None].double(), at.s[:, None].double()
        denoised = MEAN + alpha * STD**2 / (alpha**2 * STD**2 + s**2) * (noisy - alpha * MEAN)
        det = at.det[:, None].double()
        return ((at.q[:, None] * noisy - det * denoised) / s).to(noisy.dtype)

    def nothing(self, num: int) -> Condition:
        return {}

    def names(self, which: Selector) -> list[str]:
        return []


def drawn(process: Process, sampler: Sampler, num: int = 4000, **how: Any) -> Tensor:
    model = Gaussian(process)
    noise = normal(generator(1, "start"), num, 4).double()
    steps = how.pop("steps", 100)
    found = draw(
        model, noise, sampler=sampler, steps=steps, step_noise=lambda step: step_noise(step, num).double(), **how
    )
    few = sampler == "heun" and isinstance(process, VP)  # some of the table's steps are asked for twice
    most = evaluations(process, sampler, steps) - bool(how.get("compat"))
    assert most - 2 * few <= model.asked <= most
    return found


def step_noise(step: int, num: int) -> Tensor:
    return torch.cat([normal(generator(1, f"row={row}/step={step}"), 1, 4) for row in range(num)])


@pytest.mark.parametrize(
    ("process", "sampler"),
    [
        (EDM(), "heun"),
        (VP(), "heun"),
        (VP(), "ddim"),
        (VP(prediction="v_prediction", spacing="trailing"), "ddim"),
        (COSINE, "ddim"),
        (ContinuousVP(), "euler"),
        (ContinuousVP(), "ddim"),
        (ContinuousVP(), "heun"),
    ],
    ids=str,
)
def test_the_distribution_is_drawn(process: Process, sampler: Sampler):
    found = drawn(process, sampler)
    assert found.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert found.std().item() == pytest.approx(STD, rel=0.1)  # 100 steps are few


def test_the_distribution_is_drawn_with_new_noise_in_each_step():
    found = drawn(VP(), "ancestral", num=300, steps=300)
    assert found.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert found.std().item() == pytest.approx(STD, rel=0.1)


def test_the_noise_of_a_step_is_an_images_own():
    """A row is the same whatever is drawn beside it."""
    together, alone = (drawn(VP(), "ancestral", num=num, steps=20) for num in (5, 1))
    torch.testing.assert_close(together[:1], alone, rtol=0, atol=1e-12)


def test_the_last_step_is_left_out_if_the_official_code_is_followed():
    whole, official = (drawn(ContinuousVP(), "euler", compat=compat) for compat in (False, True))
    assert 0 < (whole - official).abs().max().item() < 0.01


def test_a_start_at_a_very_high_noise_is_kept_in_bounds():
    """At sigma = 20 000 an error of 1 % of the noise is 200 in the image."""

    class Wrong(Gaussian):
        def raw(self, noisy: Tensor, at: Coefficients, condition: Condition, stem: Any = None) -> Tensor:
            return 0.99 * super().raw(noisy, at, condition)

    noise = normal(generator(1, "start"), 50, 4).double()
    how: dict[str, Any] = {"sampler": "ddim", "steps": 20, "step_noise": lambda step: noise}
    free, kept = (draw(Wrong(COSINE, limit), noise, **how) for limit in (None, 1.0))
    assert free.abs().max() > 2 > kept.abs().max()
    linear = [draw(Wrong(VP(), limit), noise, **how) for limit in (None, 1.0)]
    assert torch.equal(*linear)  # a moderate start is left alone
    assert torch.equal(draw(Wrong(COSINE, 1.0), noise, clip="off", **how), free)


@pytest.mark.parametrize(
    ("process", "sampler"), [(VP(), "ddim"), (VP(), "heun"), (ContinuousVP(), "euler"), (VP(), "ancestral")], ids=str
)
def test_the_denoised_image_is_kept_in_bounds_if_asked(process: Process, sampler: Sampler):
    """An error of 2 % of the noise is 3 in the image at sigma = 150; the last step returns the denoised image."""

    class Wrong(Gaussian):
        def raw(self, noisy: Tensor, at: Coefficients, condition: Condition, stem: Any = None) -> Tensor:
            return 0.98 * super().raw(noisy, at, condition)

    noise = normal(generator(1, "start"), 50, 4).double()
    how: dict[str, Any] = {"sampler": sampler, "steps": 20, "step_noise": lambda step: noise}
    free, kept = (draw(Wrong(process, 0.45), noise, clip=clip, **how) for clip in ("off", "on"))
    assert kept.abs().max() < 0.55 < free.abs().max()
    unbound = draw(Wrong(process), noise, clip="on", **how)
    assert torch.equal(unbound, free)  # of a z without bounds nothing is clipped


def test_heun_is_what_it_was():
    model, noise = Gaussian(EDM()), normal(generator(1, "start"), 3, 4)
    found = draw(model, noise, steps=8, step_noise=lambda step: noise)
    assert torch.equal(found, sample(EDM(), model, noise, num_steps=8))


def test_which_sampler_is_usual():
    class Own(EDM):
        pass

    usual = {type(each).__name__: sampler_for(each, "auto") for each in (EDM(), VP(), ContinuousVP(), Own())}
    assert usual == {"EDM": "heun", "VP": "ddim", "ContinuousVP": "euler", "Own": "heun"}
    with pytest.raises(InputError, match=r"sampler is euler, but .* \(VP\) there is only ddim, ancestral, heun"):
        sampler_for(VP(), "euler")
    with pytest.raises(InputError, match=r"generate\.sampler is ancestral, but .* \(EDM\) there is only heun"):
        sampler_for(EDM(), "ancestral")


def test_settings_that_came_later_are_part_of_a_fingerprint_only_where_they_say_something_new():
    plain = build({"name": "x", "data": "x"})
    assert not {"generate.sampler", "generate.compat", "generate.clip"} & recipe_slice(plain, "generate").keys()
    asked = build({"name": "x", "data": "x", "generate": {"sampler": "heun", "compat": True}})
    found = recipe_slice(asked, "generate")
    assert (found["generate.sampler"], found["generate.compat"]) == ("heun", True)
