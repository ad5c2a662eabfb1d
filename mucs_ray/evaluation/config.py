"""The settings of the counterfactual test, whose defaults are the paper's (spec 11), and of the LDS."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt

Mode = Literal["union", "per-item", "matched"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveConfig:
    """The training images that a retraining leaves out; `rank.top` or `rank.top_percent` sets the size of the lists."""

    mode: Mode | Literal["both"] = "union"
    """union: one retraining leaves out the top-k of all items; per-item: each item has its own retraining, which leaves
    out its own top-k; matched: images are taken from the ranked lists in turn until the union has `size` images, so
    that equally many are removed for every method; both: matched, and union beside it, each with its own retraining.
    """
    size: Annotated[int, Ge(0)] = 0
    """The number of images that "matched" removes; 0 = the mean size of a union of random lists of k."""

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes in which every method is tested, the one of the headline first."""
        return ("matched", "union") if self.mode == "both" else (self.mode,)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateConfig:
    """How regenerated images are compared with the original ones (spec 11.1)."""

    metrics: tuple[str, ...] = ()
    """The names of the similarities. None given: ssim, sscd, lpips, clip, dino and mse, except those whose weights are
    absent.
    """
    unrelated: Annotated[int, Ge(0)] = 10
    """The number of following targets with which each target is compared for the reference level."""
    noises: Annotated[int, Ge(1)] = 500
    """The noises at training levels on which the loss of a picture of the user's is measured, before and after."""
    fresh: Annotated[int, Ge(0)] = 0
    """Images that are generated from the condition of each picture of the user's, before and after, to be compared in
    its place; 0 = none.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class LdsConfig:
    """The subsets on which models are trained for the linear datamodeling score (LDS)."""

    subsets: Annotated[int, Ge(4)] = 64
    """The number of subsets, of which every second one is made of whole blocks. More can be added later."""
    share: Annotated[float, Gt(0), Lt(1)] = 0.5
    """The share of the training images in each subset."""
    blocks: Annotated[int, Ge(2)] = 80
    """The number of groups of training images of one class that look alike."""
    repeats: Annotated[int, Ge(0)] = 0
    """The number of subsets on which a second model is trained, with another seed, to see what any method can reach."""
    versus: str = ""
    """The method with which the others are compared; "" = the best one."""
    keep_weights: bool = False
    """Whether the weights of these models stay after their outputs are stored, for outputs of further items."""

    def subset_size(self, num_images: int) -> int:
        """Return the number of images in every subset."""
        return round(self.share * num_images)
