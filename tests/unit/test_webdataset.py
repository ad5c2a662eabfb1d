"""WebDataset tars: read by an allow-list, in a stream, as they are published."""

import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mucs_ray.data import caption_embedding
from mucs_ray.data.prepare import prepare
from mucs_ray.data.sources import Choices, Listing, Reject, webdataset
from mucs_ray.data.sources.cutting import held_out
from mucs_ray.data.sources.tars import split_name
from mucs_ray.data.table import Row
from mucs_ray.errors import InputError


@pytest.fixture(autouse=True)
def weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the CLIP weights were here."""
    monkeypatch.setattr(caption_embedding, "find_weights", lambda: "somewhere.safetensors")
    monkeypatch.setattr(caption_embedding, "embed", lambda captions: np.ones((len(captions), 768), np.float32))


def png(colour: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (colour, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as file:  # pyright: ignore[reportCallIssue, reportArgumentType]
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return path


def found(listing: Listing) -> list[Row | Reject]:
    tasks = [pickle.loads(pickle.dumps(task)) for task in listing.tasks]
    return [each for task in tasks for each in webdataset.read(task)]


def rows(listing: Listing) -> list[Row]:
    return [each for each in found(listing) if isinstance(each, Row)]


@pytest.mark.parametrize(("ending", "mode"), [("tar", "w"), ("tar.gz", "w:gz")])
def test_labels_and_names(ending: str, mode: str, tmp_path: Path) -> None:
    train = {f"a/{n:03}.png": png(n) for n in range(3)} | {f"a/{n:03}.cls": str(n % 2).encode() for n in range(3)}
    tar(tmp_path / f"train-000.{ending}", dict(sorted(train.items())), mode)
    tar(tmp_path / f"val-000.{ending}", {"x.jpg.png": b"", "y.png": png(9), "y.cls": b"1\n"}, mode)
    listing = webdataset.plan(str(tmp_path), 8)
    assert (listing.condition, listing.classes, listing.distributed) == ("label", ("0", "1"), True)
    assert [(row.idx, row.name, row.label, int(row.image[0, 0, 0])) for row in rows(listing)] == [
        (0, f"train-000.{ending}:a/000.png", 0, 0), (1, f"train-000.{ending}:a/001.png", 1, 1),
        (2, f"train-000.{ending}:a/002.png", 0, 2), (3, f"val-000.{ending}:y.png", 1, 9)]  # fmt: skip
    assert [task.split for task in listing.tasks] == ["train", "test"]
    assert {each.reason: each.count for each in listing.understood.passed_over} == {
        "members ending in .jpg.png, which are never opened": 1}  # fmt: skip


def test_captions_are_in_txt_or_in_json(tmp_path: Path) -> None:
    members = {"0.png": png(0), "0.txt": b"one\n\ntwo\n", "0.json": json.dumps({"caption": "not used"}).encode()}
    members |= {"1.jpg": png(1), "1.json": json.dumps({"prompt": "three", "fine_label": "cat", "url": "x"}).encode()}
    members |= {"2.png": png(2), "2.json": b"[", "3.png": png(3), "3.txt": "ü".encode("utf-16"), "4.png": png(4)}
    listing = webdataset.plan(str(tar(tmp_path / "a.tar", members)), 8)
    assert (listing.condition, listing.condition_dim) == ("embedding", 768)
    by_name = {str(each.name if isinstance(each, Row) else each.where): each for each in found(listing)}
    texts = {name: each.text for name, each in by_name.items() if isinstance(each, Row)}
    assert texts == {"a.tar:0.png": ("one", "two"), "a.tar:1.jpg": ("three",), "a.tar:3.png": ("ü",)}
    reasons = {name: each.reason for name, each in by_name.items() if isinstance(each, Reject)}
    assert reasons["a.tar:4.png"] == "has no caption" and "cannot be read" in reasons["a.tar:2.png"]
    chosen = webdataset.plan(str(tmp_path), 8, Choices(text_column="caption"))
    assert ("not used",) in [row.text for row in rows(chosen)]


def test_a_tenth_is_held_out_where_no_tar_is(tmp_path: Path) -> None:
    for name in ("a", "b"):
        tar(tmp_path / f"{name}.tar", {f"{n}.png": png(n) for n in range(40)})
    listing = webdataset.plan(str(tmp_path), 8)
    names = [f"{name}.tar:{n}" for name in ("a", "b") for n in range(40)]
    expected = [n for n in names if not held_out(n)] + [n for n in names if held_out(n)]
    told = rows(listing)
    assert [str(row.name).removesuffix(".png") for row in told] == expected
    assert [row.idx for row in told] == list(range(80))
    assert listing.condition == "none" and "held out" in listing.understood.splits["test"]


class Touch:
    """When unpickled, writes a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (open, (self.path, "w"))


def test_hostile_members_are_counted_and_stay_unread(tmp_path: Path) -> None:
    canary, where = tmp_path / "canary", tmp_path / "set" / "a.tar"
    bad = pickle.dumps(Touch(str(canary)))
    members = {"0.png": png(1), "0.pkl": bad, "0.pyd": bad, "0.pth": bad, "../../out.png": png(2), "/etc/x.png": png(3)}
    members |= {"__MACOSX/._0.png": b"", "1.txt": b"no image"}
    tar(where, members)
    with tarfile.open(where, "a") as file:
        link = tarfile.TarInfo("2.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(link)
        device = tarfile.TarInfo("3.png")
        device.type = tarfile.CHRTYPE
        file.addfile(device)
    listing = webdataset.plan(str(where), 8)
    assert len(rows(listing)) == 3, "names are data: those that lead elsewhere are images like others"
    reasons = {each.reason: each.count for each in listing.understood.passed_over}
    assert reasons == {
        "members ending in .pkl, which are never opened": 1, "members ending in .pyd, which are never opened": 1,
        "members ending in .pth, which are never opened": 1, "members that are folders, links or devices": 2,
        "hidden or junk files": 1, "keys without an image": 1}  # fmt: skip
    assert not canary.exists() and sorted(path.name for path in tmp_path.rglob("*")) == ["a.tar", "set"]


def test_members_beyond_the_bounds_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mucs_ray.data.sources.tars.MAX_TEXT_BYTES", 10)
    listing = webdataset.plan(str(tar(tmp_path / "a.tar", {"0.png": png(1), "0.txt": b"x" * 11, "1.png": png(2)})), 8)
    assert listing.condition == "none"
    assert [each.reason for each in listing.understood.passed_over] == ["members above 10 bytes"]


@pytest.mark.parametrize("content", [b"", b"rubbish" * 99, b"\x1f\x8b\x08rubbish"])
def test_what_is_no_tar_is_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    for where in (None, str(tmp_path / "absent"), str(tmp_path / "a.tar")):
        with pytest.raises(InputError) as caught:
            webdataset.plan(where, 8)
        assert "\n" not in str(caught.value)


def test_a_torn_tar_is_one_line(tmp_path: Path) -> None:
    where = tar(tmp_path / "a.tar", {f"{n}.png": png(n) for n in range(9)})
    where.write_bytes(where.read_bytes()[:2000])
    with pytest.raises(InputError, match=r"a.tar is not a readable tar"):
        webdataset.plan(str(where), 8)


def test_keys_end_at_the_first_dot_of_the_last_part() -> None:
    assert split_name("a.b/c.d.JPG") == ("a.b/c", ".d.jpg")
    assert split_name("x") == ("x", "")


def test_it_is_prepared_like_any_other(tmp_path: Path) -> None:
    tar(tmp_path / "set" / "a.tar", {f"{n}.png": png(n) for n in range(40)})
    dataset = prepare("webdataset", where=str(tmp_path / "set"), out=str(tmp_path / "out"), size=8)
    assert dataset.card.num_images("train") + dataset.card.num_images("test") == 40
