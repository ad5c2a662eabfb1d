"""The settings of groups: how one is unlearned and scored. The defaults are those of GUDA-U (spec/backbones 4.3)."""

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

Unlearner = Literal[
    "zero", "retrack", "retrack-clipped", "noise", "esd", "ascent", "awss", "uniform", "style-removed", "matched",
    "retain-only",
]  # fmt: skip
"""What the images of the group are trained towards.

    zero             no noise at all, which is what GUDA's published code trains in effect
    retrack          the noise that leads to similar images of other groups, from a lowest noise level on
    retrack-clipped  the same with shifts of a bounded length, as GUDA's text has it: hardly any forgetting
    noise            other noise than was added
    esd              away from the class of the image, as a class-conditional model sees it
    ascent           a higher loss, up to a bound, as MUCS unlearns a single image
    awss             what the full model sees with the prompt or class of another group, drawn by how alike they are
    uniform          the same, with all other groups equally likely
    style-removed    what it sees without the group's part of the prompt, or without a class
    matched          what it sees in an image of another group with the same content
    retain-only      nothing: only the other images are trained on, as the control for all others
"""
ANCHORED: tuple[Unlearner, ...] = ("awss", "uniform", "style-removed", "matched")
"""Those of GUDA-C, for models with a condition: they keep the full model's answers to other images as well."""
ScoreKind = Literal["elbo", "unweighted", "skew"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupsConfig:
    """How each group is unlearned, and how the models with and without it are compared."""

    by: str = "label"
    """What makes groups: label, text, folder, or the URL of a CSV or Parquet file with the columns idx and group."""
    misplaced: Annotated[float, Ge(0), Lt(1)] = 0.0
    """The share of the smallest group's size that is moved from each group to wrong ones, to see what errors in the
    data would do."""
    golds: Annotated[int, Ge(0), Le(2)] = 1
    """The number of trainings without each group: 1 for the reference, 2 with another seed as well for the floor."""
    unlearners: tuple[Unlearner, ...] = ("zero", "retrack")
    updates: Annotated[int, Gt(0)] = 1170
    batch_size: Annotated[int, Gt(0)] = 128
    """The number of images of the group in an update, and of other images as well."""
    learning_rate: Literal["auto"] | Annotated[float, Gt(0)] = "auto"
    """The rate to which the updates rise. "auto": 2.34e-6, which GUDA's own reaches after 1170 updates; esd: 3e-5;
    awss, uniform, style-removed and matched: 2e-6.
    """
    warmup: Literal["auto"] | Annotated[int, Gt(0)] = "auto"
    """The number of updates in which the rate rises from 0. "auto": all of them; esd: 500; awss, uniform, style-removed
    and matched: 1, so that it is constant.
    """
    weight_decay: Literal["auto"] | Annotated[float, Ge(0)] = "auto"
    """"auto": 1e-4; esd: 0; awss, uniform, style-removed and matched: 0.01."""
    forget_weight: Literal["auto"] | Annotated[float, Ge(0)] = "auto"
    """lambda, the weight of the group's loss beside that of the others. "auto": 0.03; esd: 0.3; ascent: 0.2; awss,
    uniform, style-removed and matched: 0.5, which is GUDA-C's 2 for the other images.
    """
    retain: Literal["loss", "distil"] = "loss"
    """The other images are trained as in training, or to the answers of the full model."""
    neighbours: Annotated[int, Gt(0)] = 10
    """retrack: the number of nearest images of other groups."""
    lowest_sigma: Annotated[float, Gt(0)] = 0.1
    """retrack: the lowest noise sigma = s / alpha of the group's images. Without one, targets grow as 1 / sigma."""
    kl_cap: Annotated[float, Gt(0)] = 1.0
    """retrack-clipped: kappa; shifts are no longer than sqrt(2 kappa)."""
    guidance: float = 7.5
    """esd: how far the target is from the class."""
    template: str = "A depiction of {content}, artistic style featuring {group}"
    """The form of the prompts, for awss, uniform and style-removed on images with captions."""
    descriptors: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """awss, uniform: the words that describe each group in prompts; a group's name where there are none."""
    words: Annotated[int, Gt(0)] = 3
    """awss, uniform: the number of a group's descriptors in a prompt."""
    beta: Annotated[float, Ge(0)] = 2.0
    """awss: the factor of the cosine of groups in the logits of their probabilities."""
    eta: Annotated[float, Ge(0), Le(1)] = 0.3
    """awss: the share of the probability that is spread evenly."""
    content: tuple[str, ...] = ()
    """matched: the columns that say together what is in an image apart from its group, such as object and number."""
    dropout: bool = True
    """Unlearn with the network's dropout, as GUDA does."""
    flip: bool = True
    """Mirror every picture with probability 0.5; an image's neighbours are mirrored with it."""
    score: ScoreKind = "elbo"
    """The difference of evidence lower bounds, of training losses, or the normalised skew of those."""
    skip: Annotated[int, Gt(0)] = 10
    """On a table of T steps, the levels are skip, 2 skip, ... below T."""
    levels: Annotated[int, Gt(0)] = 128
    """The number of levels on other schedules."""
    noise_sets: Annotated[int, Gt(0)] = 2
    """The number of noises with which each score is computed; two or more tell how much it depends on the noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """The numbers that each unlearner has of its own."""

    learning_rate: float = 2.34e-6
    warmup: int | None = None
    """None: all updates."""
    weight_decay: float = 1e-4
    forget_weight: float = 0.03
    largest_norm: float | None = None
    """The norm to which gradients are cut."""


USUAL: dict[Unlearner, Rates] = {
    "esd": Rates(learning_rate=3e-5, warmup=500, weight_decay=0.0, forget_weight=0.3, largest_norm=1.0),
    "ascent": Rates(forget_weight=0.2),
    **dict.fromkeys(ANCHORED, Rates(learning_rate=2e-6, warmup=1, weight_decay=0.01, forget_weight=0.5)),
    "retain-only": Rates(forget_weight=0.0),
}
"""Those that differ from the usual ones."""


def rates(config: GroupsConfig, unlearner: Unlearner) -> Rates:
    """Return an unlearner's numbers: the config's, where it has any."""
    usual = USUAL.get(unlearner, Rates())
    given = {key: getattr(config, key) for key in ("learning_rate", "warmup", "weight_decay", "forget_weight")}
    if unlearner == "retain-only":
        del given["forget_weight"]
    return replace(usual, **{key: value for key, value in given.items() if value != "auto"})


def learning_rate(own: Rates, step: int, updates: int) -> float:
    """Return the rate of an update, which rises evenly to the last of the warm-up and then stays."""
    return own.learning_rate * min(1.0, (step + 1) / (own.warmup or updates))
