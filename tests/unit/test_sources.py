"""The sources emoji, cifar10, artbench10 and parquet, and the cutting they share."""

import io
import json
import os
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mucs_ray.data.prepare import prepare
from mucs_ray.data.sources import Choices, Listing, Reject, Source, parquet
from mucs_ray.data.sources.columns import tags_of
from mucs_ray.data.sources.cutting import held_out, tasks_of
from mucs_ray.data.sources.registry import load_source
from mucs_ray.data.table import Row
from mucs_ray.errors import InputError

DATA = Path(os.environ.get("MUCS_RAY_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
EMOJI_COUNTS = {
    "Activities": 85, "Animals & Nature": 153, "Component": 5, "Flags": 269, "Food & Drink": 135, "Objects": 262,
    "People & Body": 385, "Smileys & Emotion": 168, "Symbols": 223, "Travel & Places": 218,
}  # fmt: skip


def everything(source: Source, listing: Listing) -> list[Row | Reject]:
    """All that the tasks yield, read as a cluster would: from pickled tasks."""
    return [each for task in listing.tasks for each in source.read(pickle.loads(pickle.dumps(task)))]


def png(colour: int, width: int = 20, height: int = 16) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (colour, colour, colour)).save(buffer, "PNG")
    return buffer.getvalue()


def one_line(caught: pytest.ExceptionInfo[InputError]) -> str:
    assert "\n" not in str(caught.value)
    return str(caught.value)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 50), st.integers(0, 50), st.integers(1, 20))
def test_cutting_keeps_order_and_numbers_every_image_once(train: int, test: int, per_shard: int) -> None:
    tasks = tasks_of(range(train), range(100, 100 + test), per_shard=per_shard, extra="x")
    seen = []
    for task in tasks:
        first, entries, extra = task.payload
        assert 0 < len(entries) <= per_shard and extra == "x"
        seen += [(first + at, task.split, entry) for at, entry in enumerate(entries)]
    assert [idx for idx, _, _ in seen] == list(range(train + test))
    assert [entry for _, _, entry in seen] == [*range(train), *range(100, 100 + test)]
    for split in ("train", "test"):
        mine = [task for task in tasks if task.split == split]
        assert [task.number for task in mine] == list(range(len(mine)))


def test_a_tenth_is_held_out_and_always_the_same() -> None:
    names = [f"image-{number}.png" for number in range(20_000)]
    assert 0.09 < sum(map(held_out, names)) / len(names) < 0.11
    assert [name for name in names[:40] if held_out(name)] == ["image-0.png", "image-14.png", "image-19.png"]


def test_emoji_are_the_1903_pictures_in_ten_categories() -> None:
    source = load_source("emoji")
    listing = source.plan(None, None)
    found = everything(source, listing)
    rows = [each for each in found if isinstance(each, Row)]
    assert Counter(listing.classes[row.label] for row in rows if row.label is not None) == EMOJI_COUNTS
    assert len(rows) == 1903 and listing.condition_dim == 10 and "CC BY-SA 4.0" in listing.licence
    assert [each.idx for each in found] == list(range(len(found)))
    assert {row.image.shape for row in rows} == {(3, 16, 16)} and all(row.image.dtype == np.uint8 for row in rows)
    assert all(row.image.min() < 250 for row in rows), "a blank picture"
    by_text = {row.text[0].lower(): row for row in rows}
    assert listing.classes[by_text["grinning face"].label or 0] == "Smileys & Emotion"
    red, green, blue = by_text["grinning face"].image[:, 3:13, 3:13].reshape(3, -1).mean(axis=1)
    assert red > blue + 50 and green > blue + 50, "the face is yellow"


def test_emoji_hold_out_the_same_tenth_at_every_size() -> None:
    source = load_source("emoji")
    splits = []
    for size in (8, 24):
        tasks = source.plan(None, size).tasks
        splits.append([(row.idx, row.text) for t in tasks if t.split == "test" for row in source.read(t)
                       if isinstance(row, Row)])  # fmt: skip
    assert splits[0] == splits[1] and 130 < len(splits[0]) < 250


@pytest.fixture(scope="module")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both layouts of data_batch_1 and test_batch."""
    script = DATA / "unpack_cifar10.py"
    if not script.is_file():
        pytest.skip(f"no CIFAR-10 at {DATA} (set MUCS_RAY_TEST_DATA)")
    folder = tmp_path_factory.mktemp("cifar")
    for layout in ([], ["--python"]):
        subprocess.run([sys.executable, str(script), str(folder), "--batches", "1", *layout], check=True)
    return folder


def test_both_layouts_of_cifar10_are_the_same_set(cifar: Path, tmp_path: Path) -> None:
    made = [
        prepare("cifar10", where=str(cifar / f"cifar-10-batches-{layout}"), out=str(tmp_path / layout), size=None)
        for layout in ("bin", "py")
    ]
    first, other = (dataset.card for dataset in made)
    assert first.fingerprint == other.fingerprint
    assert (first.num_images("train"), first.num_images("test"), first.condition_dim) == (10_000, 10_000, 10)
    assert first.classes[:3] == other.classes[:3] == ("airplane", "automobile", "bird")
    record = (cifar / "cifar-10-batches-bin" / "data_batch_1.bin").read_bytes()[5 * 3073 : 6 * 3073]
    row = made[0].find({5}, "train")[5]
    assert row.label == record[0] and row.text == (first.classes[record[0]],)
    assert row.image.tobytes() == record[1:]


def test_cifar10_is_found_inside_the_archives_folder(cifar: Path) -> None:
    source = load_source("cifar10")
    listing = source.plan(str(cifar), None)
    assert [task.split for task in listing.tasks] == ["train"] * 3 + ["test"] * 3
    first = next(iter(source.read(listing.tasks[3])))
    assert isinstance(first, Row) and first.idx == 10_000


@pytest.mark.parametrize("where", [None, "empty", "absent"])
def test_where_cifar10_is_not_it_says_what_is_expected(tmp_path: Path, where: str | None) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"data_batch_1\.bin .*batches\.meta\.txt.*batches\.meta") as caught:
        load_source("cifar10").plan(where and str(tmp_path / where), None)
    one_line(caught)


def test_cifar10_has_one_size(cifar: Path) -> None:
    with pytest.raises(InputError, match="64 px"):
        load_source("cifar10").plan(str(cifar), 64)


def fake_cifar(folder: Path, batch: bytes, *, pickled: bool) -> str:
    """A folder with good class names and this as its only batch."""
    names = [f"c{number}" for number in range(10)]
    if pickled:
        (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": [n.encode() for n in names]}, protocol=2))
        (folder / "data_batch_1").write_bytes(batch)
    else:
        (folder / "batches.meta.txt").write_text("\n".join(names))
        (folder / "data_batch_1.bin").write_bytes(batch)
    return str(folder)


@pytest.mark.parametrize("length", [0, 3073, 30_730_000 - 3073, 30_730_000 + 1])
def test_a_batch_of_another_length_is_refused(tmp_path: Path, length: int) -> None:
    source = load_source("cifar10")
    listing = source.plan(fake_cifar(tmp_path, bytes(length), pickled=False), None)
    with pytest.raises(InputError, match="30,730,000") as caught:
        everything(source, listing)
    one_line(caught)


@pytest.mark.parametrize("pickled", [False, True])
def test_a_label_that_is_no_class_is_refused(tmp_path: Path, pickled: bool) -> None:
    batch = bytearray(30_730_000)
    batch[3073 * 99] = 10
    pixels, labels = np.zeros((10_000, 3072), dtype=np.uint8), [0] * 9_999 + [-1]
    content = pickle.dumps({b"data": pixels, b"labels": labels}, protocol=2) if pickled else bytes(batch)
    source = load_source("cifar10")
    with pytest.raises(InputError, match="labels"):
        everything(source, source.plan(fake_cifar(tmp_path, content, pickled=pickled), None))


class Touch:
    """When unpickled, writes a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (open, (self.path, "w"))


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("name", ["batches.meta", "data_batch_1"])
def test_a_hostile_pickle_is_refused_and_does_nothing(tmp_path: Path, protocol: int, name: str) -> None:
    (tmp_path / "set").mkdir()
    where, canary = fake_cifar(tmp_path / "set", b"", pickled=True), tmp_path / "canary"
    hostile = pickle.dumps({b"data": Touch(str(canary)), b"label_names": []}, protocol=protocol)
    (tmp_path / "set" / name).write_bytes(hostile)
    source = load_source("cifar10")
    with pytest.raises(InputError, match="refused") as caught:
        everything(source, source.plan(where, None))
    one_line(caught)
    assert not canary.exists()
    pickle.loads(hostile)[b"data"].close()
    assert canary.exists(), "the pickle would have done harm"


OF_OBJECTS = pickle.dumps({b"data": np.zeros(3, dtype=object), b"labels": []}, protocol=2)
CALLS_SYSTEM = b"cos\nsystem\n(S'true'\ntR."


@pytest.mark.parametrize("content", [b"", b"\x80\x02", b"\x80\x02N.", b"garbage", CALLS_SYSTEM, OF_OBJECTS])
def test_a_broken_pickle_is_one_line(tmp_path: Path, content: bytes) -> None:
    source = load_source("cifar10")
    listing = source.plan(fake_cifar(tmp_path, content, pickled=True), None)
    with pytest.raises(InputError) as caught:
        everything(source, listing)
    one_line(caught)


HEADER = "name,artist,url,is_public_domain,length,width,label,split,cifar_index\n"


def art(folder: Path, rows: list[tuple[str, str, str]], header: str = HEADER) -> str:
    lines = [f'{name},"Some, One",http://x,True,20,16,{label},{split},0\n' for name, label, split in rows]
    (folder / "ArtBench-10.csv").write_text(header + "".join(lines))
    return str(folder)


def put(folder: Path, path: str, content: bytes) -> None:
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_bytes(content)


def test_artbench10_counts_what_is_there_and_numbers_classes_as_they_come(tmp_path: Path) -> None:
    order = [("z.png", "ukiyo_e", "test"), ("gone.png", "baroque", "train"), ("a.png", "surrealism", "train"),
             ("b.png", "baroque", "train"), ("c.png", "surrealism", "train")]  # fmt: skip
    where = art(tmp_path, order)
    put(tmp_path, "test/ukiyo_e/z.png", png(1))
    put(tmp_path, "train/surrealism/a.png", png(2, width=30, height=130))
    put(tmp_path, "train/baroque/b.png", png(3)[:-30])
    put(tmp_path, "train/surrealism/c.png", png(4))
    put(tmp_path, "train/baroque/more.png", png(5))
    source = load_source("artbench10")
    listing = source.plan(where, None)
    assert listing.classes == ("ukiyo_e", "baroque", "surrealism") and listing.size == 64 and listing.distributed
    assert [(each.reason, each.example) for each in listing.understood.passed_over] == [
        ("images of the CSV that are not there", "train/baroque/gone.png"),
        ("files that are not in the CSV", "train/baroque/more.png")]  # fmt: skip
    first, broken, third, last = everything(source, listing)
    assert isinstance(first, Row) and (first.idx, first.label, first.text) == (0, 2, ("surrealism",))
    assert first.image.shape == (3, 64 * 130 // 30, 64) and first.image[0, 0, 0] == 2
    assert isinstance(broken, Reject) and (broken.idx, broken.where) == (1, "train/baroque/b.png")
    assert isinstance(third, Row) and (third.idx, third.label) == (2, 2)
    assert isinstance(last, Row) and (last.idx, last.label) == (3, 0)


@pytest.mark.parametrize(
    "row", [("../../x.png", "a", "train"), ("/etc/x.png", "a", "train"), ("x.png", "..", "train"),
            ("x.png", "a/b", "train"), ("x.png", "a", "../train"), ("x.png", "a", "dev"), ("", "a", "train")],
)  # fmt: skip
def test_artbench10_refuses_names_that_lead_elsewhere(tmp_path: Path, row: tuple[str, str, str]) -> None:
    with pytest.raises(InputError, match="line 2") as caught:
        load_source("artbench10").plan(art(tmp_path, [row]), None)
    one_line(caught)


def test_artbench10_says_what_it_expects(tmp_path: Path) -> None:
    source = load_source("artbench10")
    for where in (None, str(tmp_path / "absent"), str(tmp_path)):
        with pytest.raises(InputError, match=r"\.csv") as caught:
            source.plan(where, None)
        one_line(caught)
    (tmp_path / "short.csv").write_text("name\nx.png\n")
    with pytest.raises(InputError, match="columns"):
        source.plan(str(tmp_path), None)
    (tmp_path / "short.csv").unlink()
    with pytest.raises(InputError, match="none of the training images"):
        source.plan(art(tmp_path, [("x.png", "a", "train")]), None)


def hub(path: Path, columns: dict[str, object], *, names: list[str] | None = None, row_group_size: int = 4) -> Path:
    table = pa.table(columns)
    if names is not None:
        facts = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(facts)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=row_group_size)
    return path


def images(colours: range) -> list[dict[str, object]]:
    return [{"bytes": png(colour), "path": f"{colour}.png"} for colour in colours]


def test_parquet_keeps_columns_to_make_groups_by(tmp_path: Path) -> None:
    columns = {"image": images(range(4)), "label": [0, 1, 2, 1], "artist": ["Ana", None, " Bo ", "Bo"]}
    file = hub(tmp_path / "train.parquet", columns, names=["x", "y", "z"])
    hub(tmp_path / "test.parquet", {**columns, "artist": ["Cy"] * 4}, names=["x", "y", "z"])
    source = load_source("parquet")
    listing = source.plan(str(tmp_path), None, Choices(group_column="artist"))  # type: ignore[call-arg]
    assert listing.tags == ("artist",)
    found = [row.tags for row in everything(source, listing) if isinstance(row, Row)]
    assert found == [{"artist": "Ana"}, {}, {"artist": "Bo"}, {"artist": "Bo"}, *[{"artist": "Cy"}] * 4]
    with pytest.raises(InputError, match="no column 'painter' for --group-column"):
        source.plan(str(file), None, Choices(group_column="painter"))  # type: ignore[call-arg]
    assert tags_of({"artist": 1}, [("artist", ("Ana", "Bo"))]) == {"artist": "Bo"}
    with pytest.raises(ValueError, match="artist is 2, expected a name or a whole number"):
        tags_of({"artist": 2}, [("artist", ("Ana", "Bo"))])


def test_parquet_with_its_own_test_split(tmp_path: Path) -> None:
    train = hub(tmp_path / "data/train-0.parquet", {"image": images(range(10)), "label": [0, 1] * 5}, names=["a", "b"])
    hub(tmp_path / "data/validation-0.parquet", {"image": images(range(50, 53)), "label": [1, -1, 0]}, names=["a", "b"])
    source = load_source("parquet")
    listing = source.plan(str(tmp_path), 8)
    assert (listing.condition, listing.classes, listing.size) == ("label", ("a", "b"), 8) and listing.distributed
    found = everything(source, listing)
    assert [each.idx for each in found] == list(range(13))
    rows = {each.idx: each for each in found if isinstance(each, Row)}
    assert [rows[idx].image[0, 0, 0] for idx in range(10)] == list(range(10))
    assert rows[1].label == 1 and rows[1].text == ("b",) and rows[1].image.shape == (3, 8, 10)
    assert rows[10].image[0, 0, 0] == 50 and 11 not in rows
    alone = source.plan(str(train), 8)
    assert len([each for each in everything(source, alone) if isinstance(each, Row)]) == 10


def test_parquet_without_a_test_split_holds_out_a_tenth_of_the_rows(tmp_path: Path) -> None:
    hub(tmp_path / "a.parquet", {"image": [png(n) for n in range(100)], "caption": [[f"{n}", "x"] for n in range(100)]})
    hub(tmp_path / "b.parquet", {"image": [png(n) for n in range(100, 200)], "caption": [["y"]] * 100})
    source = load_source("parquet")
    listing = source.plan(str(tmp_path), 4)
    assert (listing.condition, listing.condition_dim) == ("none", 0)
    by_split = {task.split: list(source.read(task)) for task in listing.tasks}
    train, test = by_split["train"], by_split["test"]
    expected = [n for n in range(200) if held_out(f"{'a' if n < 100 else 'b'}.parquet:{n % 100}")]
    assert [int(row.image[0, 0, 0]) for row in test if isinstance(row, Row)] == expected
    assert [each.idx for each in [*train, *test]] == list(range(200))
    first = train[0]
    assert isinstance(first, Row) and first.label is None and first.text == (str(first.image[0, 0, 0]), "x")


def test_parquet_with_string_labels_and_bad_rows(tmp_path: Path) -> None:
    bad = [png(1), None, b"rubbish", png(4)]
    hub(tmp_path / "a.parquet", {"image": bad, "label": ["cat", "ant", "ant", None], "text": ["t", "u", "v", None]})
    source = load_source("parquet")
    listing = source.plan(f"file://{tmp_path}/a.parquet", None)
    assert listing.classes == ("ant", "cat")
    found = sorted(everything(source, listing), key=lambda each: each.idx)
    assert [isinstance(each, Row) for each in found].count(True) == 1
    row = next(each for each in found if isinstance(each, Row))
    assert row.label == 1 and row.text == ("t",) and row.image.shape == (3, 64, 80)


def test_parquet_cuts_by_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mucs_ray.data.sources.parquet.PER_SHARD", 10)
    hub(tmp_path / "a.parquet", {"image": [png(n) for n in range(25)]})
    hub(tmp_path / "test.parquet", {"image": [png(n) for n in range(5)]})
    source = load_source("parquet")
    listing = source.plan(str(tmp_path), 4)
    counts = [(task.split, task.number, len(list(source.read(task)))) for task in listing.tasks]
    assert counts == [("train", 0, 8), ("train", 1, 8), ("train", 2, 9), ("test", 0, 5)]


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"jpg2": ["x"]}, "jpg2.*--image-column"),
        ({"image": ["a string"]}, "image"),
        ({"image": [b""], "label": [0.5]}, "label"),
    ],
)
def test_parquet_of_other_columns_is_one_line(tmp_path: Path, columns: dict[str, object], told: str) -> None:
    hub(tmp_path / "a.parquet", columns)
    with pytest.raises(InputError, match=told) as caught:
        load_source("parquet").plan(str(tmp_path), None)
    one_line(caught)


def test_parquet_that_is_not_there_or_is_not_parquet_is_one_line(tmp_path: Path) -> None:
    source = load_source("parquet")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.parquet").write_bytes(b"rubbish" * 9)
    hub(tmp_path / "only/test.parquet", {"image": [png(1)]})
    for where in (None, str(tmp_path / "absent"), str(tmp_path / "bad"), str(tmp_path / "only")):
        with pytest.raises(InputError) as caught:
            source.plan(where, None)
        one_line(caught)


def test_parquet_in_folders_of_splits(tmp_path: Path) -> None:
    hub(tmp_path / "default/train/0000.parquet", {"img": images(range(4)), "fine_label": [3, 1, 1, 3]})
    hub(tmp_path / "default/validation/0000.parquet", {"img": images(range(4, 6)), "fine_label": [3, 1]})
    hub(tmp_path / "default/test/0000.parquet", {"img": images(range(6, 8)), "fine_label": [-1, -1]})
    source = load_source("parquet")
    listing = source.plan(str(tmp_path), 4)
    assert listing.classes == ("1", "3") and [task.split for task in listing.tasks] == ["train", "test"]
    rows = [each for each in everything(source, listing) if isinstance(each, Row)]
    assert [(row.idx, int(row.image[0, 0, 0])) for row in rows] == [(n, n) for n in range(6)]
    assert rows[4].name == "default/validation/0000.parquet:0:4.png"
    assert [(each.reason, each.count) for each in listing.understood.passed_over] == [
        ("held-out rows whose labels are all hidden", 2)]  # fmt: skip


def test_parquet_of_several_configurations_is_refused(tmp_path: Path) -> None:
    for name in ("de", "en"):
        hub(tmp_path / name / "train/0000.parquet", {"image": images(range(2))})
    with pytest.raises(InputError, match="several data sets: de/, en/") as caught:
        load_source("parquet").plan(str(tmp_path), 4)
    one_line(caught)


def test_parquet_columns_are_recognised_or_named(tmp_path: Path) -> None:
    where = str(hub(tmp_path / "a.parquet", {"scan": images(range(8)), "says": ["x"] * 8, "kind": ["cat ", "cat"] * 4}))
    listing = parquet.plan(where, 4)
    assert (listing.condition, listing.understood.notes) == ("none", ("columns that are not read: says, kind",))
    listing = parquet.plan(where, 4, Choices(text_column="says", label_column="kind"))
    rows = [each for task in listing.tasks for each in parquet.read(task) if isinstance(each, Row)]
    assert (listing.classes, {row.text for row in rows}, len(rows)) == (("cat",), {("x",)}, 8)
    for choices, told in [
        (Choices(image_column="says"), "column 'says' is string; .*scan"),
        (Choices(text_column="scan"), "column 'scan' is struct.*expected strings"),
        (Choices(label_column="gone"), "no column 'gone' for --label-column; its columns: scan, says, kind"),
    ]:
        with pytest.raises(InputError, match=told) as caught:
            parquet.plan(where, 4, choices)
        one_line(caught)


@pytest.mark.parametrize("values", [[[1, 2]] * 4, [0.5] * 4, [{"a": 1}] * 4])
def test_parquet_labels_that_are_none_name_the_way_without(tmp_path: Path, values: list[object]) -> None:
    where = str(hub(tmp_path / "a.parquet", {"image": images(range(4)), "labels": values}))
    with pytest.raises(InputError, match=r"'labels'.*--label-column names another column, or none") as caught:
        parquet.plan(where, 4)
    one_line(caught)
    assert parquet.plan(where, 4, Choices(label_column="none")).condition == "none"


def test_links_among_parquet_files_are_read_inside_a_hub_cache_and_else_only_when_asked(tmp_path: Path) -> None:
    outside = hub(tmp_path / "outside.parquet", {"image": images(range(20))})
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.parquet").symlink_to(outside)
    (tmp_path / "set" / "README.md").write_text("")
    with pytest.raises(InputError, match=r"a.parquet is a link that leads out .* --follow-links") as caught:
        parquet.plan(str(tmp_path / "set"), 4)
    one_line(caught)
    listing = parquet.plan(str(tmp_path / "set"), 4, Choices(follow_links=True))
    assert [(each.reason, each.count) for each in listing.understood.passed_over] == [("files ending in .md", 1)]
    blob = hub(tmp_path / "datasets--a--b/blobs/0a1b", {"image": images(range(20))})
    snapshot = tmp_path / "datasets--a--b/snapshots/r/data"
    snapshot.mkdir(parents=True)
    (snapshot / "train-0.parquet").symlink_to(Path("../../../blobs") / blob.name)
    assert parquet.plan(str(snapshot.parent), 4).understood.splits["train"] == "data/train-0.parquet"
