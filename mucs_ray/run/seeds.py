"""The run directories of several seeds: their names, and which of them exist. This module imports no report.

<run>/experiment.json   the seeds
<run>/seed-1/ ...       complete run directories
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console

from mucs_ray import storage
from mucs_ray.errors import InputError
from mucs_ray.pipeline.graph import Pipeline, reopen
from mucs_ray.pipeline.recipe_file import RECIPE_FILE
from mucs_ray.store.run import read_document

EXPERIMENT = "experiment.json"
MAX_SEEDS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedSeeds:
    """The content of experiment.json."""

    seeds: list[int]


def folder(seed: int) -> str:
    """Return the name of the run directory of one seed."""
    return f"seed-{seed}"


def parse_seeds(text: str) -> list[int]:
    """Parse "1..3" or "1,2,5" as numbers. InputError for anything else."""
    seeds: list[int] = []
    for part in text.split(","):
        first, dots, last = part.partition("..")
        try:
            numbers = range(int(first), int(last if dots else first) + 1)
        except ValueError:
            raise InputError(f"--seeds {text!r}: expected numbers, e.g. 1..6 or 1,2,5") from None
        seeds += numbers[: MAX_SEEDS + 1]
    if not seeds or len(set(seeds)) < len(seeds) or len(seeds) > MAX_SEEDS or min(seeds) < 0:
        raise InputError(f"--seeds {text!r}: expected different numbers from 0 up, e.g. 1..6 or 1,2,5")
    return seeds


def is_experiment(run_url: str) -> bool:
    """Return True if a directory holds the runs of several seeds."""
    return storage.exists(storage.join(storage.absolute(run_url), EXPERIMENT))


def check_owner(run_url: str, *, several: bool) -> None:
    """Raise InputError if a directory holds one run but should hold those of several seeds, or the other way round."""
    if several and storage.exists(storage.join(storage.absolute(run_url), RECIPE_FILE)):
        raise InputError(f"{run_url} holds a run of one seed; give --seeds another --run")
    if not several and is_experiment(run_url):
        raise InputError(f"{run_url} holds the runs of several seeds; give one of them, or another --run")


def recorded_seeds(run_url: str) -> list[int]:
    """Return the seeds in experiment.json; none if there is no such file."""
    experiment = read_document(storage.join(run_url, EXPERIMENT), RecordedSeeds)
    return experiment.seeds if experiment else []


def record_seeds(run_url: str, seeds: Sequence[int]) -> None:
    """Add seeds to experiment.json."""
    storage.publish_json(storage.join(run_url, EXPERIMENT), {"seeds": sorted({*recorded_seeds(run_url), *seeds})})


def reopen_seeds(run_url: str, *, console: Console) -> list[Pipeline]:
    """Open the runs of the seeds that have begun, as their directory describes them. InputError if none has begun."""
    run_url = storage.absolute(run_url)
    begun = [
        seed for seed in recorded_seeds(run_url) if storage.exists(storage.join(run_url, folder(seed), RECIPE_FILE))
    ]
    if not begun:
        raise InputError(f"no run of {run_url} has begun; run `mucs-ray run` with its --seeds again")
    return [reopen(storage.join(run_url, folder(seed)), console=console) for seed in begun]
