"""What there is to say about a VP process on a table of steps, without torch, so that a recipe can say it."""

from dataclasses import dataclass
from typing import Literal

Schedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace", "trained"]
Prediction = Literal["epsilon", "v_prediction", "sample"]
Spacing = Literal["linspace", "leading", "trailing", "rho"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Betas:
    """The choice of a table; the defaults are DDPM's."""

    schedule: Schedule = "linear"
    steps: int = 1000
    first: float = 1e-4
    last: float = 0.02
    """The table's last beta; `first` and `last` are used by linear, scaled_linear and sigmoid only."""
    trained: tuple[float, ...] = ()
    """The table itself, when the schedule is "trained"."""
    zero_snr: bool = False
    """Whether the table is stretched until nothing of the image is left at its end."""
