"""Ray tasks encode the training images, unit by unit, and their unique captions once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mucs_ray import storage
from mucs_ray.data.encoded import to_part
from mucs_ray.data.table import Dataset, Unit, read_unit
from mucs_ray.engine.coordinator import Coordinator, new_coordinator
from mucs_ray.engine.models import best_device
from mucs_ray.engine.progress import Bar
from mucs_ray.engine.session import Cluster
from mucs_ray.engine.units import run_units
from mucs_ray.models.adapters import adapter
from mucs_ray.models.spec import ModelSpec
from mucs_ray.store import checkpoint
from mucs_ray.store.parts import unit_part
from mucs_ray.store.run import Stage

CAPTIONS_TASK = "captions"
MOST_TABLE_BYTES = 2_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeJob:
    """A job holds everything that a worker needs; it is small and picklable."""

    dataset: Dataset
    model: ModelSpec
    stage: Stage


def encode_unit(job: EncodeJob, unit: Unit) -> str:
    """Encode a unit's images, publish the part, and return its sha256."""
    batch = job.dataset.batch(read_unit(unit), adapter(job.model).codec(best_device()))
    content = to_part(batch.idx.numpy(), batch.z.flatten(1).cpu().numpy())
    return storage.publish(job.stage.url(unit_part(job.stage, unit)), content)


def encode_captions(job: EncodeJob, file: str) -> str:
    """Encode every caption of the training set once, publish the table, and return its sha256.

    Where the table would be too large to be in the memory of every worker, captions are encoded when they are needed.
    """
    codec = adapter(job.model).codec(best_device())
    captions, without = unique_captions(job.dataset), codec.tensors_of([])
    bytes_each = max((tensor.nbytes for tensor in without.values()), default=0)
    tensors = codec.tensors_of(captions) if bytes_each * len(captions) <= MOST_TABLE_BYTES else without
    return checkpoint.save(job.stage.url(file), tensors, {})


def unique_captions(dataset: Dataset) -> list[str]:
    """Return the first caption of each training image, without repetitions, in order."""
    rows = (row for table in dataset.stream("train", ["text"]) for row in table["text"].to_pylist())
    return sorted({row[0] for row in rows if row})


def encode_task(job: EncodeJob, units: Sequence[Unit], captions: str, coordinator: Coordinator) -> dict[str, str]:
    """Encode units one by one in a worker, or the captions if their file is named; return the sha256 by file."""
    if captions:
        return {captions: encode_captions(job, captions)}
    digests = {}
    for unit in units:
        digests[unit_part(job.stage, unit)] = encode_unit(job, unit)
        coordinator.post(unit.name, unit.rows)
    return digests


def encode_all(job: EncodeJob, units: Sequence[Unit], captions: str, *, cluster: Cluster, bar: Bar) -> dict[str, str]:
    """Encode units, and the captions if their file is named, over the cluster; return the sha256 by file."""
    coordinator, done_before = new_coordinator(), bar.done
    tasks = {name: (job, share, "", coordinator) for name, share in shares(units, cluster.num_workers)}
    if captions:
        tasks[CAPTIONS_TASK] = (job, (), captions, coordinator)

    def show_progress() -> None:
        bar.set(done_before + sum(coordinator.read().values()))

    digests: dict[str, str] = {}
    for _, new in run_units(
        encode_task, tasks, cluster=cluster, bar=bar, coordinator=coordinator, on_wait=show_progress
    ):
        digests |= new
    bar.set(bar.total)
    return digests


def shares(units: Sequence[Unit], num_workers: int) -> Iterator[tuple[str, Sequence[Unit]]]:
    """Yield a share of the units for each worker, with a name such as "train-part-00000-0000 and 4 more"."""
    num_shares = min(max(1, num_workers), len(units))
    for first in range(num_shares):
        share = units[first::num_shares]
        yield f"{share[0].name}{f' and {len(share) - 1} more' if len(share) > 1 else ''}", share
