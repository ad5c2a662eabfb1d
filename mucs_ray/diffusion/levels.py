"""The levels on which images are scored: how low they go, and where they are on an axis that all processes share.

Axes: n levels.
"""

from jaxtyping import Float
from torch import Tensor

from mucs_ray.diffusion.bound import relative_sigma
from mucs_ray.diffusion.process import Process
from mucs_ray.errors import InputError

MOST_LEVELS = 100
"""The longest schedule that is looked for, in multiples of the levels that are kept of it."""


def kept_share(process: Process, num: int, *, keep: float, lowest_sigma: float | None) -> float:
    """Return the share of a schedule that is used: `keep`, or as much as stays above `lowest_sigma`."""
    return keep if lowest_sigma is None else keep_above(process, num, lowest_sigma)


def keep_above(process: Process, num: int, lowest_sigma: float) -> float:
    """Return the largest share of a schedule whose noisiest `num` levels all have sigma >= `lowest_sigma`.

    Sigma is s / alpha. InputError if even the noisiest levels are below it.
    """

    def is_above(length: int) -> bool:
        return sigmas(process, process.scoring_levels(num, num / length))[-1].item() >= lowest_sigma

    shortest, longest = num, MOST_LEVELS * num
    if is_above(shortest):
        return 1.0
    if not is_above(longest):
        highest = sigmas(process, process.scoring_levels(1, 1.0)).item()
        raise InputError(
            f"score.lowest_sigma is {lowest_sigma:g}, but the schedule of this model has hardly any levels above it;"
            f" its highest is {highest:.4g}"
        )
    while longest - shortest > 1:  # a longer schedule has more levels at the noisy end
        middle = (shortest + longest) // 2
        shortest, longest = (shortest, middle) if is_above(middle) else (middle, longest)
    return num / longest


def sigmas(process: Process, levels: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Return s / alpha."""
    return relative_sigma(process.at(levels.double()), 1.0)


def relative_range(process: Process, levels: Float[Tensor, " n"]) -> tuple[float, float]:
    """Return the highest and the lowest sigma / std(z)."""
    relative = relative_sigma(process.at(levels.double()), process.second_moment)
    return relative.max().item(), relative.min().item()


def range_text(process: Process, levels: Float[Tensor, " n"]) -> str:
    """Return the range as a text, noisiest first."""
    highest, lowest = relative_range(process, levels)
    return f"sigma / std(z) from {highest:.3g} down to {lowest:.3g}"
