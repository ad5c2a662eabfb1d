"""The canonical form: rows to Parquet to batches, units, and what a foreign or broken shard does."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mucs_ray import storage
from mucs_ray.data.batch import crop
from mucs_ray.data.table import (
    Card,
    Dataset,
    Row,
    Shard,
    read_unit,
    schema,
    stored_images,
    to_parquet,
    to_table,
)
from mucs_ray.errors import InputError
from tiny import CLASSES, rows, tiny_dataset, write_dataset


def saved(url: Path, made: list[Row], *, condition: str, dim: int, size: int, classes: tuple[str, ...] = ()) -> Dataset:
    """A data set of one shard."""
    columns = schema(dim, embedding=condition == "embedding")
    digest = storage.publish(f"{url}/train/part-00000.parquet", to_parquet(to_table(made, columns), 2))
    groups = tuple(min(2, len(made) - at) for at in range(0, len(made), 2))
    shard = Shard(path="train/part-00000.parquet", split="train", row_groups=groups, sha256=digest)
    card = Card(
        name="made", source="tests", licence="none", size=size, condition=condition, condition_dim=dim,
        classes=classes, shards=(shard,),
    )  # fmt: skip
    storage.publish_json(f"{url}/card.json", card.to_json())
    return Dataset.open(str(url))


def test_a_batch_is_cropped_scaled_and_one_hot(tmp_path: Path) -> None:
    wide = np.zeros((3, 2, 5), dtype=np.uint8)
    wide[:, :, 1:3] = 255  # columns 1 and 2 are the middle of 5: (5 - 2) // 2 = 1
    tall = np.full((3, 4, 2), 255, dtype=np.uint8)
    tall[:, 1:3, :] = 0
    made = [Row(idx=3, image=wide, label=1), Row(idx=9, image=tall, label=2)]
    dataset = saved(tmp_path, made, condition="label", dim=3, size=2, classes=CLASSES)
    (table,) = dataset.stream("train")
    batch = dataset.batch(table)
    assert batch.idx.tolist() == [3, 9]
    assert batch.z.shape == (2, 3, 2, 2) and batch.z.dtype == torch.float32
    assert (batch.z[0] == 1).all() and (batch.z[1] == -1).all()
    assert batch.condition["condition"].tolist() == [[0, 1, 0], [0, 0, 1]]


def test_every_stored_value_lands_in_minus_one_to_one(tmp_path: Path) -> None:
    image = np.arange(256, dtype=np.uint8).reshape(1, 16, 16).repeat(3, axis=0)
    dataset = saved(tmp_path, [Row(idx=0, image=image)], condition="none", dim=0, size=16)
    batch = dataset.batch(next(dataset.stream("train")))
    assert batch.condition == {}
    expected = (torch.arange(256) / 255 - 0.5) / 0.5
    torch.testing.assert_close(batch.z[0, 0].flatten(), expected, atol=1e-6, rtol=0)


def test_the_condition_is_the_first_captions(tmp_path: Path) -> None:
    image = np.zeros((3, 2, 2), dtype=np.uint8)
    captions = np.array([[1, 2, 3], [4, 5, 6]], dtype=np.float32)
    made = [
        Row(idx=0, image=image, text=("one", "two"), condition=captions),
        Row(idx=1, image=image, text=("three",), condition=captions[1:]),
    ]
    dataset = saved(tmp_path, made, condition="embedding", dim=3, size=2)
    batch = dataset.batch(next(dataset.stream("train")))
    assert batch.condition["condition"].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert dataset.find({0, 1}, "train")[0].text == ("one", "two")


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 70), st.integers(1, 40), st.integers(1, 33))
def test_units_cover_all_rows_once(tmp_path_factory: pytest.TempPathFactory, count: int, shard: int, unit: int) -> None:
    train, test = rows(count, first_idx=0, seed=3), rows(3, first_idx=count, seed=4)
    url = str(tmp_path_factory.mktemp("set"))
    dataset = write_dataset(url, train, test, rows_per_shard=shard, rows_per_unit=unit)
    units = dataset.units("train")
    assert len({each.name for each in units}) == len(units)
    assert sum(each.rows for each in units) == dataset.card.num_images("train") == count
    seen = [idx for table in dataset.stream("train", ["idx"]) for idx in table["idx"].to_pylist()]
    assert seen == list(range(count))


def test_what_is_stored_comes_back(tmp_path: Path) -> None:
    dataset = tiny_dataset(tmp_path)
    made = {row.idx: row for row in rows(60, first_idx=0, seed=1)}
    found = dataset.find({0, 17, 59}, "train")
    assert sorted(found) == [0, 17, 59]
    for idx, row in found.items():
        np.testing.assert_array_equal(row.image, made[idx].image)
        assert (row.label, row.text) == (made[idx].label, made[idx].text)
    assert dataset.find({60}, "train") == {} and sorted(dataset.find({60}, "test")) == [60]


def test_equal_content_has_one_fingerprint(tmp_path: Path) -> None:
    first, again = tiny_dataset(tmp_path / "a"), tiny_dataset(tmp_path / "b")
    other = write_dataset(str(tmp_path / "c"), rows(60, first_idx=0, seed=9), rows(12, first_idx=60, seed=2))
    assert first.card.fingerprint == again.card.fingerprint != other.card.fingerprint


def test_an_image_smaller_than_the_set_is_refused() -> None:
    with pytest.raises(InputError, match="smaller"):
        crop(np.zeros((3, 4, 9), dtype=np.uint8), 5)


def test_bytes_that_do_not_match_the_size_are_refused() -> None:
    table = to_table([Row(idx=7, image=np.zeros((3, 2, 2), dtype=np.uint8))], schema(0, embedding=False))
    broken = table.set_column(2, "height", pa.array([5], pa.int32()))
    with pytest.raises(InputError, match="idx=7"):
        list(stored_images(broken))


def test_a_row_without_its_label_or_caption_is_named(tmp_path: Path) -> None:
    image, caption = np.zeros((3, 2, 2), dtype=np.uint8), np.ones((1, 3), dtype=np.float32)
    labels = saved(tmp_path / "a", [Row(idx=4, image=image, label=0), Row(idx=7, image=image)],
                   condition="label", dim=3, size=2)  # fmt: skip
    with pytest.raises(InputError, match="idx=7 has no label"):
        labels.batch(next(labels.stream("train")))
    for absent in (None, caption[:0]):
        made = [Row(idx=4, image=image, condition=caption), Row(idx=7, image=image, condition=absent)]
        captions = saved(tmp_path / "b", made, condition="embedding", dim=3, size=2)
        with pytest.raises(InputError, match="idx=7 has no caption"):
            captions.batch(next(captions.stream("train")))


@pytest.mark.parametrize("content", [b"", b"PAR1", b"rubbish" * 50, b"\xff" * 64])
def test_a_corrupt_shard_is_one_line(tmp_path: Path, content: bytes) -> None:
    dataset = tiny_dataset(tmp_path)
    (tmp_path / "train" / "part-00000.parquet").write_bytes(content)
    with pytest.raises(InputError, match="part-00000") as caught:
        list(dataset.stream("train"))
    assert "\n" not in str(caught.value)


def test_half_a_shard_and_no_shard_are_one_line(tmp_path: Path) -> None:
    dataset = tiny_dataset(tmp_path)
    shard = tmp_path / "train" / "part-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-200])
    with pytest.raises(InputError, match="part-00001"):
        list(dataset.stream("train"))
    shard.unlink()
    with pytest.raises(InputError, match="absent"):
        list(dataset.stream("train"))


@pytest.mark.parametrize("content", [b"", b"[", b"{}", b'{"schema_version": 1}', b"\xff\xfe"])
def test_a_broken_card_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "card.json").write_bytes(content)
    with pytest.raises(InputError, match=r"card\.json") as caught:
        Dataset.open(str(tmp_path))
    assert "\n" not in str(caught.value)


class Hostile(pa.ExtensionType):
    """Does what an extension type of pickled objects would: runs code when a schema that names it is read."""

    used = 0

    def __init__(self) -> None:
        super().__init__(pa.binary(), "tests.hostile")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type: pa.DataType, serialized: bytes) -> "Hostile":
        cls.used += 1
        return cls()


def test_extension_types_in_a_foreign_shard_are_inert(tmp_path: Path) -> None:
    dataset = tiny_dataset(tmp_path)
    unit = dataset.units("train")[0]
    plain = pq.read_table(io.BytesIO(Path(unit.url).read_bytes()))
    mark = {"ARROW:extension:name": "tests.hostile", "ARROW:extension:metadata": "anything"}
    marked = [each.with_metadata(mark) if each.name == "image" else each for each in plain.schema]
    pq.write_table(plain.cast(pa.schema(marked)), unit.url, row_group_size=16)
    pa.register_extension_type(Hostile())
    try:
        pq.read_schema(unit.url)
        assert Hostile.used > 0, "the file would do harm if read without care"
        Hostile.used = 0
        table = read_unit(unit)
        assert Hostile.used == 0 and table.schema.field("image").type == pa.binary()
        assert dataset.batch(table).z.shape[0] == unit.rows
    finally:
        pa.unregister_extension_type("tests.hostile")


def test_tags_are_columns_of_text_and_have_names_of_their_own(tmp_path: Path) -> None:
    image = np.zeros((3, 2, 2), dtype=np.uint8)
    made = [Row(idx=0, image=image, tags={"artist": "Ana\udcff"}), Row(idx=1, image=image)]
    table = to_table(made, schema(0, embedding=False, named=True, tags=("artist", "year")))
    assert table.column_names[-3:] == ["name", "artist", "year"]
    assert table["artist"].to_pylist() == ["Ana\\xff", None] and table["year"].to_pylist() == [None, None]
    with_tags = Card(
        name="made", source="tests", licence="none", size=2, condition="none", condition_dim=0, shards=(), named=True,
        tags=("artist", "year"),
    )  # fmt: skip
    assert with_tags.columns.names == table.column_names
