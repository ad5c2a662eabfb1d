"""The similarity metrics by name, and which of them this machine can compute; this module does not import torch.

`mucs_ray.evaluation.similarity` computes them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mucs_ray.encoders.weights import (
    ALEXNET_WEIGHTS,
    CLIP_WEIGHTS,
    DINO_WEIGHTS,
    SQUEEZENET_WEIGHTS,
    SSCD_WEIGHTS,
    VGG_WEIGHTS,
    Weights,
    find_weights,
    fingerprint,
    weights_folder,
)
from mucs_ray.errors import InputError, MachineError

if TYPE_CHECKING:
    import torch

    from mucs_ray.evaluation.similarity import Similarity

SSIM_WINDOW_PX = 11
SSIM_LEAST_PX = SSIM_WINDOW_PX + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One row of the registry."""

    name: str
    label: str
    in_paper: bool = False
    """This is True for a metric that counts in the paper's mean of SSIM, SSCD, LPIPS and CLIP."""
    weights: Weights | None = None
    """The weights that the metric needs on the machine."""


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(name="ssim", label="SSIM", in_paper=True),
        Metric(name="sscd", label="SSCD", in_paper=True, weights=SSCD_WEIGHTS),
        Metric(name="lpips", label="1 - LPIPS (VGG)", in_paper=True, weights=VGG_WEIGHTS),
        Metric(name="clip", label="CLIP", in_paper=True, weights=CLIP_WEIGHTS),
        Metric(name="dino", label="DINO", weights=DINO_WEIGHTS),
        Metric(name="mse", label="-MSE"),
        Metric(name="lpips-alex", label="1 - LPIPS (AlexNet)", weights=ALEXNET_WEIGHTS),
        Metric(name="lpips-squeeze", label="1 - LPIPS (SqueezeNet)", weights=SQUEEZENET_WEIGHTS),
    )
}
"""The metrics by name, in the order of the reports."""
DEFAULT = ("ssim", "sscd", "lpips", "clip", "dino", "mse")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadyMetric:
    """A metric whose weights this machine has. It is small and picklable, so that it can go to a worker."""

    name: str
    path: str | None
    """The path of its file of weights; None for a metric without weights."""
    digest: str
    """The name and size of the file, which change when it is replaced; "" without weights."""

    def checked_path(self) -> str:
        """Return the path of its file of weights, "" without weights.

        MachineError if the file is not on this machine, InputError if it has changed.
        """
        if self.path is None:
            return ""
        if not Path(self.path).is_file():
            raise MachineError(f"{self.name}: its weights {self.path} are not on this machine")
        if (digest := fingerprint(self.path)) != self.digest:
            raise InputError(f"{self.path} has changed: it was {self.digest}, it is {digest} (name:bytes)")
        return self.path

    def load(self, device: "torch.device") -> "Similarity":
        """Return the similarity of pairs of images, computed on `device`; the results are where the images are.

        The file is read now. InputError if it is broken, of another architecture, or not the one that was looked up.
        """
        from mucs_ray.evaluation.similarity import load_similarity  # imports torch, which looking a metric up does not

        return load_similarity(self.name, self.checked_path(), device)


def ready_metrics(names: Sequence[str], weights_dir: str | None) -> tuple[list[ReadyMetric], dict[str, str]]:
    """Return the requested metrics and, by name, one line on each metric that is left out.

    With no names these are the default metrics whose weights are on this machine. InputError for an unknown name;
    MachineError, which says where to put which file, for the missing weights of a named metric.
    """
    unknown = [name for name in names if name not in METRICS]
    if unknown:
        raise InputError(f"unknown metric {', '.join(unknown)}; choose from {', '.join(METRICS)}")
    weights_folder(weights_dir)
    ready, left_out = [], {}
    for name in dict.fromkeys(names or DEFAULT):
        try:
            ready.append(_ready(METRICS[name], weights_dir))
        except MachineError as error:
            if names:
                raise
            left_out[name] = str(error)
    return ready, left_out


def _ready(metric: Metric, weights_dir: str | None) -> ReadyMetric:
    if metric.weights is None:
        return ReadyMetric(name=metric.name, path=None, digest="")
    try:
        path = find_weights(metric.weights, weights_dir)
    except MachineError as error:
        raise MachineError(f"{metric.name}: {error}") from None
    return ReadyMetric(name=metric.name, path=path, digest=fingerprint(path))
