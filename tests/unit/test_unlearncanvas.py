"""UnlearnCanvas's layout, prepared with tags that groups are made by; the embedding is a quick stand-in."""

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mucs_ray.data import caption_embedding
from mucs_ray.data.groups import find_groups
from mucs_ray.data.prepare import prepare
from mucs_ray.data.sources import Choices, unlearncanvas
from mucs_ray.data.sources.cutting import held_out
from mucs_ray.data.table import Dataset
from mucs_ray.errors import InputError, MachineError

STYLES, OBJECTS, NUMBERS = ("Cubism", "Ink_Art", "Van_Gogh"), ("Dogs", "Sea_Shells"), range(1, 6)
WORDS = {"Cubism": ["angular", "flat", "facets", "muted"], "Ink_Art": ["washes"], "Van Gogh": ["swirls", "impasto"]}
NONE = Choices(text_column="none")


def quick(captions: Sequence[str]) -> np.ndarray:
    """Return unit vectors that depend on the captions."""
    seeds = [int.from_bytes(sha256(caption.encode()).digest()[:4], "little") for caption in captions]
    drawn = [np.random.default_rng(seed).standard_normal(768).astype(np.float32) for seed in seeds]
    return np.stack([vector / np.linalg.norm(vector) for vector in drawn]) if drawn else np.zeros((0, 768), np.float32)


@pytest.fixture
def weights(monkeypatch: pytest.MonkeyPatch):
    """Act as if the CLIP weights were here."""
    monkeypatch.setattr(caption_embedding, "find_weights", lambda: "somewhere.safetensors")
    monkeypatch.setattr(caption_embedding, "embed", quick)


@pytest.fixture
def canvas(tmp_path: Path) -> Path:
    """Write 30 pictures, and what lies beside them."""
    root = tmp_path / "canvas"
    for style in (*STYLES, "Seed_Images"):
        for thing in OBJECTS:
            (root / style / thing).mkdir(parents=True)
            for number in NUMBERS:
                Image.new("RGB", (12, 8), (40 * number, 0, 0)).save(root / style / thing / f"{number}.jpg")
    Image.new("RGB", (12, 8)).save(root / "Cubism" / "cover.jpg")
    (root / "Cubism" / "readme.md").write_text("x")
    return root


def stored(dataset: Dataset) -> list[dict]:
    return [row for split in ("train", "test") for table in dataset.stream(split) for row in table.to_pylist()]


def test_pictures_have_tags_and_captions_of_the_names_of_their_styles(canvas: Path, weights: None):
    dataset = prepare("unlearncanvas", where=str(canvas), out=str(canvas.parent / "out"), size=8)
    card = dataset.card
    assert (card.condition, card.condition_dim, card.tags) == ("embedding", 768, ("style", "object", "number"))
    assert card.classes == ("Cubism", "Ink Art", "Van Gogh")
    rows = stored(dataset)
    assert len(rows) == 30 and not any("Seed" in row["name"] for row in rows)
    shells = next(row for row in rows if row["name"] == "Van_Gogh/Sea_Shells/4.jpg")
    assert (shells["style"], shells["object"], shells["number"], shells["label"]) == ("Van Gogh", "Sea Shells", "4", 2)
    assert shells["text"] == ["A depiction of Sea Shells, artistic style featuring Van Gogh"]
    np.testing.assert_array_equal(np.float32(shells["condition"]), quick(shells["text"]))
    passed = {each["reason"]: each["count"] for each in card.understood["passed_over"]}
    assert passed == {
        "photographs in Seed_Images": 10, "images that do not lie at STYLE/OBJECT/NUMBER.jpg": 1,
        "files ending in .md": 1,
    }  # fmt: skip


def test_groups_are_made_by_any_tag(canvas: Path, weights: None):
    dataset = prepare("unlearncanvas", where=str(canvas), out=str(canvas.parent / "out"), size=8)
    groups = find_groups(dataset, "style")
    assert groups.names == ("Cubism", "Ink Art", "Van Gogh") and not groups.overlapping
    assert len(set(groups.sizes)) == 1 and sum(groups.sizes) == dataset.card.num_images("train")
    assert find_groups(dataset, "object").names == ("Dogs", "Sea Shells")
    with pytest.raises(
        InputError, match="no column 'artist' to make groups by; there are label, text, folder, style, obj"
    ):
        find_groups(dataset, "artist")


def test_a_content_is_held_out_in_all_styles_or_in_none(canvas: Path, weights: None):
    listing = unlearncanvas.plan(str(canvas), 8)
    split = {(each.style, each.content): task.split for task in listing.tasks for each in task.payload[1]}
    contents = {content for _, content in split}
    for content in contents:
        assert {split[style, content] for style in listing.classes} == {"test" if held_out(content) else "train"}
    assert "test" in split.values()


def test_descriptors_make_captions_of_three_of_them(canvas: Path, weights: None):
    (canvas / "descriptors.json").write_text(json.dumps(WORDS))
    rows = stored(prepare("unlearncanvas", where=str(canvas), out=str(canvas.parent / "out"), size=8))
    said = {"Cubism": set(), "Ink Art": set(), "Van Gogh": set()}
    for row in rows:
        words = row["text"][0].partition(" featuring ")[2].split(", ")
        assert len(set(words)) == min(3, len(WORDS[row["style"].replace("Ink Art", "Ink_Art")]))
        said[row["style"]].add(tuple(words))
    assert {word for words in said["Cubism"] for word in words} == set(WORDS["Cubism"]) and len(said["Cubism"]) > 2


def test_without_captions_the_style_is_the_condition(canvas: Path):
    listing = unlearncanvas.plan(str(canvas), None, NONE)
    assert (listing.condition, listing.condition_dim, listing.size) == ("label", 3, 64)
    dataset = prepare("unlearncanvas", where=str(canvas), out=str(canvas.parent / "out"), size=8, choices=NONE)
    assert all(row["text"] == [] and row["style"] for row in stored(dataset))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "cannot be read as JSON"),
        ("[1]", "found a list"),
        ('{"Cubism": ["a"], "Ink_Art": ["b"]}', "describe 'Van Gogh'; found nothing"),
        ('{"Cubism": "a", "Ink_Art": ["b"], "Van_Gogh": ["c"]}', "describe 'Cubism'; found 'a'"),
    ],
)
def test_a_wrong_file_of_descriptors_is_refused(canvas: Path, weights: None, content: str, problem: str):
    (canvas / "descriptors.json").write_text(content)
    with pytest.raises(InputError, match=problem) as caught:
        unlearncanvas.plan(str(canvas), None)
    assert "descriptors.json" in str(caught.value) and "\n" not in str(caught.value)


def test_what_cannot_be_used_is_told(canvas: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for where, problem in (
        (None, "needs --source, a folder with STYLE/OBJECT/NUMBER.jpg"),
        (str(tmp_path / "absent"), "no folder"),
        (str(canvas / "Cubism"), "no picture under"),
    ):
        with pytest.raises(InputError, match=problem):
            unlearncanvas.plan(where, None, NONE)
    with pytest.raises(InputError, match="--text-column can be none"):
        unlearncanvas.plan(str(canvas), None, Choices(text_column="prompt"))
    (canvas / "Cubism" / "Dogs" / "9.jpg").symlink_to("/etc/hostname")
    with pytest.raises(InputError, match="a link that leads out"):
        unlearncanvas.plan(str(canvas), None, NONE)
    monkeypatch.setattr(caption_embedding, "find_weights", missing)
    with pytest.raises(MachineError):
        unlearncanvas.plan(str(canvas), None)


def missing() -> str:
    raise MachineError("there are no weights")
