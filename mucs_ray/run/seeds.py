"""Run directories of several seeds: how they are called, and which there are; without what a report takes.

<run>/experiment.json   which seeds
<run>/seed-1/ ...       complete run directories
"""

from collections.abc import Sequence

from rich.console import Console

from mucs_ray import storage
from mucs_ray.errors import InputError
from mucs_ray.pipeline.graph import Pipeline, reopen
from mucs_ray.store.run import read_json_or_none

EXPERIMENT = "experiment.json"
MOST_SEEDS = 1000


def folder(seed: int) -> str:
    """Of one seed's run."""
    return f"seed-{seed}"


def parse_seeds(text: str) -> list[int]:
    """ "1..3" and "1,2,5" as numbers. InputError for anything else."""
    seeds: list[int] = []
    for part in text.split(","):
        first, dots, last = part.partition("..")
        try:
            some = range(int(first), int(last if dots else first) + 1)
        except ValueError:
            raise InputError(f"--seeds {text!r}: expected numbers, e.g. 1..6 or 1,2,5") from None
        seeds += some[: MOST_SEEDS + 1]
    if not seeds or len(set(seeds)) < len(seeds) or len(seeds) > MOST_SEEDS or min(seeds) < 0:
        raise InputError(f"--seeds {text!r}: expected different numbers from 0 up, e.g. 1..6 or 1,2,5")
    return seeds


def is_experiment(run_url: str) -> bool:
    """Whether a directory holds the runs of several seeds."""
    return storage.exists(storage.join(storage.absolute(run_url), EXPERIMENT))


def check_owner(run_url: str, *, several: bool) -> None:
    """InputError if a directory is that of one seed and should be of several, or the other way round."""
    if several and storage.exists(storage.join(storage.absolute(run_url), "recipe.json")):
        raise InputError(f"{run_url} holds a run of one seed; give --seeds another --run")
    if not several and is_experiment(run_url):
        raise InputError(f"{run_url} holds the runs of several seeds; give one of them, or another --run")


def reopen_seeds(run_url: str, *, console: Console) -> list[Pipeline]:
    """The runs of the seeds that have begun, as their directory describes them."""
    run_url = storage.absolute(run_url)
    described = read_json_or_none(storage.join(run_url, EXPERIMENT)) or {"seeds": []}
    begun: Sequence[int] = [
        seed for seed in described["seeds"] if storage.exists(storage.join(run_url, folder(seed), "recipe.json"))
    ]
    if not begun:
        raise InputError(f"no run of {run_url} has begun; run `mucs-ray run` with its --seeds again")
    return [reopen(storage.join(run_url, folder(seed)), console=console) for seed in begun]
