"""The copy of a split on a node: the table's own batches for any rows, made anew if it is torn, never misread."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mucs_ray import storage
from mucs_ray.data import local
from mucs_ray.data.local import LocalImages, cache_folder
from mucs_ray.data.table import Card, Dataset, Row, Shard, schema, to_parquet, to_table
from mucs_ray.diffusion.batch import Batch
from tiny import rows, tiny_dataset

COUNT = 23


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MUCS_RAY_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def made(url: Path, condition: str) -> Dataset:
    """Images of several widths and heights, whose conditions are none, labels, or one to three captions."""
    rng, kept = np.random.default_rng(5), []
    for number in range(COUNT):
        shape = (3, 8 + number % 3, 8) if number % 2 else (3, 8, 8 + number % 5)
        captions = rng.standard_normal((1 + number % 3, 4)).astype(np.float32) if condition == "embedding" else None
        image = rng.integers(0, 256, shape, dtype=np.uint8)
        kept.append(Row(idx=100 + 3 * number, image=image, label=number % 4, condition=captions))
    dim = {"none": 0, "label": 4, "embedding": 4}[condition]
    content = to_parquet(to_table(kept, schema(dim, embedding=condition == "embedding")), 5)
    digest = storage.publish(f"{url}/train/part-00000.parquet", content)
    shard = Shard(path="train/part-00000.parquet", split="train", row_groups=(5, 5, 5, 5, 3), sha256=digest)
    card = Card(name="made", source="tests", licence="none", size=8, condition=condition, condition_dim=dim,
                shards=(shard,))  # fmt: skip
    storage.publish_json(f"{url}/card.json", card.to_json())
    return Dataset.open(str(url))


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> list[Dataset]:
    return [made(tmp_path_factory.mktemp(condition), condition) for condition in ("none", "label", "embedding")]


def same(first: Batch, second: Batch) -> bool:
    """Equal bit for bit."""
    conditions = first.condition.keys() == second.condition.keys() and all(
        torch.equal(first.condition[name], second.condition[name]) for name in first.condition
    )
    return conditions and torch.equal(first.idx, second.idx) and torch.equal(first.z, second.z)


@settings(max_examples=30, deadline=None)
@given(order=st.lists(st.integers(0, COUNT - 1), min_size=1, max_size=12), which=st.integers(0, 2))
def test_any_rows_of_the_copy_are_those_of_the_table(datasets: list[Dataset], order: list[int], which: int):
    dataset = datasets[which]
    table = pa.concat_tables(dataset.stream("train"))
    images, chosen = LocalImages(dataset, "train"), np.asarray(order)
    assert same(images.batch(chosen), dataset.batch(table)[torch.from_numpy(chosen)])


@settings(max_examples=30, deadline=None)
@given(removed=st.frozensets(st.integers(99, 100 + 3 * COUNT), max_size=30))
def test_what_is_left_keeps_its_order(datasets: list[Dataset], removed: frozenset[int]):
    images = LocalImages(datasets[1], "train", removed=removed)
    expected = [100 + 3 * number for number in range(COUNT) if 100 + 3 * number not in removed]
    assert len(images) == len(expected)
    if expected:
        assert images.batch(np.arange(len(images))).idx.tolist() == expected


def test_a_stream_chooses_the_crop_and_the_caption(datasets: list[Dataset]):
    """Of each image, by the first, second and third row of numbers: down, to the right, and which caption."""

    class Chosen(np.random.Generator):
        def random(self, shape: tuple[int, int]) -> np.ndarray:
            assert shape == (3, 2)
            return np.array([[0.0, 0.99], [0.99, 0.0], [0.99, 0.4]])

    dataset = datasets[2]
    table = pa.concat_tables(dataset.stream("train"))
    pictures = [row.image for row in dataset.find({100 + 3 * 4, 100 + 3 * 5}, "train").values()]
    assert [picture.shape for picture in pictures] == [(3, 8, 12), (3, 10, 8)]
    batch = LocalImages(dataset, "train").batch(np.array([4, 5]), Chosen(np.random.PCG64()))
    expected = [pictures[0][:, :, 4:], pictures[1][:, 2:, :]]  # the last of 5 places to the right, of 3 down
    assert torch.equal(batch.z, torch.from_numpy(np.stack(expected)).float() / 127.5 - 1)
    captions = table["condition"].to_pylist()
    assert [len(captions[number]) for number in (4, 5)] == [2, 3]
    assert batch.condition["condition"].tolist() == [captions[4][1], captions[5][1]]


def copy_of(dataset: Dataset) -> Path:
    """The file of its training split."""
    return cache_folder() / dataset.card.fingerprint[:32] / "train.arrow"


def other_columns(path: Path) -> None:
    """A whole Arrow file with as many rows, such as another version could have left."""
    columns = pa.schema([("idx", pa.int64())])
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, columns) as writer:
        writer.write_table(pa.table({"idx": range(COUNT)}, schema=columns))


def fewer_rows(path: Path) -> None:
    """A whole Arrow file that lacks the last unit."""
    file = pa.ipc.open_file(pa.memory_map(str(path)))
    units = [file.get_batch(number) for number in range(file.num_record_batches - 1)]
    part = path.with_name("part")
    with pa.OSFile(str(part), "wb") as out, pa.ipc.new_file(out, file.schema) as writer:
        writer.write_table(pa.Table.from_batches(units))
    part.replace(path)


BROKEN: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "all but the end": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "another version's": other_columns,
    "fewer rows": fewer_rows,
    "absent": Path.unlink,
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_torn_copy_is_made_anew(datasets: list[Dataset], how: str):
    dataset, copied = datasets[1], []
    whole = LocalImages(dataset, "train").batch(np.arange(COUNT))
    good = copy_of(dataset).read_bytes()
    BROKEN[how](copy_of(dataset))
    images = LocalImages(dataset, "train", on_unit=lambda: copied.append(1))
    assert len(copied) == 5 and same(images.batch(np.arange(COUNT)), whole)
    assert copy_of(dataset).read_bytes() == good and len(list(copy_of(dataset).parent.iterdir())) == 1
    LocalImages(dataset, "train", on_unit=lambda: pytest.fail("a whole copy was made anew"))


def test_a_copy_that_could_not_be_finished_leaves_nothing(tmp_path: Path):
    dataset = tiny_dataset(tmp_path)
    (tmp_path / "train" / "part-00001.parquet").write_bytes(b"rubbish")
    with pytest.raises(Exception, match="part-00001"):
        LocalImages(dataset, "train")
    assert list(copy_of(dataset).parent.iterdir()) == []


def test_copies_of_earlier_versions_are_left_alone(datasets: list[Dataset]):
    """They were folders of seven files, by the name of the split."""
    dataset = datasets[0]
    earlier = copy_of(dataset).with_name("train")
    earlier.mkdir(parents=True)
    (earlier / "pixels").write_bytes(b"of an earlier version")
    assert len(LocalImages(dataset, "train")) == COUNT
    assert [path.name for path in earlier.iterdir()] == ["pixels"]


def test_two_processes_may_make_it_at_once(datasets: list[Dataset], monkeypatch: pytest.MonkeyPatch):
    """Another one's copy takes its place while this one is written, and is in use."""
    dataset, write, others = datasets[2], local.write_copy, []
    copy_of(dataset).unlink(missing_ok=True)

    def write_twice(*arguments: object) -> None:
        write(*arguments)  # pyright: ignore[reportArgumentType]
        others.append(local.read_copy(copy_of(dataset), dataset, "train"))
        write(*arguments)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(local, "write_copy", write_twice)
    images = LocalImages(dataset, "train")
    mine, other = images.batch(np.arange(COUNT)), pa.Table.from_batches(others[0])
    assert same(dataset.batch(other), mine)


def test_nothing_but_idx_is_read_into_memory(tmp_path: Path):
    """Opening and reading a batch allocates far less than the images of the split have."""
    wide = [replace(row, image=np.repeat(row.image, 64, axis=2)) for row in rows(600, first_idx=0, seed=1)]
    columns = schema(3, embedding=False)
    digest = storage.publish(f"{tmp_path}/train/part.parquet", to_parquet(to_table(wide, columns), 100))
    shard = Shard(path="train/part.parquet", split="train", row_groups=(100,) * 6, sha256=digest)
    card = Card(name="wide", source="tests", licence="none", size=8, condition="label", condition_dim=3,
                shards=(shard,))  # fmt: skip
    dataset = Dataset(url=str(tmp_path), card=card)
    LocalImages(dataset, "train")
    pool = pa.default_memory_pool()
    before, images = pool.bytes_allocated(), LocalImages(dataset, "train")
    images.batch(np.arange(599, 0, -7))
    assert pool.bytes_allocated() - before < 2**16 < sum(row.image.nbytes for row in wide) / 10
    assert all(each.content.base is not None and not each.content.flags.owndata for each in images.images)
