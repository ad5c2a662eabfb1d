"""COCO's layout against the JSON of a real excerpt; the embedding is a quick stand-in that tells captions apart."""

import json
import os
import shutil
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
from PIL import Image

from mucs_ray.data import caption_embedding
from mucs_ray.data.prepare import prepare
from mucs_ray.data.sources import Reject, coco
from mucs_ray.data.table import Dataset, Row
from mucs_ray.errors import InputError, MachineError

MINI = Path(os.environ.get("MUCS_RAY_TEST_DATA") or Path(__file__).parents[3] / "shared" / "data") / "coco_mini"
needs_mini = pytest.mark.skipif(not MINI.is_dir(), reason="no coco_mini: set MUCS_RAY_TEST_DATA to its parent folder")
SPLITS = (("train", "train2017"), ("test", "val2017"))


def vector_of(caption: str) -> np.ndarray:
    """A unit vector that depends on the caption."""
    seed = int.from_bytes(sha256(caption.encode()).digest()[:4], "little")
    vector = np.random.default_rng(seed).standard_normal(768).astype(np.float32)
    return vector / np.linalg.norm(vector)


def quick(captions: Sequence[str]) -> np.ndarray:
    return np.stack([vector_of(caption) for caption in captions]) if captions else np.zeros((0, 768), np.float32)


@pytest.fixture
def weights(monkeypatch):
    """As if the CLIP weights were here."""
    monkeypatch.setattr(caption_embedding, "find_weights", lambda: "somewhere.safetensors")
    monkeypatch.setattr(caption_embedding, "embed", quick)


def write(root: Path, ids: Sequence[int] = (30, 7, 100), captions: int = 2) -> Path:
    """A folder in COCO's layout, 90 x 70 px images, with entries in no order."""
    (root / "annotations").mkdir(parents=True)
    for _, folder in SPLITS:
        (root / folder).mkdir()
        for id in ids:
            colour = (id % 256, 0, 0)
            Image.new("RGB", (90, 70), colour).save(root / folder / f"{id:012d}.jpg")
        images = [{"id": id, "file_name": f"{id:012d}.jpg", "license": 1} for id in ids]
        told = [{"id": n, "image_id": id, "caption": f"{id} {n}"} for n in reversed(range(captions)) for id in ids]
        document = {"info": {}, "images": images, "annotations": told}
        (root / "annotations" / f"captions_{folder}.json").write_text(json.dumps(document))
    return root


def edit(root: Path, change) -> Path:
    """Change the training JSON."""
    path = root / "annotations" / "captions_train2017.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    return path


def rows_of(dataset: Dataset, split) -> list[dict]:
    return [row for table in dataset.stream(split) for row in table.to_pylist()]


def listed(listing, split) -> list[tuple[int, str, tuple[str, ...]]]:
    found = []
    for task in listing.tasks:
        if task.split == split:
            first, entries, _ = task.payload
            found += [(first + at, name, captions) for at, (name, captions) in enumerate(entries)]
    return found


@needs_mini
def test_the_excerpt_is_prepared_as_its_json_says(tmp_path, weights):
    dataset = prepare("coco", where=str(MINI), out=str(tmp_path / "set"), size=None)
    card = dataset.card
    assert (card.num_images("train"), card.num_images("test"), card.num_rejected) == (80, 111, 0)
    assert (card.size, card.condition, card.condition_dim) == (64, "embedding", 768)
    first_idx = 0
    for split, folder in SPLITS:
        document = json.loads((MINI / "annotations" / f"captions_{folder}.json").read_text())
        images = sorted(document["images"], key=lambda image: image["id"])
        rows = rows_of(dataset, split)
        assert [row["idx"] for row in rows] == list(range(first_idx, first_idx + len(images)))
        first_idx += len(images)
        for row, image in zip(rows, images, strict=True):
            captions = [each["caption"] for each in document["annotations"] if each["image_id"] == image["id"]]
            assert row["text"] == captions and len(row["condition"]) == len(captions)
            np.testing.assert_array_equal(row["condition"], quick(captions))
            assert min(row["height"], row["width"]) == 64
        name = images[0]["file_name"]
        with Image.open(MINI / folder / name) as picture:
            width, height = picture.size
            scale = 64 / min(width, height)
            expected = picture.convert("RGB").resize(
                (int(width * scale), int(height * scale)), Image.Resampling.BILINEAR
            )
        stored = np.frombuffer(rows[0]["image"], np.uint8).reshape(3, rows[0]["height"], rows[0]["width"])
        np.testing.assert_array_equal(stored.transpose(1, 2, 0), np.asarray(expected))


@needs_mini
def test_both_orientations_are_in_the_excerpt(weights):
    listing = coco.plan(str(MINI), 32)
    rows = [row for row in coco.read(listing.tasks[0]) if isinstance(row, Row)]
    shapes = {(row.image.shape[1] > 32, row.image.shape[2] > 32) for row in rows}
    assert {(True, False), (False, True)} <= shapes
    assert all(min(row.image.shape[1:]) == 32 for row in rows)


def test_ids_ascend_and_captions_keep_their_order(tmp_path, weights):
    listing = coco.plan(str(write(tmp_path)), None)
    assert listing.distributed
    assert listed(listing, "train") == [
        (0, "000000000007.jpg", ("7 1", "7 0")),
        (1, "000000000030.jpg", ("30 1", "30 0")),
        (2, "000000000100.jpg", ("100 1", "100 0")),
    ]
    assert [idx for idx, _, _ in listed(listing, "test")] == [3, 4, 5]


def test_absent_images_are_skipped_and_take_no_idx(tmp_path, weights):
    root = write(tmp_path)
    (root / "train2017" / "000000000030.jpg").unlink()
    listing = coco.plan(str(root), None)
    assert [(idx, name) for idx, name, _ in listed(listing, "train")] == [
        (0, "000000000007.jpg"),
        (1, "000000000100.jpg"),
    ]
    assert [idx for idx, _, _ in listed(listing, "test")] == [2, 3, 4]
    assert [(each.reason, each.count) for each in listing.understood.passed_over] == [
        ("images of captions_train2017.json that are not in train2017/", 1)]  # fmt: skip


def test_large_sets_are_cut_into_shards(tmp_path, weights, monkeypatch):
    monkeypatch.setattr(coco, "PER_SHARD", 2)
    listing = coco.plan(str(write(tmp_path)), None)
    facts = [(task.split, task.number, task.payload[0], len(task.payload[1])) for task in listing.tasks]
    assert facts == [("train", 0, 0, 2), ("train", 1, 2, 1), ("test", 0, 3, 2), ("test", 1, 5, 1)]


def test_a_broken_image_is_rejected_and_counted(tmp_path, weights):
    root = write(tmp_path / "source")
    whole = (root / "train2017" / "000000000030.jpg").read_bytes()
    (root / "train2017" / "000000000030.jpg").write_bytes(whole[: len(whole) // 2])
    dataset = prepare("coco", where=str(root), out=str(tmp_path / "set"), size=None)
    assert dataset.card.num_rejected == 1
    assert [row["idx"] for row in rows_of(dataset, "train")] == [0, 2]
    assert rows_of(dataset, "train")[1]["text"] == ["100 1", "100 0"]
    np.testing.assert_array_equal(rows_of(dataset, "train")[1]["condition"], quick(["100 1", "100 0"]))


def test_images_without_captions_or_gone_since_are_rejected(tmp_path, weights):
    root = write(tmp_path)
    edit(
        root, lambda document: document.update(annotations=document["annotations"][1:3] + document["annotations"][4:6])
    )
    listing = coco.plan(str(root), None)
    (root / "train2017" / "000000000100.jpg").unlink()
    told = list(coco.read(listing.tasks[0]))
    assert [type(each) for each in told] == [Row, Reject, Reject]
    assert [each.reason for each in told if isinstance(each, Reject)] == ["has no caption", "No such file or directory"]


def test_missing_weights_are_told_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.delenv("MUCS_RAY_CLIP_WEIGHTS", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(MachineError, match=r"open_clip_model\.safetensors.*MUCS_RAY_CLIP_WEIGHTS") as told:
        prepare("coco", where=str(tmp_path / "nowhere"), out=str(tmp_path / "set"), size=None)
    assert "\n" not in str(told.value)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("name", ["../secret.jpg", "/etc/passwd", "a/b.jpg", "..", "", "C:\\x.jpg", "..\\x.jpg"])
def test_a_file_name_cannot_leave_the_folder(name, tmp_path, weights):
    path = edit(write(tmp_path), lambda document: document["images"][1].update(file_name=name))
    with pytest.raises(InputError, match="image 7 has file_name") as told:
        coco.plan(str(tmp_path), None)
    assert str(path) in str(told.value) and "\n" not in str(told.value)


def test_what_is_not_coco_is_told_in_one_line(tmp_path, weights):
    with pytest.raises(InputError, match="needs --source"):
        coco.plan(None, None)
    with pytest.raises(InputError, match=r"no captions file .*captions_train2017\.json"):
        coco.plan(str(tmp_path), None)
    root = write(tmp_path / "coco")
    path = edit(root, lambda document: document["annotations"][0].update(caption=7))
    for content, expected in (
        (path.read_bytes(), r"annotations\.0\.caption"),
        (b'{"images": [', "Invalid JSON"),
        (b'{"images": []}', "annotations: Field required"),
        (b"\xff\xfe", "Invalid JSON"),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match=expected) as told:
            coco.plan(str(root), None)
        assert str(path) in str(told.value) and "\n" not in str(told.value)
    shutil.rmtree(root)
    shutil.rmtree(write(root) / "val2017")
    with pytest.raises(InputError, match=r"none of the 3 images .*val2017"):
        coco.plan(str(root), None)
