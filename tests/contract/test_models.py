"""Every method attributes every kind of model: other shapes, conditions and processes than those of DiT-EDM."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from mucs_ray.attribution.base import Attributor, MethodContext
from mucs_ray.attribution.card import MethodCard, MethodStage, load_class
from mucs_ray.attribution.loss_change import LossChange, select_measure
from mucs_ray.attribution.registry import METHODS
from mucs_ray.config.recipe import Recipe, for_method, with_values
from mucs_ray.diffusion.batch import Batch, Item
from mucs_ray.diffusion.condition import for_each, one_by_one
from mucs_ray.diffusion.edm import EDM
from mucs_ray.diffusion.loss import denoising_loss
from mucs_ray.diffusion.model import guided
from mucs_ray.diffusion.noise import generator, normal
from mucs_ray.diffusion.process import Process
from mucs_ray.diffusion.rows import row_means
from mucs_ray.diffusion.sampler import sample
from mucs_ray.diffusion.samplers import draw_named
from tiny import tiny_recipe
from toy_models import TOYS, Toy, VPNoise, samples, toy

CPU = torch.device("cpu")
NUM_IMAGES, NUM_ITEMS = 6, 2
RECIPE = tiny_recipe(
    "nowhere",
    score={"noises": 4},
    method={
        # the drawn bound needs a model that can be trained
        "mucs": {"batch_size": 4, "bound": "linear", "max_updates": 2},
        "dtrak": {"dim": 16, "noises": 3},
        "das": {"dim": 16, "noises": 3},
        "mucs/linear": {"dim": 16, "noises": 3},
        "abu": {"draws": 4, "draws_per_forward": 2, "fisher_draws": 2},
        "forward-inf": {"updates": 2, "draws": 4},
    },
)
METHOD_NAMES = [name for name, method in METHODS.items() if not method.is_ensemble]


def settings_of(method: MethodCard) -> Recipe:
    recipe = for_method(RECIPE, method)
    return with_values(recipe, {"method.mucs.fixed_updates": min(3, recipe.method["mucs"].fixed_updates)})


def worker(method: MethodCard, stage: MethodStage | None, model: Toy, images: Batch, items: list[Item]) -> Attributor:
    """Build a method with all that any hook may need."""
    context = MethodContext(
        settings=settings_of(method),
        device=CPU,
        num_images=len(images),
        items=items,
        denoiser=model,
        batches=lambda name, size: lambda step: images[torch.arange(size) % len(images)],
        encode=lambda pictures: normalize(torch.tanh(pictures.flatten(1)), dim=1),
    )
    return load_class((stage.owner if stage else "") or method.implementation)(context)


def scored(name: str, model: Toy, images: Batch, items: list[Item]) -> Tensor:
    """Run all hooks of a method in their order, and return the scores."""
    method = METHODS[name]
    if not method.stages:
        return worker(method, None, model, images, items).score(images)
    rows: Any = images
    fitted: dict[str, Tensor] = {}
    of_owner: dict[str, Tensor] = {}  # what stages that are taken over from another method have fitted once a run
    states: list[dict[str, Tensor]] = [{} for _ in items]
    for stage in method.stages:
        hooked = worker(method, stage, model, images, items)
        match stage.hook:
            case "features":
                rows = {"idx": images.idx, **hooked.features(images)}
            case "accumulate":
                fitted = hooked.accumulate(rows)
            case "fit" if stage.owner:  # it knows nothing of this method's features
                of_owner = hooked.fit({}, iter([images]))
            case "fit":
                fitted = hooked.fit(fitted, iter([rows]))
            case "fit_item":
                known = of_owner or fitted
                states = [hooked.fit_item(item, known, lambda step, loss: None).tensors for item in items]
            case "fit_together":
                fitted = hooked.fit_together(fitted, states)
            case "sample":
                hooked.load(fitted, states)
                rows = hooked.sample(images)
            case "fit_screen":
                fitted, rows = hooked.fit_screen(iter([rows])), images
            case "score":
                hooked.load(fitted, states)
                columns = hooked.columns(rows)
                return (
                    columns["score"]
                    if "score" in columns
                    else select_measure(columns, settings_of(method).rank.measure)
                )
    raise AssertionError(f"no stage of {name} scores")


def generated(model: Toy, item: Item) -> Tensor:
    """Generate an item from its own noise."""
    return draw_named(model, for_each(item.condition, 1), [item.idx], RECIPE.generate, RECIPE.seed)[0]


@pytest.mark.parametrize("name", METHOD_NAMES)
@pytest.mark.parametrize("kind", TOYS)
def test_every_method_scores_every_kind_of_model(kind: str, name: str):
    model, images = toy(kind), samples(kind, NUM_IMAGES)
    if METHODS[name].needs_condition and not images.condition:
        pytest.skip("compares conditions, and there are none")
    conditions = one_by_one(images.condition, NUM_ITEMS)
    items = [Item(number=n, idx=50 + n, condition=conditions[n], z=images.z[n]) for n in range(NUM_ITEMS)]
    if METHODS[name].settings.get("method.mucs.trajectory"):  # it asks how an item was generated
        items = [replace(item, z=generated(model, item)) for item in items]
    before = {each: tensor.clone() for each, tensor in model.state_dict().items()}
    scores = scored(name, model, images, items)
    assert scores.shape == (NUM_IMAGES, NUM_ITEMS)
    assert scores.isfinite().all()
    assert all(torch.equal(tensor, before[each]) for each, tensor in model.state_dict().items())


# --- what is written once for all processes -----------------------------------------------------------------------


@pytest.mark.parametrize("process", [EDM(), VPNoise()], ids=["EDM", "VP"])
def test_the_loss_of_the_denoised_image_is_that_of_the_raw_output(process: Process):
    """weight (r - target)^2 equals a multiple of (D - z)^2."""
    image, noise, raw = (normal(generator(1, name), 50, 3, 4).double() for name in ("image", "noise", "raw"))
    level = process.training_levels(generator(1, "level"), 50).double()
    at = process.at(level)
    actual = denoising_loss(
        process, lambda noisy, level, condition: process.denoised(raw, noisy, level), image, noise, level
    )
    expected = at.weight * row_means((raw - process.target(image, noise, level)).square())
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=0)


def test_the_general_formulas_are_those_of_edm():
    """EDM writes the formulas out in the paper's order, and the coefficients give the same."""
    process, level = EDM(), EDM().training_levels(generator(1, "level"), 50).double()
    image, noise, raw = (normal(generator(1, name), 50, 3, 4).double() for name in ("image", "noise", "raw"))
    for name, given in {"noised": (image, noise), "target": (image, noise), "denoised": (raw, image)}.items():
        actual, general = (getattr(kind, name)(process, *given, level) for kind in (EDM, Process))
        torch.testing.assert_close(actual, general, rtol=1e-9, atol=1e-9, msg=name)
    torch.testing.assert_close(EDM.loss_weight(process, level), Process.loss_weight(process, level))


def test_the_null_loss_of_a_noise_predictor_is_that_of_the_best_linear_denoiser():
    """The expected value is a Monte Carlo mean; a network that puts out zero has a loss of 1, several times as much."""
    process, v, num = VPNoise(), 0.25, 200_000
    image, noise = 0.5 * normal(generator(1, "image"), num, 1), normal(generator(1, "noise"), num, 1)
    level = process.training_levels(generator(1, "level"), num)
    at = process.at(level)
    best = at.alpha * v / (at.alpha**2 * v + at.s**2)
    losses = denoising_loss(process, lambda noisy, level, condition: best[:, None] * noisy, image, noise, level)
    assert process.null_loss(v) == pytest.approx(losses.mean().item(), rel=0.03)
    assert process.null_loss(v) < 0.6


@pytest.mark.parametrize("process", [EDM(), VPNoise()], ids=["EDM", "VP"])
def test_the_sampler_draws_the_distribution_of_the_best_denoiser(process: Process):
    """Images have the variance v under every process, in equal units of s / alpha."""
    v = 0.3

    def best(noisy: Tensor, level: Tensor, condition: object) -> Tensor:
        at = process.at(level)
        return (at.alpha * v / (at.alpha**2 * v + at.s**2))[:, None] * noisy

    actual = sample(process, best, normal(generator(1, "unit"), 4000, 1), num_steps=60)
    assert actual.std().item() == pytest.approx(v**0.5, rel=0.1)


@pytest.mark.parametrize("kind", TOYS)
def test_every_kind_of_model_is_guided_and_sampled(kind: str):
    model, images = toy(kind), samples(kind, 3)
    draw = partial(sample, model.process, unit_noise=normal(generator(1, "unit"), 3, *model.shape), num_steps=5)
    plain, strong = (draw(guided(model, weight), condition=images.condition) for weight in (1.0, 2.0))
    assert plain.shape == images.z.shape and plain.isfinite().all() and strong.isfinite().all()
    assert torch.equal(plain, strong) == (not images.condition)


def test_the_epsilon_of_the_skew_is_in_the_units_of_the_loss_at_each_level():
    """The best linear denoiser of z of mean square 1 has the loss alpha_bar, if it predicts noise (spec/models 2.4)."""
    model, images = toy("predicts the noise"), samples("predicts the noise", NUM_IMAGES)
    unlearned = {name: 1.1 * model.network.get_parameter(name) for name in model.names("mlp")}
    change = LossChange(model, [unlearned], config=RECIPE.score, seed=1)
    bar = VPNoise.alpha_bar[change.shared_noises.level.long()]
    torch.testing.assert_close(change.epsilon, 1e-3 * bar)
    losses = change.losses(images)
    before, after = losses.before, losses.after[0]
    expected = ((after - before) / (after + before + 1e-3 * bar)).mean(dim=1)
    torch.testing.assert_close(change.skew(losses)[:, 0], expected)
