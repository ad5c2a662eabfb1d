"""Folders as they lie on people's disks: everything in them is used, or counted with a reason."""

import csv
import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mucs_ray.data import caption_embedding
from mucs_ray.data.decode import EXTENSIONS
from mucs_ray.data.prepare import prepare
from mucs_ray.data.sources import Choices, Listing, Reject, folder
from mucs_ray.data.sources.columns import NAMES, class_name, texts
from mucs_ray.data.sources.listed import path_of
from mucs_ray.data.sources.metadata import csv_records
from mucs_ray.data.table import Row
from mucs_ray.data.understood import lines
from mucs_ray.errors import InputError, MachineError

NFC, NFD = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))


@pytest.fixture(autouse=True)
def weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the CLIP weights were here."""
    monkeypatch.setattr(caption_embedding, "find_weights", lambda: "somewhere.safetensors")
    monkeypatch.setattr(caption_embedding, "embed", lambda captions: np.zeros((len(captions), 768), np.float32))


def images(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), "red").save(root / name, "PNG")
    return root


def plan(root: Path, **choices: object) -> Listing:
    return folder.plan(str(root), 8, Choices(**choices) if choices else None)  # pyright: ignore[reportArgumentType]


def rows(listing: Listing) -> list[Row]:
    found = [row for task in listing.tasks for row in folder.read(task)]
    assert not any(isinstance(row, Reject) for row in found)
    return [row for row in found if isinstance(row, Row)]


def captions(listing: Listing) -> dict[str | None, tuple[str, ...]]:
    return {row.name: row.text for row in rows(listing)}


def labels(listing: Listing) -> dict[str | None, str | None]:
    return {row.name: None if row.label is None else listing.classes[row.label] for row in rows(listing)}


def passed_over(listing: Listing) -> dict[str, int]:
    return {each.reason: each.count for each in listing.understood.passed_over}


def one_line(root: Path, **choices: object) -> str:
    with pytest.raises(InputError) as told:
        plan(root, **choices)
    assert "\n" not in str(told.value)
    return str(told.value)


def splits(listing: Listing) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {"train": [], "test": []}
    for task in listing.tasks:
        found[task.split] += [entry.path for entry in task.payload[1]]
    return found


def test_validation_images_are_not_trained_on(tmp_path: Path) -> None:
    listing = plan(images(tmp_path, "train/cat/1.png", "train/dog/2.png", "Valid/cat/3.png"))
    assert splits(listing) == {"train": ["train/cat/1.png", "train/dog/2.png"], "test": ["Valid/cat/3.png"]}
    assert listing.classes == ("cat", "dog") and listing.understood.splits == {"train": "train/", "test": "Valid/"}


def test_a_test_split_whose_labels_are_hidden_gives_way(tmp_path: Path) -> None:
    root = images(tmp_path, *(f"train/{kind}/{n}.png" for kind in "ab" for n in range(3)), "test/1.png", "val/a/2.png")
    listing = plan(root)
    assert splits(listing)["test"] == ["val/a/2.png"]
    assert passed_over(listing) == {"test images without a label, or hidden ones (-1)": 1}
    (root / "val/a/2.png").unlink()
    assert "held out" in plan(root).understood.splits["test"]


def test_validation_beside_test_is_counted(tmp_path: Path) -> None:
    listing = plan(images(tmp_path, "train/1.png", "val/2.png", "val/3.png", "test/4.png", "extra/5.png"))
    assert splits(listing) == {"train": ["train/1.png"], "test": ["test/4.png"]}
    told = {"images in val/, since test/ is there": 2, "images beside the folders of the splits": 1}
    assert passed_over(listing) == told


@pytest.mark.parametrize("form", [[["00000/a.png", 6], ["00000/b.png", 2]], {"00000/a.png": 6, "00000/b.png": 2}])
def test_dataset_json_of_edm_type_tools(form: object, tmp_path: Path) -> None:
    root = images(tmp_path, "00000/a.png", "00000/b.png")
    (root / "dataset.json").write_text(json.dumps({"labels": form}))
    assert labels(plan(root)) == {"00000/a.png": "6", "00000/b.png": "2"}
    assert plan(root).classes == ("2", "6")


def test_dataset_json_without_labels_makes_no_classes_of_its_folders(tmp_path: Path) -> None:
    root = images(tmp_path, "00000/a.png", "00001/b.png")
    (root / "dataset.json").write_text('{"labels": null}')
    assert (plan(root).condition, len(rows(plan(root)))) == ("none", 2)
    (root / "dataset.json").write_text('{"labels": [1, 2]}')
    assert "[[file name, label], ...]" in one_line(root)


RECORDS = [{"file_name": "a.png", "prompt": "x, y"}, {"file_name": "b.png", "prompt": "z"}]
CSVS = {
    "blanks": 'file_name, prompt\na.png, "x, y"\nb.png, z\n',
    "semicolons": 'file_name;prompt\na.png;"x, y"\nb.png;z\n',
    "tabs": "file_name\tprompt\r\na.png\tx, y\r\nb.png\tz\r\n",
    "bars": 'file_name | prompt \na.png | "x, y" \n\nb.png | z\n',
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("kind", [*CSVS, "metadata.jsonl", "metadata.json", "Captions.json"])
def test_dialects_and_encodings_of_metadata(kind: str, encoding: str, tmp_path: Path) -> None:
    root, name, text = images(tmp_path, "a.png", "b.png"), "metadata.csv", CSVS.get(kind, "")
    if kind not in CSVS:
        lines = "\n".join(map(json.dumps, RECORDS))
        by_name = {str(record["file_name"]): record["prompt"] for record in RECORDS}
        documents = {
            "metadata.jsonl": lines,
            "metadata.json": json.dumps(RECORDS),
            "Captions.json": json.dumps(by_name),
        }
        name, text = kind, documents[kind]
    (root / name).write_bytes(text.encode(encoding))
    listing = plan(root)
    assert captions(listing) == {"a.png": ("x, y",), "b.png": ("z",)}
    assert listing.condition == "embedding" and listing.understood.captions.endswith(f"of {name}")


@given(st.lists(st.lists(st.text(st.characters(blacklist_characters="\0\r\n", codec="utf-8")), min_size=2, max_size=2)))
def test_a_csv_that_python_wrote_is_read_back(cells: list[list[str]]) -> None:
    from io import StringIO

    file = StringIO()
    csv.writer(file).writerows([["file_name", "text"], *cells])
    found = [list(record.values()) for _, record in csv_records(file.getvalue())]
    assert found == [[cell.strip() for cell in row] for row in cells if any(cell.strip() for cell in row)]


@pytest.mark.parametrize("column", ["prompt", "caption", "text", "Captions"])
def test_columns_of_captions_are_recognised(column: str, tmp_path: Path) -> None:
    root = images(tmp_path, "a.png", "b.png")
    (root / "metadata.csv").write_text(f"img,{column}\na.png,x\nb.png,y\n")
    assert captions(plan(root)) == {"a.png": ("x",), "b.png": ("y",)}


@pytest.mark.parametrize("column", ["labels", "label", "fine_label", "Class Name"])
def test_columns_of_labels_are_recognised(column: str, tmp_path: Path) -> None:
    root = images(tmp_path, "a.png", "b.png")
    (root / "metadata.csv").write_text(f"file,{column}\na.png,10\nb.png,9.0\n".replace("9.0", "9"))
    assert labels(plan(root)) == {"a.png": "10", "b.png": "9"} and plan(root).classes == ("9", "10")


def test_unknown_columns_are_listed_with_the_option_that_picks_one(tmp_path: Path) -> None:
    root = images(tmp_path, "a.png", "b.png")
    (root / "metadata.csv").write_text("pic,says,breed\na.png,x,pug\nb.png,y,cat\n")
    assert "columns (pic, says, breed)" in one_line(root) and "--image-column" in one_line(root)
    told = one_line(root, image_column="pic")
    assert all(part in told for part in ("says, breed", "--text-column", "--label-column", "--text-column none"))
    assert captions(plan(root, image_column="pic", text_column="says")) == {"a.png": ("x",), "b.png": ("y",)}
    assert labels(plan(root, image_column="pic", label_column="breed")) == {"a.png": "pug", "b.png": "cat"}
    assert plan(root, image_column="pic", text_column="none").condition == "none"
    assert "has no column 'gone' for --text-column; its columns: pic" in one_line(
        root, image_column="pic", text_column="gone"
    )


def test_captions_in_class_folders_and_their_labels(tmp_path: Path) -> None:
    root = images(tmp_path, "cat/a.png", "dog/a.png")
    (root / "cat" / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a cat"}\n')
    (root / "dog" / "metadata.json").write_text('[{"file_name": "a.png", "text": "a dog"}]')
    assert captions(plan(root)) == {"cat/a.png": ("a cat",), "dog/a.png": ("a dog",)}
    assert labels(plan(root)) == {"cat/a.png": "cat", "dog/a.png": "dog"}
    without = plan(root, text_column="none")
    assert (without.condition, labels(without)) == ("label", {"cat/a.png": "cat", "dog/a.png": "dog"})


def test_a_column_of_splits(tmp_path: Path) -> None:
    root = images(tmp_path, *(f"images/{n}.png" for n in range(4)))
    (root / "metadata.csv").write_text(
        "split,file_name,label\ntrain,images/0.png,a\nTraining,images/1.png,b\nvalid,images/2.png,a\n,images/3.png,a\n"
    )
    listing = plan(root)
    assert splits(listing) == {"train": ["images/0.png", "images/1.png", "images/3.png"], "test": ["images/2.png"]}
    assert "validation" in listing.understood.splits["test"] and listing.understood.notes == ()


def test_metadata_may_call_images_by_what_is_theirs_alone(tmp_path: Path) -> None:
    root = images(tmp_path, "train/0a.png", "train/0b.png", "test/0b.png")
    (root / "labels.csv").write_text("image_id,label\n0a,x\ntrain/0b,y\ntest/0b.png,z\n")
    assert labels(plan(root, image_column="image_id")) == {"train/0a.png": "x", "train/0b.png": "y", "test/0b.png": "z"}
    (root / "labels.csv").write_text("image_id,label\n0a,x\n0b,y\n")
    assert passed_over(plan(root, image_column="image_id")) == {
        "lines of metadata without an image": 1, "images without a line in labels.csv": 2}  # fmt: skip


def test_another_encoding_is_called_one(tmp_path: Path) -> None:
    (images(tmp_path, "a.png") / "metadata.csv").write_bytes("file_name,text\na.png,Hünd\n".encode("cp1252"))
    assert "save it as UTF-8" in one_line(tmp_path)


def test_images_without_a_line_are_counted(tmp_path: Path) -> None:
    root = images(tmp_path, "a.png", "b.png", "c.png")
    (root / "metadata.csv").write_text("file_name,text,source\na.png,x,s\nb.png,y,s\n")
    listing = plan(root)
    assert passed_over(listing) == {"images without a line in metadata.csv": 1}
    assert listing.understood.notes == ("columns of metadata.csv that are not read: source",)


def test_images_without_a_caption_are_counted_and_the_condition_is_what_most_have(tmp_path: Path) -> None:
    root = images(tmp_path, *(f"{kind}/{n}.png" for kind in "ab" for n in range(4)))
    (root / "a" / "0.txt").write_text("only one")
    assert plan(root).condition == "label", "one caption in eight"
    lines = ["file_name,text", *(f"{kind}/{n}.png,{'x' if n else ''}" for kind in "ab" for n in range(4))]
    (root / "metadata.csv").write_text("\n".join(lines))
    (root / "a" / "0.txt").unlink()
    assert plan(root).condition == "label", "six captions, but eight labels"
    listing = plan(root, label_column="none")
    assert listing.condition == "embedding" and passed_over(listing) == {"train images without a caption": 2}


def test_captions_in_a_file_beside_each_image(tmp_path: Path) -> None:
    root = images(tmp_path, "1.png", "2.png", "3.PNG")
    (root / "1.txt").write_text("\ufeffa cat\n\na feline\n")
    (root / "2.txt").write_bytes("ein Hünd".encode("utf-16"))
    (root / "3.caption").write_text("")
    found = [row for task in plan(root).tasks for row in folder.read(task)]
    told = {row.name: row.text for row in found if isinstance(row, Row)}
    assert told == {"1.png": ("a cat", "a feline"), "2.png": ("ein Hünd",)}
    assert [row.reason for row in found if isinstance(row, Reject)] == ["its file of captions is empty"]
    assert plan(root).understood.captions.startswith("files beside the images")


def test_files_of_numbers_beside_images_are_no_captions(tmp_path: Path) -> None:
    root = images(tmp_path, "1.png", "2.png")
    (root / "1.txt").write_text("0 0.5 0.5 0.25 1e-1\n")
    assert (plan(root).condition, passed_over(plan(root))) == ("none", {"files ending in .txt": 1})


def test_hidden_labels_are_no_class(tmp_path: Path) -> None:
    root = images(tmp_path, *(f"train/{n}.png" for n in range(3)), "test/9.png")
    records = [{"file_name": f"train/{n}.png", "label": n} for n in (0, 1)] + [
        {"file_name": "train/2.png", "label": -1}, {"file_name": "test/9.png", "label": -1}]  # fmt: skip
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, records)))
    listing = plan(root)
    assert listing.classes == ("0", "1")
    assert passed_over(listing) == {
        f"{split} images without a label, or hidden ones (-1)": 1 for split in ("train", "test")
    }


def test_class_names_that_differ_by_blanks_are_one(tmp_path: Path) -> None:
    root = images(tmp_path / "folders", "big cat/1.png", "big  cat /2.png", "dog/3.png", f"{NFC}/4.png", f"{NFD}/5.png")
    listing = plan(root)
    assert listing.classes == ("big cat", "dog", NFC)
    assert [note.startswith("2 class folders that differ only in blanks") for note in listing.understood.notes] == [
        True
    ] * 2
    root = images(tmp_path / "table", "1.png", "2.png")
    (root / "metadata.jsonl").write_text(
        '{"file_name": "1.png", "label": "cat "}\n{"file_name": "2.png", "label": " cat"}\n'
    )
    assert plan(root).classes == ("cat",)


@given(st.text())
def test_a_class_name_is_tidied_once(name: str) -> None:
    tidied = class_name(name)
    assert tidied is None or (tidied == class_name(tidied) == class_name(f"  {name}\t") and tidied.strip() == tidied)


@pytest.mark.parametrize(
    ("value", "name"), [(3, "3"), (3.0, "3"), (-1, None), ("-1", None), (float("nan"), None), (None, None), ("", None),
                        ([0, 0, 1], "2")],
)  # fmt: skip
def test_values_of_labels(value: object, name: str | None) -> None:
    assert class_name(value) == name


@pytest.mark.parametrize("value", [0.5, [1], [1, 1], {"a": 1}, b"x"])
def test_other_values_are_no_labels(value: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        class_name(value)
    with pytest.raises(ValueError):
        texts([value])


def test_soft_links_inside_a_hub_cache_are_read(tmp_path: Path) -> None:
    repository = tmp_path / "datasets--me--pets"
    images(repository / "blobs", "0a1b", "0c1d")
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for name, blob in (("a.png", "0a1b"), ("b.png", "0c1d")):
        (snapshot / name).symlink_to(Path("..", "..", "blobs", blob))
    assert set(captions(plan(snapshot))) == {"a.png", "b.png"}
    (snapshot / "b.png").unlink()
    (snapshot / "b.png").symlink_to(images(tmp_path, "secret.png") / "secret.png")
    assert "b.png is a link that leads out" in one_line(snapshot)


def test_links_are_followed_only_when_asked(tmp_path: Path) -> None:
    images(tmp_path / "elsewhere", "cat/1.png", "2.png")
    root = images(tmp_path / "set", "dog/0.png")
    (root / "cat").symlink_to(tmp_path / "elsewhere" / "cat")
    assert "cat is a link to a folder" in one_line(root) and "--follow-links" in one_line(root)
    (root / "dog" / "2.png").symlink_to(tmp_path / "elsewhere" / "2.png")
    (root / "dog" / "all").symlink_to(root)
    listing = plan(root, follow_links=True)
    assert set(labels(listing)) == {"dog/0.png", "cat/1.png", "dog/2.png"}
    assert passed_over(listing) == {"links to a folder that they are in": 1}


def test_junk_is_counted_wherever_it_lies(tmp_path: Path) -> None:
    names = ("._a.png", "__MACOSX/._a.png", "k/._b.png", ".git/x.png", "k/__MACOSX/a.png", "k/@eaDir/a.png")
    root = images(tmp_path, "k/a.png", "k/b.png", *names)
    for name in (".DS_Store", "k/.DS_Store", "k/Thumbs.db"):
        (root / name).write_text("")
    listing = plan(root)
    assert set(labels(listing)) == {"k/a.png", "k/b.png"} and listing.classes == ("k",)
    assert passed_over(listing) == {"hidden or junk files": 9}


def test_every_ending_is_read_or_counted(tmp_path: Path) -> None:
    kinds = {".jfif": "JPEG", ".jpe": "JPEG", ".tif": "TIFF", ".TIFF": "TIFF", ".PNG": "PNG", ".avif": "AVIF"}
    readable = {ending: kind for ending, kind in kinds.items() if ending.lower() in EXTENSIONS}
    assert len(readable) >= 5
    for ending, kind in readable.items():
        Image.new("RGB", (8, 8), (200, 0, 0)).save(tmp_path / f"x{ending}", kind)
    for name in ("a.heic", "b.HEIC", "README", "model.json"):
        (tmp_path / name).write_text("{}")
    listing = plan(tmp_path)
    assert {row.name for row in rows(listing)} == {f"x{ending}" for ending in readable}
    assert all(abs(int(row.image[0, 0, 0]) - 200) < 8 for row in rows(listing))
    assert passed_over(listing) == {
        "files ending in .heic": 2, "files ending in .json": 1, "files without an ending": 1}  # fmt: skip


AWKWARD = ["[x].png", "[bold]x.png", "a::b.png", "100%.png", "a b.png", "a\\b.png", f"{NFD}.png", "#1?.png"]


def test_names_of_any_kind_come_back_as_they_are(tmp_path: Path) -> None:
    names = [f"[/{name}" for name in AWKWARD]  # in a class folder called "["
    listing = plan(images(tmp_path, *names))
    assert sorted(str(row.name) for row in rows(listing)) == sorted(names) and listing.classes == ("[",)


def test_names_in_metadata_are_found_in_either_form_and_with_either_slash(tmp_path: Path) -> None:
    root = images(tmp_path, f"sub/{NFD}.png", "sub/a b.png", "a\\b.png", "sub/[x].png")
    names = [f"sub\\{NFC}.png", ".\\sub\\a b.png", "a\\b.png", "sub/[x].png"]
    (root / "metadata.jsonl").write_text("\n".join(json.dumps({"file_name": name, "label": "k"}) for name in names))
    assert set(labels(plan(root))) == {f"sub/{NFD}.png", "sub/a b.png", "a\\b.png", "sub/[x].png"}


@given(
    st.lists(st.text(st.characters(codec="utf-8", blacklist_characters="/\\\0"), min_size=1), min_size=1, max_size=3)
)
def test_a_listed_name_is_found_in_any_form_of_unicode(parts: list[str]) -> None:
    name = "/".join(parts)
    if any(part.strip().strip(".") == "" or ":" in part for part in parts):
        return
    by_name = {unicodedata.normalize("NFC", name): name}
    for form in ("NFC", "NFD"):
        for spelling in (name, name.replace("/", "\\")):
            listed = unicodedata.normalize(form, spelling)
            assert path_of("memory://root", "", listed, "line 1", by_name) == name


def test_the_same_tenth_is_held_out_in_either_form_of_unicode(tmp_path: Path) -> None:
    from mucs_ray.data.sources.cutting import held_out

    assert all(held_out(f"{NFC}{n}") == held_out(f"{NFD}{n}") for n in range(50))


def test_missing_weights_name_the_way_without_captions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> str:
        raise MachineError("no CLIP")

    monkeypatch.setattr(caption_embedding, "find_weights", refuse)
    root = images(tmp_path, "cat/1.png", "dog/2.png")
    for name in ("cat/1.txt", "dog/2.txt"):
        (root / name).write_text("a pet")
    with pytest.raises(MachineError, match="--text-column none"):
        plan(root)
    assert plan(root, text_column="none").condition == "label"


def test_a_folder_of_other_files_says_which_source_reads_them(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_text("")
    assert "read by source webdataset" in one_line(tmp_path)
    assert "unpack an archive" in one_line(tmp_path / "a.tar")


def test_the_card_says_what_was_understood(tmp_path: Path) -> None:
    root = images(tmp_path / "set", "train/cat/1.png", "train/dog/2.png", "test/dog/3.png", "train/cat/x.heic")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 12)).save(root / "train/cat/turned.jpg", exif=exif)
    (root / "train/cat/broken.png").write_bytes(b"no picture")
    told = prepare("folder", where=str(root), out=str(tmp_path / "out"), size=8).card.understood
    assert [(each["split"], each["images"], each["from"]) for each in told["splits"]] == [
        ("train", 3, "train/"), ("test", 1, "test/")]  # fmt: skip
    assert told["classes"] == [{"name": "cat", "train": 2, "test": 0}, {"name": "dog", "train": 1, "test": 1}]
    assert (told["labels"], told["captions"]) == ("class folders", {"from": "", "share": 0.0})
    assert told["passed_over"] == [{"reason": "files ending in .heic", "count": 1, "example": "train/cat/x.heic"}]
    assert [each["count"] for each in told["rejected"]] == [1]
    assert told["notes"] == ["1 image turned upright, as the EXIF orientation says"]
    assert dict(lines(told))["classes"] == "2, from class folders (train+test): cat 2+0, dog 1+1"


def test_every_recognised_name_is_normal() -> None:
    from mucs_ray.data.sources.columns import normal

    assert all(normal(name) == name for names in NAMES.values() for name in names)
