"""This module compares generated images: one Ray task for each metric loads its network once."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float

from mucs_ray.engine.models import best_device
from mucs_ray.engine.progress import Bar
from mucs_ray.engine.session import Cluster
from mucs_ray.engine.units import run_units
from mucs_ray.evaluation.metrics import ReadyMetric
from mucs_ray.models.adapters import adapter
from mucs_ray.models.spec import ModelSpec
from mucs_ray.spaces.codec import Codec
from mucs_ray.spaces.pictures import Pictures
from mucs_ray.store.items import load_item
from mucs_ray.store.run import Stage

Picture = tuple[Stage, int]
"""A picture is a stage that holds images, and the number of one of them."""


def images(pictures: Sequence[Picture], codec: Codec) -> Pictures:
    """Return generated images in [0, 1], clamped (spec 6, 11.1)."""
    return codec.decode(torch.stack([load_item(stage, number).z for stage, number in pictures]))


def measure(metric: ReadyMetric, pairs: Sequence[tuple[Picture, Picture]], model: ModelSpec) -> Float[np.ndarray, " n"]:
    """Return the similarity of each pair; higher means more similar."""
    device = best_device()
    similarity, codec = metric.load(device), adapter(model).codec(torch.device("cpu"))
    reference, other = (images(side, codec).to(device) for side in zip(*pairs, strict=True))
    return similarity(reference, other).cpu().numpy()


def compare(
    metrics: Sequence[ReadyMetric],
    pairs: Sequence[tuple[Picture, Picture]],
    model: ModelSpec,
    *,
    cluster: Cluster,
    bar: Bar,
) -> dict[str, np.ndarray]:
    """Return the similarity of each pair of images that `model` made, by the name of the metric; higher means more
    similar.
    """
    if not pairs:
        return {metric.name: np.zeros(0, np.float32) for metric in metrics}
    similarities: dict[str, np.ndarray] = {}
    units = {metric.name: (metric, pairs, model) for metric in metrics}
    for name, values in run_units(measure, units, cluster=cluster, bar=bar):
        similarities[name] = values
        bar.advance(1)
    return {metric.name: similarities[metric.name] for metric in metrics}
