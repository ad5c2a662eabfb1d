"""Names of training images: kept when a set is prepared, found again, and part of every answer."""

import csv
from io import StringIO
from pathlib import Path
from unicodedata import normalize

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from mucs_ray.cli.app import app
from mucs_ray.cli.terminal import show_answer, top_places
from mucs_ray.data.prepare import prepare
from mucs_ray.data.show import descriptions, find_images, pattern, sheet
from mucs_ray.data.table import Dataset, printable
from mucs_ray.errors import InputError
from mucs_ray.store.topk import topk_bytes
from tiny import tiny_dataset


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Four training images and a test image, each of another colour."""
    root = tmp_path_factory.mktemp("pets")
    for number, name in enumerate(("train/cat/a [1].png", "train/cat/b.png", "train/dog/a.png", "test/dog/c.png")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 8), (50 * number, 0, 0)).save(root / name)
    return prepare("folder", where=str(root), out=str(root / "out"), size=8)


def names(dataset: Dataset, *asked: str) -> list[str | None]:
    return [shown.row.name for shown in find_images(dataset, names=asked)]


def test_an_image_is_found_by_its_name(pets: Dataset) -> None:
    assert names(pets, "train/cat/b.png") == names(pets, "b.png") == names(pets, "*/b*") == ["train/cat/b.png"]
    assert names(pets, "a.png", "c.png") == ["train/dog/a.png", "test/dog/c.png"]
    assert names(pets, "a [1].png") == ["train/cat/a [1].png"]
    (found,) = find_images(pets, names=["c.png"])
    assert (found.split, found.label, found.row.idx, found.row.image[0, 0, 0]) == ("test", "dog", 3, 150)
    facts = found.facts()
    assert (facts["name"], facts["class"], facts["height"], facts["width"]) == ("test/dog/c.png", "dog", 8, 12)


def test_without_a_name_the_first_training_images_are_shown(pets: Dataset) -> None:
    assert [shown.row.idx for shown in find_images(pets)] == [0, 1, 2]


@pytest.mark.parametrize("asked", [{"idx": [0, 9]}, {"names": ["b.png", "gone.png"]}, {"names": ["og/a.png"]}])
def test_what_is_not_there_is_told(pets: Dataset, asked: dict[str, list[object]]) -> None:
    with pytest.raises(InputError, match=r"no image (with idx 9|named 'gone.png'|named 'og/a.png')"):
        find_images(pets, **asked)  # pyright: ignore[reportArgumentType]


@given(st.text(min_size=1).filter(lambda name: "*" not in name))
def test_any_name_matches_itself_and_its_last_part(name: str) -> None:
    assert pattern(name).search(normalize("NFC", name)) and pattern(name).search(normalize("NFC", f"a/{name}"))
    assert pattern(normalize("NFD", name)).search(normalize("NFC", name))


@given(st.binary())
def test_any_bytes_of_a_file_name_can_be_stored(content: bytes) -> None:
    printable(content.decode("utf-8", "surrogateescape")).encode()


def test_a_set_prepared_before_names_were_kept_is_read_by_idx(tmp_path: Path) -> None:
    dataset = tiny_dataset(tmp_path)
    assert not dataset.card.named
    assert [shown.row.name for shown in find_images(dataset, idx=[1])] == [None]
    assert {name for _, _, name in descriptions(dataset, {0, 1}).values()} == {""}
    with pytest.raises(InputError, match="before names were kept"):
        find_images(dataset, names=["a.png"])


def test_the_ranking_says_names(pets: Dataset) -> None:
    described = descriptions(pets, {0, 2})
    assert described == {0: ("cat", "", "train/cat/a [1].png"), 2: ("dog", "", "train/dog/a.png")}
    (row,) = csv.DictReader(topk_bytes([(0, 3, 1, 2, "0.5", *described[2])]).decode().splitlines())
    assert row["name"] == "train/dog/a.png" and row["label"] == "dog"


def test_the_terminal_says_names_or_idx_alone() -> None:
    top = [[number, 0.5] for number in range(9)]

    def places(name: str, caption: str) -> list[str]:
        return top_places({"top": top, "names": [name] * 9, "captions": [caption] * 9}).split("\n")

    assert places("[x].png", "") == [f"{number} (0.500) [x].png" for number in range(4)]
    assert places("", "") == ["0 (0.500)  1 (0.500)  2 (0.500)  3 (0.500)"]
    assert places("x.png", "a\n cat\x1b[31m")[0] == "0 (0.500) x.png  a cat[31m"
    assert places("", "cat")[1] == "1 (0.500) cat" and places("", "x" * 70)[0] == f"0 (0.500) {'x' * 59}…"


@pytest.mark.parametrize("name", ["[x]", "[/x]", "[bold]", "a::b", "100%", "a b"])
def test_paths_of_any_kind_are_printed_as_they_are(name: str) -> None:
    paths = {"scores": f"{name}/scores.parquet", "topk": f"{name}/topk.csv"}
    item = {"item": 0, "idx": 3, "top": [[1, 0.5]], "names": [f"{name}.png"], "captions": ["[/]"]}
    console = Console(file=StringIO(), width=200)
    document = {"attributions": {"mucs": {**paths, "items": [item]}}, "report": f"{name}/report.html"}
    show_answer(console, document, ())
    told = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert all(path in told for path in (*paths.values(), f"{name}.png", f"{name}/report.html"))


@pytest.mark.parametrize("name", ["[x]", "[/x]", "a::b", "a%20b"])
def test_an_error_says_paths_as_they_are(name: str, tmp_path: Path) -> None:
    for arguments in (["prepare", "folder", "--source", f"{tmp_path}/{name}"], ["show", f"{tmp_path}/{name}"]):
        told = CliRunner().invoke(app, ["data", *arguments])
        assert told.exit_code == 2 and f"{tmp_path}/{name}" in told.stderr, told.output
        assert len(told.stderr.splitlines()) == 1


def test_the_command_prints_and_draws(pets: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "sheet.png"
    told = CliRunner().invoke(app, ["data", "show", pets.url, "--name", "a [1].png", "--idx", "2", "--out", str(out)])
    assert told.exit_code == 0, told.output
    first, second, last = told.output.splitlines()
    assert first.startswith("idx 0  train/cat/a [1].png  train  cat  12 x 8 px  sha256 ")
    assert second.startswith("idx 2  train/dog/a.png") and last.endswith("sheet.png")
    drawn = Image.open(out)
    assert drawn.getpixel((10, 10)) == (0, 0, 0) and drawn.getpixel((6 + 96 + 6 + 5, 10)) == (100, 0, 0)


def test_a_sheet_has_rows(pets: Dataset) -> None:
    one, many = sheet(find_images(pets, idx=[0]), 8), sheet(find_images(pets, idx=[0]) * 9, 8)
    assert many.width == one.width + 7 * (96 + 6) and many.height == one.height + 96 + 14 + 6
