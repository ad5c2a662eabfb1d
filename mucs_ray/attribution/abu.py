"""AbU attributes by unlearning: it ascends on the item by natural gradient, with a diagonal Fisher matrix (spec 9.8).

    p <- p + alpha g_p / (N (F_p + damping mean F)),   F_p = mean over images and draws of (dL(z_i) / dp)^2

g is the gradient of the item's loss, N the number of training images, and the mean of F is that over p's own tensor.
Axes: n draws, *shape of an image.
"""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from mucs_ray.attribution.base import ItemState, MethodSettings, Passes, Tensors
from mucs_ray.attribution.card import MethodStage
from mucs_ray.attribution.cards.abu import CARD, AbUConfig
from mucs_ray.attribution.finite import require_finite
from mucs_ray.attribution.loss_change import LossAttributor
from mucs_ray.attribution.unlearn import require_finite_loss
from mucs_ray.diffusion.batch import Batch, Item
from mucs_ray.diffusion.condition import NO_CONDITION, Condition, for_each, moved
from mucs_ray.diffusion.loss import denoising_loss
from mucs_ray.diffusion.model import DiffusionModel
from mucs_ray.diffusion.noise import generator, normal
from mucs_ray.diffusion.process import Process
from mucs_ray.training.ema import frozen_copy

COUNT = "count"
"""The name of the number of images in the sums of squares, beside which it is stored."""
FLOOR = 1e-6
"""The smallest divisor, as a share of the mean of F over all tensors. The loss does not depend on a bias in front of a
norm: its gradient and its F are rounding errors, and without a floor their ratio would move it by thousands.
"""


class AbU(LossAttributor):
    """AbU takes a step up the item's loss, long where the training set does not care, and scores by the change of
    losses.
    """

    card = CARD
    config: AbUConfig

    @classmethod
    def passes(cls, stage: MethodStage, settings: MethodSettings, *, num_images: int, num_items: int) -> Passes:
        """Count the passes of the Fisher matrix, of the steps, and of scoring, which is as for MUCS."""
        config: AbUConfig = cls.config_in(settings)
        match stage.hook:
            case "accumulate":
                return Passes(backwards=num_images * config.fisher_draws)
            case "fit_item":
                return Passes(backwards=num_items * config.updates * config.draws)
            case _:
                return super().passes(stage, settings, num_images=num_images, num_items=num_items)

    @classmethod
    def changed_names(cls, model: DiffusionModel, config: AbUConfig) -> list[str]:
        """Return the names of the tensors that the steps change."""
        return model.names(config.parameters)

    def accumulate(self, rows: Batch) -> Tensors:
        """Return squared gradients of the loss at each image, averaged over its draws and summed over images, in
        float64.

        It raises RunFailed, naming the image, if a gradient is not finite.
        """
        model = self.context.model
        names = self.changed_names(model, self.config)
        weights = {name: model.network.get_parameter(name).detach() for name in names}
        sums = {name: torch.zeros_like(weight, dtype=torch.float64) for name, weight in weights.items()}
        for at in range(len(rows)):
            one = rows[at : at + 1]
            for name, squares in self.squared_gradients(weights, one).items():
                require_finite(squares[None], one.idx, "the gradient of the loss of training image")
                sums[name] += squares
        return {**sums, COUNT: torch.tensor(len(rows), dtype=torch.float64)}

    def squared_gradients(self, weights: Tensors, one: Batch) -> Tensors:
        """Return the squared gradients at one image, averaged over its draws.

        The draws go through the network together and without other images, so no other image changes a bit of them.
        """
        settings, model = self.context.settings, self.context.model
        name, num = f"abu/fisher/idx={int(one.idx)}", self.config.fisher_draws
        ((sigma, noise),) = draws(model.process, settings.seed, name, num, num, like=one.z)

        def loss(weights: Tensors, sigma: Float[Tensor, ""], noise: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
            with_weights = {f"network.{name}": weight for name, weight in weights.items()}

            def denoiser(noisy: Tensor, level: Tensor, condition: Condition = NO_CONDITION) -> Tensor:
                return functional_call(model, with_weights, (noisy, level, condition))

            return denoising_loss(model.process, denoiser, one.z, noise[None], sigma[None], one.condition)[0]

        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no rule for vmap: it would loop over the draws
            gradients = vmap(grad(loss), in_dims=(None, 0, 0))(weights, sigma, noise)
        return {name: gradient.double().square().mean(dim=0) for name, gradient in gradients.items()}

    def fit_item(self, item: Item, fitted: Tensors, on_update: Callable[[int, float], None]) -> ItemState:
        """Return the changed tensors; `fitted` holds the sums of `accumulate`.

        `item_loss` is the item's mean loss before each update and at the end, where it is measured on the draws of the
        first update: its first and last value differ by what the updates did and nothing else.
        """
        config = self.config
        changed = frozen_copy(self.context.model)  # eval mode: no dropout, no condition drop
        rates = step_sizes(fitted, config, num_images=self.context.num_images)
        parameters = {name: changed.network.get_parameter(name).requires_grad_(True) for name in rates}
        trace: list[float] = []
        for step in range(config.updates + 1):
            ended = step == config.updates
            trace.append(0.0)
            for share in self.shares(changed, item, draws_of=0 if ended else step):
                require_finite_loss(share, item, step)
                trace[-1] += share.item()
                if not ended:
                    share.backward()
            on_update(step, trace[-1])
            if not ended:
                ascend(parameters, rates)
        tensors = {name: parameter.detach() for name, parameter in parameters.items()}
        return ItemState(tensors=tensors, facts={"outcome": "fixed", "updates": config.updates, "item_loss": trace})

    def shares(self, changed: DiffusionModel, item: Item, *, draws_of: int) -> Iterator[Float[Tensor, ""]]:
        """Yield each forward's share of the item's mean loss over the draws of an update; the shares add up to it."""
        config, device = self.config, self.context.device
        image = item.z.to(device)[None]
        name = f"abu/item={item.idx}/step={draws_of}"
        for sigma, noise in draws(
            changed.process, self.context.settings.seed, name, config.draws, config.draws_per_forward, like=image
        ):
            condition = for_each(moved(item.condition, device), len(sigma))
            losses = denoising_loss(changed.process, changed, image.expand_as(noise), noise, sigma, condition)
            yield losses.sum() / config.draws


def draws(
    process: Process, seed: int, name: str, num: int, at_once: int, *, like: Float[Tensor, "1 *shape"]
) -> Iterator[tuple[Float[Tensor, " n"], Float[Tensor, "n *shape"]]]:
    """Yield noise levels of training and noise, `at_once` at a time. Their values do not depend on `at_once`."""
    levels, noises = generator(seed, f"{name}/sigma"), generator(seed, f"{name}/noise")
    for start in range(0, num, at_once):
        count = min(at_once, num - start)
        sigma, noise = process.training_levels(levels, count), normal(noises, count, *like.shape[1:])
        yield sigma.to(like.device), noise.to(like.device)


def step_sizes(total: Tensors, config: AbUConfig, *, num_images: int) -> Tensors:
    """Return alpha / (N (F_p + damping mean F)) in float64; what is divided by is at least FLOOR times the mean of all
    F.
    """
    fisher = {name: squares / total[COUNT] for name, squares in total.items() if name != COUNT}
    floor = FLOOR * torch.cat([diagonal.flatten() for diagonal in fisher.values()]).mean()
    damped = {name: diagonal + config.damping * diagonal.mean() for name, diagonal in fisher.items()}
    return {name: config.step / (num_images * diagonal.clamp(min=floor)) for name, diagonal in damped.items()}


@torch.no_grad()
def ascend(parameters: Tensors, rates: Tensors) -> None:
    """Move each parameter up its gradient, in place, and forget the gradient."""
    for name, parameter in parameters.items():
        assert parameter.grad is not None
        parameter += (rates[name].to(parameter.device) * parameter.grad.double()).to(parameter.dtype)
        parameter.grad = None
