"""Models that share nothing with a DiT-EDM on pictures except the contract.

Axes: b batch, *shape of what a row holds, c channels, l length, t tokens, d width.
"""

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from mucs_ray.diffusion.batch import Batch
from mucs_ray.diffusion.condition import Condition
from mucs_ray.diffusion.edm import EDM
from mucs_ray.diffusion.model import DiffusionModel, Selector
from mucs_ray.diffusion.noise import generator, normal
from mucs_ray.diffusion.process import Coefficients, Process
from mucs_ray.diffusion.rows import per_row


class VPNoise(Process):
    """A variance-preserving process whose network predicts the noise; a level is an index into 200 values of beta
    (spec/models 2.2).
    """

    alpha_bar = torch.cumprod(1 - torch.linspace(1e-3, 0.05, 200), dim=0)

    def at(self, level: Float[Tensor, " n"]) -> Coefficients:
        bar = self.alpha_bar.to(level)[level.long()]
        one = torch.ones_like(bar)
        return Coefficients(
            time=level / 200, alpha=bar.sqrt(), s=(1 - bar).sqrt(), p=torch.zeros_like(bar), q=one, weight=one, c_in=one
        )

    def training_levels(self, stream: np.random.Generator, num: int) -> Float[Tensor, " n"]:
        return torch.from_numpy(stream.integers(200, size=num)).float()

    def scoring_levels(self, num: int, keep: float, stream: np.random.Generator | None = None) -> Float[Tensor, " n"]:
        count = int(round(num / keep, 9))
        u = torch.linspace(0, 1, count) if stream is None else torch.from_numpy(np.sort(stream.random(count)))
        return (199 * (1 - u)).round()[:num].float()

    def sampling_levels(self, steps: int) -> Float[Tensor, " m"]:
        return torch.linspace(199, 0, steps).round()


class Perceptron(nn.Module):
    """Two layers over a flattened input, its time and the means of the conditions."""

    def __init__(self, size: int, extra: int, width: int = 16) -> None:
        super().__init__()
        self.mix = nn.Linear(size, size)
        self.hidden = nn.Linear(size + 1 + extra, width)
        self.out = nn.Linear(width, size)

    def forward(self, x: Float[Tensor, "b n"], extra: Float[Tensor, "b e"]) -> Float[Tensor, "b n"]:
        return self.out(torch.tanh(self.hidden(torch.cat([x + 0.1 * self.mix(x), extra], dim=1))))


class Toy(DiffusionModel):
    """A perceptron for any shape, process and condition."""

    def __init__(self, shape: tuple[int, ...], process: Process, widths: dict[str, tuple[int, ...]]) -> None:
        super().__init__(Perceptron(math.prod(shape), sum(width[-1] for width in widths.values())))
        self.own_shape, self.process, self.widths = shape, process, widths

    @property
    def shape(self) -> tuple[int, ...]:
        return self.own_shape

    def raw(self, noisy: Tensor, at: Coefficients, condition: Condition, stem: Tensor | None = None) -> Tensor:
        full_condition = {**self.nothing(len(noisy)), **condition}
        means = [
            full_condition[name].reshape(len(noisy), -1, width[-1]).mean(dim=1) for name, width in self.widths.items()
        ]
        extra = torch.cat([at.time[:, None], *means], dim=1).to(noisy.dtype)
        scaled = per_row(at.c_in, noisy) * noisy
        return self.network(scaled.flatten(1), extra).view_as(noisy).to(noisy.dtype)

    def nothing(self, num: int) -> Condition:
        return {name: torch.zeros(num, *width) for name, width in self.widths.items()}

    def names(self, which: Selector) -> list[str]:
        parts = {"mlp": ("hidden", "out"), "attention": ("mix",), "blocks": ("hidden", "out", "mix")}
        if which == "all":
            return [name for name, _ in self.network.named_parameters()]
        return [f"{part}.weight" for part in parts[which]]


TOYS: dict[str, tuple[tuple[int, ...], Process, dict[str, tuple[int, ...]]]] = {
    "one channel": ((1, 8, 8), EDM(), {"label": (3,)}),
    "waves, unconditional": ((2, 24), EDM(), {}),
    "tokens and a pooled vector": ((4, 4, 4), EDM(), {"tokens": (5, 6), "pooled": (3,)}),
    "predicts the noise": ((1, 8, 8), VPNoise(), {"label": (3,)}),
}


def toy(name: str) -> Toy:
    """Build a frozen model whose weights depend only on their names."""
    model = Toy(*TOYS[name]).eval().requires_grad_(False)
    for parameter_name, parameter in model.named_parameters():
        parameter.copy_(0.2 * normal(generator(3, parameter_name), *parameter.shape))
    return model


def samples(name: str, num: int) -> Batch:
    """Make waves of random phase, in the shape of the model, with conditions as it reads them."""
    shape, _, widths = TOYS[name]
    phase = 6 * normal(generator(5, "phase"), num, *[1] * len(shape))
    image = 0.9 * torch.sin(torch.arange(math.prod(shape)).view(1, *shape) / 3 + phase)
    condition = {key: normal(generator(5, key), num, *width) for key, width in widths.items()}
    return Batch(idx=torch.arange(num), z=image, condition=condition)
