"""Variance-preserving processes on a table of steps: DDPM, and all that predict noise, velocity or the image on one.

    x_t = sqrt(alpha_bar_t) z + sqrt(1 - alpha_bar_t) eps

A level is the number of a step, 0 to T - 1 with T - 1 the noisiest, and -1 where there is no noise at all.
Axes: n levels, t steps.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mucs_ray.diffusion.betas import alpha_bar
from mucs_ray.diffusion.process import Coefficients, Process
from mucs_ray.diffusion.schedule import rho_schedule
from mucs_ray.diffusion.vp_config import Betas, Prediction, Spacing

DDPM = Betas()
LEAST_DET = 1e-4
"""A level with a smaller |det| is not scored, since the output says too little about the image (spec/models 2.3)."""
NO_NOISE = -1


@cache
def mixing(of: Betas, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "2 t_plus_1"]:
    """Return alpha and s of each step, computed in float64; the last column, which -1 finds, is the clean image."""
    left = torch.cat([alpha_bar(of).double(), torch.ones(1, dtype=torch.float64)])
    return torch.stack([left.sqrt(), (1 - left).sqrt()]).to(dtype).to(device)


@dataclass(frozen=True, kw_only=True)
class VP(Process):
    """A process on a table of steps, and the quantity that the network predicts."""

    betas: Betas = DDPM
    prediction: Prediction = "epsilon"
    spacing: Spacing = "linspace"
    """How a sampler picks its steps."""
    offset: int = 0
    """The number of steps by which leading steps are shifted to the noisier side."""
    second_moment: float = 1.0

    def at(self, level: Float[Tensor, " n"]) -> Coefficients:
        """Return the coefficients; det is alpha for epsilon, 1 for velocity, and -s for the image (weight alpha^2 /
        s^2).
        """
        alpha, s = mixing(self.betas, level.dtype, level.device)[:, level.long()]
        one, none = torch.ones_like(level), torch.zeros_like(level)
        match self.prediction:
            case "epsilon":
                p, q, weight = none, one, one
            case "v_prediction":
                p, q, weight = -s, alpha, one
            case "sample":
                p, q, weight = one, none, (alpha / s) ** 2
        return Coefficients(time=level, alpha=alpha, s=s, p=p, q=q, weight=weight, c_in=one)

    def num_levels(self, least_det: float) -> int:
        """Return the number of steps, from the clean end, with a larger |det|: at the other end it may fall to 0."""
        det = self.at(torch.arange(self.betas.steps, dtype=torch.float64)).det.abs()
        return int((det > least_det).sum())

    def training_levels(self, stream: np.random.Generator, num: int) -> Float[Tensor, " n"]:
        """Draw steps that are all equally likely."""
        return torch.from_numpy(stream.integers(self.num_levels(0.0), size=num)).float()

    def scoring_levels(self, num: int, keep: float, stream: np.random.Generator | None = None) -> Float[Tensor, " n"]:
        """Return the noisiest steps of an even grid, or of random steps.

        An unusable step is replaced by the next usable one.
        """
        count = int(round(num / keep, 9))
        where = np.arange(count) / max(count - 1, 1) if stream is None else np.sort(stream.random(count))
        grid = torch.from_numpy(scoring_grid(self.betas.steps, where))[:num]
        return grid.clamp(max=self.num_levels(LEAST_DET) - 1).float()

    def sampling_levels(self, steps: int) -> Float[Tensor, " m"]:
        """Return the steps according to `spacing`, without repetitions."""
        total, usable = self.betas.steps, self.num_levels(0.0)
        match self.spacing:
            case "linspace":
                picked = np.linspace(0, total - 1, steps).round()[::-1]
            case "leading":
                picked = (np.arange(steps) * (total // steps))[::-1] + self.offset
            case "trailing":
                picked = (total - np.arange(steps) * total / steps).round() - 1
            case "rho":
                picked = self.nearest_to_rho(steps)
        levels = torch.from_numpy(np.asarray(picked, dtype=np.float64).copy()).clamp(min=0, max=usable - 1)
        return torch.unique_consecutive(levels)

    def nearest_to_rho(self, steps: int) -> np.ndarray:
        """Return the steps whose sigma is nearest to EDM's schedule between the table's own ends."""
        alpha, s = mixing(self.betas, torch.float64, torch.device("cpu"))[:, : self.betas.steps]
        sigma = (s / alpha)[alpha > LEAST_DET]
        targets = rho_schedule(steps, sigma_min=sigma[0].item(), sigma_max=sigma[-1].item())
        return (sigma[None] - targets[:, None]).abs().argmin(dim=1).numpy()

    def following(self, levels: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
        """Return the step after each one in a sampler of that many steps: T / m further, at last to no noise."""
        return (levels - self.betas.steps // len(levels)).clamp(min=NO_NOISE)


def scoring_grid(steps: int, where: np.ndarray) -> np.ndarray:
    """Return the steps at these positions, 0 the noisiest and 1 the least noisy."""
    return ((steps - 1) * (1 - where)).round()
