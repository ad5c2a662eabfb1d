"""How the work is distributed: the recipe's section `engine`, and the values that are fixed.

This module stands apart from the other sections, so that Ray's helper processes need not import torch.
"""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Le

LEAST_IMAGES = 8
"""The smallest share of a batch for one GPU, unless more workers are asked for: with fewer images a GPU would mostly
wait for the others.
"""
SUM_SHARDS = 16
"""The shards of the training set whose sums are a part each: enough to share out, few enough to keep."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """How the work is distributed. A change makes no finished work stale: scores do not depend on these settings, and
    trained weights only through rounding and, with dropout, through the worker that drew the random numbers.
    """

    train_workers: Annotated[int, Ge(0)] = 0
    """The number of workers of Ray Train; 0 = one for each GPU or, without GPUs, one for each CPU, at most 2."""
    trainings: Annotated[int, Ge(0)] = 0
    """The largest number of trainings at the same time; 0 = as many as there is room for."""
    actors: tuple[Annotated[int, Ge(0)], Annotated[int, Ge(0)]] = (0, 0)
    """The smallest and the largest number of scorers. 0 = as many as the cluster has room for, now or after its
    autoscaler has grown it, and no upper bound: nodes that join later get scorers too.
    """
    stages_per_pass: Annotated[int, Ge(0)] = 0
    """The largest number of stages that share a pass over the training set; 0 = all that can. Fewer need less memory,
    because every scorer holds the models of all of them.
    """
    max_failures: Annotated[int, Ge(0)] = 3
    """The number of restarts of a training after a lost worker or a hang; a preempted machine does not count."""
    gpu_share: Annotated[float, Gt(0), Le(1)] = 1.0
    """The share of a GPU for one worker outside training, e.g. 0.5 for two workers on one GPU."""
    check_weights: bool = True
    """Whether weights from elsewhere are refused if, as they are read, they denoise the training images no better than
    a model that knows nothing of them."""
    cuda_graphs: bool = True
    """Whether recurring forwards are captured, so that a GPU need not wait for Python; this changes no score."""
    timeout: Annotated[float, Ge(10)] = 900.0
    """The seconds without a sign of life (a forward pass, or the end of a unit) after which a worker is killed and its
    work is tried again elsewhere.
    """
