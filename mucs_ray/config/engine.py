"""How the work is spread: the recipe's section `engine`, and what is fixed.

Apart from the other sections, so that Ray's helper processes need not import torch.
"""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Le

LEAST_IMAGES = 8
"""Of a batch, for one GPU, unless more workers are asked for: with fewer it would mostly wait for the others."""
SUM_SHARDS = 16
"""Shards of the training set whose sums are a part each: enough to share out, few enough to keep."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """How the work is spread. No finished work becomes stale by it: scores do not depend on it, trained weights only
    through rounding and, with dropout, through which worker drew what.
    """

    train_workers: Annotated[int, Ge(0)] = 0
    """Workers of Ray Train; 0 = one a GPU, or on a machine without GPUs one a CPU, at most 2."""
    trainings: Annotated[int, Ge(0)] = 0
    """Trainings side by side at most; 0 = as many as there is room for."""
    actors: tuple[Annotated[int, Ge(0)], Annotated[int, Ge(0)]] = (0, 0)
    """Smallest and largest pool of scorers. 0 = all that the cluster has room for, now or once its autoscaler has
    brought it; and no bound: nodes that join get scorers too."""
    stages_per_pass: Annotated[int, Ge(0)] = 0
    """Stages that share a pass over the training set at most; 0 = all that can. Fewer need less memory: the models of
    all of them are in every scorer."""
    max_failures: Annotated[int, Ge(0)] = 3
    """Restarts of a training after a lost worker or a hang; a machine that is taken away does not count."""
    gpu_share: Annotated[float, Gt(0), Le(1)] = 1.0
    """GPU of one worker outside training, e.g. 0.5 for two workers on one GPU."""
    cuda_graphs: bool = True
    """Capture forwards whose shape comes again, so that a GPU need not wait for Python; changes no score."""
    timeout: Annotated[float, Ge(10)] = 900.0
    """Seconds without a sign of life (a forward pass, or the end of a unit) after which a worker is ended, and what it
    did tried again elsewhere."""
