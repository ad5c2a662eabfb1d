"""K-FAC influence: layers as matrices, factors by a plain loop, and the exact Gauss-Newton solve where it is one."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from linear_model import SIZE, LinearModel
from mucs_ray.attribution.base import MethodContext
from mucs_ray.attribution.kfac import KFAC
from mucs_ray.attribution.layers import as_matrices, input_tokens, layers_of, output_tokens, parameter_names
from mucs_ray.diffusion.batch import Batch, Item
from mucs_ray.diffusion.model import DiffusionModel
from mucs_ray.diffusion.noise import generator, normal
from mucs_ray.errors import InputError, RunFailed
from mucs_ray.models.dit import PatchConv
from tiny import lively, tiny_recipe

CPU = torch.device("cpu")
NOISES, IMAGES = 5, 8


def method(model: DiffusionModel, **settings: Any) -> KFAC:
    own = {"noises": NOISES, "damping": 1e-3, **settings}
    recipe = tiny_recipe("nowhere", method={"kfac": own})
    return KFAC(MethodContext(settings=recipe, device=CPU, num_images=IMAGES, denoiser=model))


def images(count: int) -> Batch:
    return Batch(idx=torch.arange(count), z=normal(generator(2, "images"), count, SIZE), condition={})


ITEM = Item(number=0, idx=900, condition={}, z=normal(generator(3, "item"), SIZE))


def nothing(step: int, loss: float) -> None:
    pass


class TwoLayers(LinearModel):
    """F(x) = V tanh(W c_in x + b)."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(SIZE, 4), nn.Tanh(), nn.Linear(4, SIZE, bias=False), nn.LayerNorm(SIZE))
        for name, parameter in self.network.named_parameters():
            parameter.data.copy_(0.5 * normal(generator(1, name), *parameter.shape))
        self.requires_grad_(False).eval()


# --- layers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(3, 5), (2, 3)),
        (nn.Linear(3, 5, bias=False), (2, 7, 3)),
        (nn.Conv2d(3, 5, 3, padding=1), (2, 3, 6, 6)),
        (nn.Conv2d(3, 5, (3, 1), stride=2, padding=(1, 0), dilation=2, bias=False), (2, 3, 7, 6)),
        (PatchConv(3, 5, 2), (2, 3, 6, 6)),
    ],
)
def test_a_layer_is_its_matrix_times_its_tokens(layer: nn.Linear | nn.Conv2d, shape: tuple[int, ...]):
    inputs = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    weights = dict(layer.named_parameters())
    (matrix,) = as_matrices({"": layer}, weights).values()
    torch.testing.assert_close(
        input_tokens(layer, inputs) @ matrix.T, output_tokens(layer, layer(inputs)), rtol=1e-4, atol=1e-5
    )


def test_layers_are_the_linear_ones_and_plain_convolutions():
    network = nn.ModuleDict(
        {
            "linear": nn.Linear(2, 2),
            "conv": nn.Conv2d(2, 2, 3),
            "grouped": nn.Conv2d(2, 2, 3, groups=2),
            "mirrored": nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"),
            "norm": nn.LayerNorm(2),
        }
    )
    assert [*layers_of(network)] == ["linear", "conv"]
    assert parameter_names(layers_of(network)) == ["linear.weight", "linear.bias", "conv.weight", "conv.bias"]
    with pytest.raises(InputError, match="expected linear layers or convolutions; found 1 LayerNorm, 1 Embedding;"):
        layers_of(nn.Sequential(nn.LayerNorm(2), nn.Embedding(2, 2)))


# --- factors ------------------------------------------------------------------------------------------------------


def drawn(model: LinearModel, idx: int, num: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return scaled inputs of the network, times, and output gradients u, as the method names them, in float64."""
    stream = generator(1, f"kfac/factors/idx={idx}")
    level = model.process.training_levels(stream, num)
    noise, sampled = normal(stream, num, SIZE), normal(stream, num, SIZE)
    z = images(IMAGES).z[idx]
    inputs = (z + level[:, None] * noise) / (level[:, None] ** 2 + 0.25).sqrt()
    return inputs.double(), level, sampled.double() * (2 / SIZE) ** 0.5


def test_factors_of_one_layer_are_the_second_moments_of_inputs_and_sampled_gradients():
    """For one layer the gradient of its output is that of F, so S is near (2 / d) I."""
    model, draws = LinearModel(), 600
    sums = method(model, factor_draws=draws).accumulate(images(IMAGES))
    pairs = [drawn(model, idx, draws) for idx in range(IMAGES)]
    inputs, sampled = torch.cat([pair[0] for pair in pairs]), torch.cat([pair[2] for pair in pairs])
    assert sums["count"] == IMAGES * draws
    torch.testing.assert_close(sums["/inputs"], inputs.T @ inputs, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(sums["/outputs"], sampled.T @ sampled, rtol=1e-4, atol=1e-3)
    exact = 2 / SIZE * torch.eye(SIZE, dtype=torch.float64)
    torch.testing.assert_close(sums["/outputs"] / sums["count"], exact, rtol=0, atol=0.1 * exact.max().item())


def test_factors_of_deeper_layers_are_by_plain_autograd():
    """W's inputs end with the 1 of its bias; each draw's gradient is its own."""
    model, draws = TwoLayers(), 3
    sums = method(model, factor_draws=draws).accumulate(images(2))
    expected = {"0/inputs": 0, "0/outputs": 0, "2/inputs": 0, "2/outputs": 0}
    network = model.network.double()
    for idx in range(2):
        for x, _, u in zip(*drawn(model, idx, draws), strict=True):
            hidden = network[0](x).requires_grad_(True)
            middle = torch.tanh(hidden)
            last = network[2](middle)
            by_hidden, by_last = torch.autograd.grad(network[3](last) @ u, (hidden, last))
            first = torch.cat([x, torch.ones(1, dtype=torch.float64)])
            for name, vector in zip(expected, (first, by_hidden, middle.detach(), by_last), strict=True):
                expected[name] = expected[name] + torch.outer(vector, vector)
    for name, factor in expected.items():
        torch.testing.assert_close(sums[name], factor, rtol=1e-3, atol=1e-4)
    assert {*sums} == {*expected, "count"}  # the norm has no part
    assert not any(module._forward_hooks for module in model.modules())  # F1 is as it was


# --- influence ----------------------------------------------------------------------------------------------------


def exact_gauss_newton(model: LinearModel, draws: int) -> Tensor:
    """Return mean J^T (2 / d) J over all draws, from Jacobians by autograd, in float64."""
    weight = model.network.get_parameter("weight").double()
    total = torch.zeros(weight.numel(), weight.numel(), dtype=torch.float64)
    for idx in range(IMAGES):
        for x in drawn(model, idx, draws)[0]:
            jacobian = torch.autograd.functional.jacobian(
                lambda w, x=x: functional_call(model.network.double(), {"weight": w}, x), weight
            ).reshape(SIZE, -1)
            total += 2 / SIZE * jacobian.T @ jacobian
    return total / (IMAGES * draws)


def loss_gradient(model: LinearModel, measured: KFAC, z: Tensor) -> Tensor:
    """Return the gradient of the loss of one image, averaged over the noises by a plain loop in float64."""
    weight = model.network.get_parameter("weight").double().detach().requires_grad_(True)
    noises, total = measured.gradient.noises, torch.zeros(SIZE, SIZE, dtype=torch.float64)
    for level, unit in zip(noises.level.double(), noises.unit.double(), strict=True):
        x = (z.double() + level * unit) / (level**2 + 0.25).sqrt()
        target = model.process.target(z[None].double(), unit[None], level[None])[0]
        (gradient,) = torch.autograd.grad((weight @ x - target).square().mean(), weight)
        total += gradient / len(noises.level)
    return total.flatten()


def test_influence_is_the_exact_solve_where_the_curvature_is_a_kronecker_product():
    """With S at its expectation (2 / d) I the curvature of one linear layer is S (x) A itself."""
    model, draws, batch = LinearModel(), 6, images(IMAGES)
    measured = method(model, factor_draws=draws)
    sums = measured.accumulate(batch)
    sums["/outputs"] = 2 / SIZE * sums["count"] * torch.eye(SIZE, dtype=torch.float64)
    fitted = measured.fit(sums, iter([]))
    measured.load(fitted, [measured.fit_item(ITEM, fitted, nothing).tensors])
    scores = measured.score(batch)[:, 0]
    fresh = LinearModel()
    curvature = exact_gauss_newton(fresh, draws)
    damping = 1e-3 * curvature.trace() / len(curvature)
    assert fitted["lambda"].item() == pytest.approx(damping.item(), rel=1e-4)
    solved = torch.linalg.solve(curvature + damping * torch.eye(len(curvature)), loss_gradient(fresh, measured, ITEM.z))
    expected = torch.stack([loss_gradient(fresh, measured, z) @ solved for z in batch.z])
    torch.testing.assert_close(scores, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())


def test_the_sign_is_that_of_the_items_loss_without_the_image():
    """Training on an image with a positive score lowers the item's loss: higher = more influential."""
    model, batch = LinearModel(), images(IMAGES)
    measured = method(model, factor_draws=40, damping=1e6)  # G has no part: the score is a product of gradients
    fitted = measured.fit(measured.accumulate(batch), iter([]))
    measured.load(fitted, [measured.fit_item(ITEM, fitted, nothing).tensors])
    own = loss_gradient(model, measured, ITEM.z)
    products = torch.stack([loss_gradient(model, measured, z) @ own for z in batch.z])
    assert torch.corrcoef(torch.stack([measured.score(batch)[:, 0], products]))[0, 1] > 0.999


def test_fewer_noises_in_a_pass_give_the_same_scores():
    recipe = tiny_recipe("nowhere")
    model = lively(recipe.model)
    z = normal(generator(2, "z"), 2, *model.shape)
    batch = Batch(idx=torch.arange(2), z=z, condition={"condition": torch.eye(3)[:2]})
    item = Item(number=0, idx=900, condition={"condition": torch.eye(3)[1]}, z=batch.z[1])
    scores = []
    for at_once in (100, 2):
        measured = method(model, factor_draws=2, damping=0.1, noises_per_forward=at_once)
        fitted = measured.fit(measured.accumulate(batch), iter([]))
        measured.load(fitted, [measured.fit_item(item, fitted, nothing).tensors])
        scores.append(measured.score(batch))
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-3, atol=1e-3 * scores[0].abs().max().item())


def test_a_model_whose_output_depends_on_no_layer_is_told():
    sums = {"count": torch.tensor(4.0), "/inputs": torch.eye(2), "/outputs": torch.zeros(2, 2)}
    with pytest.raises(RunFailed, match="the output depends on no layer"):
        method(LinearModel()).fit(sums, iter([]))
