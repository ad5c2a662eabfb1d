"""Folders of images by ImageFolder's conventions; nothing outside the folder is read."""

import json
from collections.abc import Sequence
from pathlib import Path

import fsspec
import huggingface_hub.constants
import numpy as np
import pytest
from PIL import Image

from mucs_ray.data import caption_embedding
from mucs_ray.data.prepare import prepare
from mucs_ray.data.sources import Choices, Listing, Reject, folder
from mucs_ray.data.sources.cutting import held_out
from mucs_ray.data.table import Row
from mucs_ray.errors import InputError, MachineError


@pytest.fixture
def weights(monkeypatch):
    """As if the CLIP weights were here; a caption's embedding is its length in each place."""
    monkeypatch.setattr(caption_embedding, "find_weights", lambda: "somewhere.safetensors")
    monkeypatch.setattr(caption_embedding, "embed", quick)


def quick(captions: Sequence[str]) -> np.ndarray:
    return np.repeat(np.array([len(caption) for caption in captions], np.float32)[:, None], 768, axis=1)


def images(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (90, 70), "red").save(root / name)
    return root


def jsonl(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def paths(listing: Listing, split: str) -> dict[int, str]:
    found = {}
    for task in listing.tasks:
        if task.split == split:
            first, entries, _ = task.payload
            found |= {first + at: entry.path for at, entry in enumerate(entries)}
    return found


def rows(listing: Listing) -> list[Row | Reject]:
    return [row for task in listing.tasks for row in folder.read(task)]


def one_line(where: Path | str | None) -> str:
    with pytest.raises(InputError) as told:
        folder.plan(None if where is None else str(where), None)
    assert "\n" not in str(told.value)
    return str(told.value)


def test_class_folders_are_labels(tmp_path):
    names = [f"{kind}/deep/{number}.JPG" for kind in ("zebra", "ant") for number in range(20)]
    images(tmp_path, *names)
    (tmp_path / "ant" / "notes.txt").write_text("no image")
    images(tmp_path, ".hidden/x.jpg", "ant/._x.jpg")
    listing = folder.plan(str(tmp_path), None)
    assert (listing.condition, listing.classes, listing.condition_dim) == ("label", ("ant", "zebra"), 2)
    assert (listing.size, listing.distributed) == (64, False)
    train = [name for name in sorted(names) if not held_out(name)]
    test = [name for name in sorted(names) if held_out(name)]
    assert train and test
    assert paths(listing, "train") == dict(enumerate(train))
    assert paths(listing, "test") == dict(enumerate(test, start=len(train)))
    for row in rows(listing):
        assert isinstance(row, Row)
        assert row.image.shape == (3, 64, 82) and row.text == () and row.condition is None
        assert (
            listing.classes[row.label] == {**paths(listing, "train"), **paths(listing, "test")}[row.idx].split("/")[0]
        )


@pytest.mark.parametrize("held", ["test", "val", "validation"])
def test_splits_of_class_folders(held, tmp_path):
    images(tmp_path, "train/b/1.png", "train/a/2.png", f"{held}/c/3.png", f"{held}/a/0.png")
    listing = folder.plan(str(tmp_path), 32)
    assert listing.classes == ("a", "b", "c")
    assert paths(listing, "train") == {0: "train/a/2.png", 1: "train/b/1.png"}
    assert paths(listing, "test") == {2: f"{held}/a/0.png", 3: f"{held}/c/3.png"}


def test_val_beside_test_is_left_out(tmp_path):
    listing = folder.plan(str(images(tmp_path, "train/a/1.png", "test/a/2.png", "val/a/3.png")), None)
    assert {**paths(listing, "train"), **paths(listing, "test")} == {0: "train/a/1.png", 1: "test/a/2.png"}


def test_train_may_be_the_name_of_a_class(tmp_path):
    assert folder.plan(str(images(tmp_path, "train/1.png", "car/2.png")), None).classes == ("car", "train")


def test_flat_folder_has_no_condition(tmp_path):
    listing = folder.plan(str(images(tmp_path, "b.png", "a.webp", "c.bmp")), None)
    assert (listing.condition, listing.condition_dim, listing.classes) == ("none", 0, ())
    assert len(paths(listing, "train")) + len(paths(listing, "test")) == 3 and paths(listing, "test")
    split = folder.plan(str(images(tmp_path / "s", "train/a.png", "test/b.png")), None)
    assert (split.condition, paths(split, "train"), paths(split, "test")) == (
        "none",
        {0: "train/a.png"},
        {1: "test/b.png"},
    )


@pytest.mark.parametrize("column", ["text", "caption"])
def test_captions_in_jsonl(column, tmp_path, weights):
    images(tmp_path, "train/b.png", "train/sub/a.png", "train/unlisted.png", "test/c.png")
    records = [{"file_name": "sub/a.png", column: ["one", "three"]}, {"file_name": "b.png", column: "é"}]
    jsonl(tmp_path / "train" / "metadata.jsonl", *records, {"file_name": "b.png", column: "again"})
    jsonl(tmp_path / "test" / "metadata.jsonl", {"file_name": "./c.png", column: "c"})
    listing = folder.plan(str(tmp_path), None)
    assert (listing.condition, listing.condition_dim) == ("embedding", 768)
    told = [row for row in rows(listing) if isinstance(row, Row)]
    assert [(row.idx, row.text, row.label) for row in told] == [
        (0, ("é", "again"), None),
        (1, ("one", "three"), None),
        (2, ("c",), None),
    ]
    np.testing.assert_array_equal(told[1].condition, quick(["one", "three"]))


def test_captions_in_csv_at_the_root(tmp_path, weights):
    images(tmp_path, "train/b.png", "test/c.png")
    text = '\ufefffile_name,text\r\ntrain/b.png,"a ""b"", and\r\nmore"\r\ntest/c.png,c\r\n'
    (tmp_path / "metadata.csv").write_bytes(text.encode())
    listing = folder.plan(str(tmp_path), None)
    assert [(row.idx, row.text) for row in rows(listing) if isinstance(row, Row)] == [
        (0, ('a "b", and\r\nmore',)),
        (1, ("c",)),
    ]
    assert paths(listing, "test") == {1: "test/c.png"}


def test_label_column(tmp_path):
    images(tmp_path, *(f"{number}.png" for number in range(4)))
    jsonl(tmp_path / "metadata.jsonl", *({"file_name": f"{n}.png", "label": (10, 9, 2, 10)[n]} for n in range(4)))
    listing = folder.plan(str(tmp_path), None)
    assert (listing.condition, listing.classes) == ("label", ("2", "9", "10"))
    assert sorted((row.label for row in rows(listing) if isinstance(row, Row)), key=str) == [0, 1, 2, 2]
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / "metadata.csv").write_text("file_name,label\n0.png,dog\n1.png,cat\n")
    listing = folder.plan(str(tmp_path), None)
    assert (listing.classes, listing.condition_dim) == (("cat", "dog"), 2)
    assert len(paths(listing, "train")) == len(paths(listing, "test")) == 1


def test_columns_to_make_groups_by_are_kept(tmp_path):
    images(tmp_path, *(f"{number}.png" for number in range(3)))
    lines = [{"file_name": "0.png", "label": "a", "artist": " Ana  Lu ", "year": 1901, "note": "x"},
             {"file_name": "1.png", "label": "a", "artist": None, "year": 1901},
             {"file_name": "2.png", "label": "b", "artist": "Bo"}]  # fmt: skip
    jsonl(tmp_path / "metadata.jsonl", *lines)
    listing = folder.plan(str(tmp_path), 8, Choices(group_column="artist, year"))
    assert listing.tags == ("artist", "year")
    assert listing.understood.notes == ("columns of metadata.jsonl that are not read: note",)
    rows = {row.name: row.tags for task in listing.tasks for row in folder.read(task)}
    assert rows == {"0.png": {"artist": "Ana Lu", "year": "1901"}, "1.png": {"year": "1901"}, "2.png": {"artist": "Bo"}}
    for asked, told in (("painter", "no column 'painter' for --group-column"), ("label", "has its own label")):
        with pytest.raises(InputError, match=told):
            folder.plan(str(tmp_path), 8, Choices(group_column=asked))
    jsonl(tmp_path / "metadata.jsonl", {"file_name": "0.png", "label": "a", "artist": [1]})
    with pytest.raises(InputError, match=r"line 1: artist is \[1\], expected a name or a whole number"):
        folder.plan(str(tmp_path), 8, Choices(group_column="artist"))
    (tmp_path / "metadata.jsonl").unlink()
    with pytest.raises(InputError, match=r"no metadata file under .* has values in it"):
        folder.plan(str(tmp_path), 8, Choices(group_column="artist"))


def test_missing_weights_say_how_to_do_without(tmp_path, monkeypatch):
    monkeypatch.delenv("MUCS_RAY_CLIP_WEIGHTS", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    images(tmp_path / "set", "a.png")
    jsonl(tmp_path / "set" / "metadata.jsonl", {"file_name": "a.png", "text": "a"})
    with pytest.raises(MachineError, match=r"MUCS_RAY_CLIP_WEIGHTS.*label column.*only images need none") as told:
        folder.plan(str(tmp_path / "set"), None)
    assert "\n" not in str(told.value)


def test_broken_and_absent_images_are_rejected_and_counted(tmp_path):
    root = images(tmp_path / "set", *(f"train/a/{number}.jpg" for number in range(3)), "test/a/x.jpg")
    whole = (root / "train/a/1.jpg").read_bytes()
    (root / "train/a/1.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "train/a/2.png").write_bytes(b"no picture")
    dataset = prepare("folder", where=str(root), out=str(tmp_path / "out"), size=None)
    assert (dataset.card.num_images("train"), dataset.card.num_images("test"), dataset.card.num_rejected) == (2, 1, 2)
    assert [idx for table in dataset.stream("train") for idx in table["idx"].to_pylist()] == [0, 2]
    assert [idx for table in dataset.stream("test") for idx in table["idx"].to_pylist()] == [4]

    images(tmp_path / "listed", "a.png")
    jsonl(tmp_path / "listed" / "metadata.jsonl", {"file_name": "gone.png"}, {"file_name": "a.png"})
    told = rows(folder.plan(str(tmp_path / "listed"), None))
    assert [each.where for each in told if isinstance(each, Reject)] == ["gone.png"]
    assert len(told) == 2


@pytest.mark.parametrize(
    "name", ["../x.png", "a/../../x.png", "/etc/x.png", "C:\\x.png", "..\\x.png", "", None, 7, "a\0"]
)
def test_a_file_name_cannot_leave_the_folder(name, tmp_path):
    images(tmp_path, "x.png", "set/a.png")
    jsonl(tmp_path / "set" / "metadata.jsonl", {"file_name": "a.png"}, {"file_name": name})
    assert "metadata.jsonl line 2: file_name" in one_line(tmp_path / "set")


def test_links_cannot_leave_the_folder(tmp_path):
    images(tmp_path, "secret/x.png", "set/a.png")
    link = tmp_path / "set" / "link.png"
    link.symlink_to(tmp_path / "secret" / "x.png")
    assert "link.png is a link that leads out" in one_line(tmp_path / "set")
    lines = jsonl(tmp_path / "set" / "metadata.jsonl", {"file_name": "a.png"}, {"file_name": "link.png"})
    assert "line 2: file_name 'link.png' leads out" in one_line(tmp_path / "set")
    link.unlink()
    (tmp_path / "set" / "d").symlink_to(tmp_path / "secret")
    assert "d is a link to a folder" in one_line(tmp_path / "set")
    (tmp_path / "set" / "d").rename(tmp_path / "set" / ".d")
    jsonl(lines, {"file_name": ".d/x.png"})
    assert "line 1: file_name '.d/x.png' leads out" in one_line(tmp_path / "set")
    lines.unlink()
    lines.symlink_to(tmp_path / "secret" / "metadata.jsonl")
    assert "metadata.jsonl is a link that leads out" in one_line(tmp_path / "set")


def test_links_inside_the_folder_and_to_it_are_fine(tmp_path):
    images(tmp_path, "set/a.png")
    (tmp_path / "set" / "b.png").symlink_to("a.png")
    (tmp_path / "alias").symlink_to(tmp_path / "set")
    listing = folder.plan(str(tmp_path / "alias"), None)
    assert {*paths(listing, "train").values(), *paths(listing, "test").values()} == {"a.png", "b.png"}
    assert all(isinstance(row, Row) for row in rows(listing))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"file_name": "a.png"}\n{"file_name"', "line 2 cannot be read"),
        (b'{"file_name": "a.png"}\n[1]', "line 2: expected a JSON object"),
        (b"\xff", "line 1 cannot be read"),
        (b"[" * 100_000, "line 1 cannot be read"),
        (b'{"file_name": "a.png", "text": 7}', "line 1: text is 7"),
        (b'{"file_name": "a.png", "label": [1]}', "line 1: label is"),
        (b'{"file_name": "a.png", "label": 1}\n{"file_name": "a.png", "label": 2}', "line 2: a.png has label 2"),
    ],
)
def test_broken_metadata_names_its_line(content, expected, tmp_path):
    images(tmp_path, "a.png", "b.png")
    (tmp_path / "metadata.jsonl").write_bytes(content)
    assert expected in one_line(tmp_path)


def test_what_cannot_be_a_set_is_told(tmp_path):
    assert "needs --source" in one_line(None)
    assert "no folder" in one_line(tmp_path / "gone")
    assert "no image" in one_line(tmp_path)
    assert "both class folders and images" in one_line(images(tmp_path / "mixed", "a.png", "k/b.png"))
    assert "no folder" in one_line(images(tmp_path, "a.png") / "a.png")


def test_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "PER_SHARD", 2)
    listing = folder.plan(str(images(tmp_path, *(f"train/{n}.png" for n in range(5)), "test/a.png")), None)
    facts = [(task.split, task.number, task.payload[0], len(task.payload[1])) for task in listing.tasks]
    assert facts == [("train", 0, 0, 2), ("train", 1, 2, 2), ("train", 2, 4, 1), ("test", 0, 5, 1)]


def test_any_url(tmp_path):
    fs = fsspec.filesystem("memory")
    picture = images(tmp_path, "a.png") / "a.png"
    for name in ("train/k/1.png", "test/k/2.png"):
        fs.pipe_file(f"/test_folder/{name}", picture.read_bytes())
    try:
        listing = folder.plan("memory://test_folder", None)
        assert (paths(listing, "train"), paths(listing, "test")) == ({0: "train/k/1.png"}, {1: "test/k/2.png"})
        assert all(isinstance(row, Row) for row in rows(listing))
    finally:
        fs.rm("/test_folder", recursive=True)
