"""The score of a group for a generated image: how much worse it is explained without the group (spec/backbones 4.4).

Axes: n levels.
"""

from jaxtyping import Float
from torch import Tensor

from mucs_ray.attribution.config import ScoreConfig
from mucs_ray.attribution.forgetting.config import GroupsConfig
from mucs_ray.attribution.skew import epsilon_at, normalized_skew
from mucs_ray.diffusion.batch import Item
from mucs_ray.diffusion.elbo import ElboGrid, elbo_difference, elbo_grid, loss_difference, query_noise, raw_errors
from mucs_ray.diffusion.levels import kept_share
from mucs_ray.diffusion.model import DiffusionModel
from mucs_ray.diffusion.process import Process


def score_grid(process: Process, groups: GroupsConfig, score: ScoreConfig) -> ElboGrid:
    """Return the levels of the scores; the skew takes those of MUCS."""
    if groups.score != "skew":
        return elbo_grid(process, skip=groups.skip, num=groups.levels)
    keep = kept_share(process, score.noises, keep=score.keep, lowest_sigma=score.lowest_sigma)
    level = process.scoring_levels(score.noises, keep)
    weight = process.at(level.double()).weight
    return ElboGrid(level=level, kl=weight.new_full((len(level),), float("nan")), loss=weight)


def query_errors(
    model: DiffusionModel, query: Item, grid: ElboGrid, *, seed: int, draw: int = 0
) -> Float[Tensor, " n"]:
    """Return the errors of a model for a query, on the noise of that query, which all models share."""
    device = next(model.parameters()).device
    noises = query_noise(grid, model.shape, seed=seed, idx=query.idx, draw=draw).to(device)
    limit = model.limit
    z = query.z if limit is None else query.z.clamp(-limit, limit)
    condition = {name: tensor.to(device) for name, tensor in query.condition.items()}
    return raw_errors(model, z.to(device), noises, condition)


def group_score(
    groups: GroupsConfig,
    score: ScoreConfig,
    process: Process,
    grid: ElboGrid,
    full: Float[Tensor, " n"],
    without: Float[Tensor, " n"],
    num_elements: int,
) -> float:
    """Return the score of a group from the errors of the full model and of that without it; positive: it mattered."""
    match groups.score:
        case "elbo":
            return elbo_difference(grid, full, without).item()
        case "unweighted":
            return loss_difference(grid, full, without, num_elements).item()
        case "skew":
            before, after = (grid.loss * errors / num_elements for errors in (full, without))
            epsilon = epsilon_at(process, grid.level, score.epsilon).double()
            return normalized_skew(before[None], after[None], epsilon=epsilon).item()
