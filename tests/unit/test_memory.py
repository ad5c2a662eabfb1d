"""Memory does not grow with the training set: streaming, batching and ranking hold one unit and k images."""

import tracemalloc

import numpy as np
import pyarrow as pa
import pytest

from mucs_ray.attribution.ranking import Ranking
from mucs_ray.data.table import Dataset
from tiny import SIZE, rows, write_dataset

ADDED_BYTES = 15 * 128 * 3 * SIZE * SIZE
"""Pixels of the images that the larger set has more than the smaller one."""


def peak_bytes(dataset: Dataset, *, keep: bool = False) -> int:
    """Largest sum of Arrow's and Python's (and NumPy's) memory while all units are read, batched and ranked."""
    pool = pa.default_memory_pool()
    start, peak, held = pool.bytes_allocated(), 0, []
    ranking = Ranking.empty(5, seed=0, name="memory")
    tracemalloc.start()
    for table in dataset.stream("train"):
        batch = dataset.batch(table)
        ranking = ranking.add(batch.idx.numpy(), batch.z.mean(dim=(1, 2, 3)).numpy())
        held.append((table, batch.z.numpy().copy()) if keep else None)
        peak = max(peak, pool.bytes_allocated() - start + tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert len(ranking.idx) == 5 and np.all(np.diff(ranking.score) <= 0)
    return peak


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> list[Dataset]:
    """The same units, once and sixteen times as many."""
    folder = tmp_path_factory.mktemp("sets")
    made = []
    for factor in (1, 16):
        train = rows(128 * factor, first_idx=0, seed=1)
        url = str(folder / str(factor))
        made.append(write_dataset(url, train, rows(4, first_idx=10_000, seed=2), rows_per_unit=64, rows_per_shard=256))
    peak_bytes(made[0])  # imports and caches are not what is measured
    return made


def test_memory_is_flat_in_the_number_of_images(sets: list[Dataset]):
    """What grows is the list of units: under a tenth of the bytes of the additional images."""
    small, large = (peak_bytes(dataset) for dataset in sets)
    assert large - small < 0.1 * ADDED_BYTES


def test_the_check_can_fail(sets: list[Dataset]):
    small, large = (peak_bytes(dataset, keep=True) for dataset in sets)
    assert large - small > ADDED_BYTES
