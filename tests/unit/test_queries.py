"""Pictures of the user's, by name and content."""

import json
import shutil
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.numpy import save_file
from typer.testing import CliRunner

from mucs_ray.cli.app import app
from mucs_ray.data.queries import (
    class_number,
    find_queries,
    from_json,
    prompt_line,
    read_picture,
    read_tensor,
    to_json,
    with_class,
    with_own_prompt,
)
from mucs_ray.data.table import Card
from mucs_ray.errors import InputError


def picture(path: Path, width: int = 8, height: int = 8, *, seed: int = 0) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels.transpose(2, 0, 1)


def test_a_query_is_its_content(tmp_path: Path):
    picture(tmp_path / "a.png", seed=1)
    picture(tmp_path / "b.png", seed=2)
    shutil.copy(tmp_path / "a.png", tmp_path / "copy.png")
    a, b, copy = (str(tmp_path / name) for name in ("a.png", "b.png", "copy.png"))
    first, second = find_queries([a, b]), find_queries([b, copy])
    assert [query.idx for query in first] == sorted(query.idx for query in first)
    assert [query.idx for query in first] == [query.idx for query in second]
    digest = sha256((tmp_path / "a.png").read_bytes()).digest()
    (query,) = find_queries([a])
    assert query.idx == int.from_bytes(digest[:8], "big") // 2 and query.digest == digest.hex()
    with pytest.raises(InputError, match=r"copy\.png and .*a\.png are the same picture, or have the same number"):
        find_queries([a, copy])


def test_pictures_are_read_as_training_images_are(tmp_path: Path):
    pixels = picture(tmp_path / "square.png")
    (query,) = find_queries([str(tmp_path / "square.png")])
    exact = read_picture(query, 8)
    assert np.array_equal(exact.pixels, pixels) and not exact.was_resized

    pixels = picture(tmp_path / "wide.png", width=12)
    (query,) = find_queries([str(tmp_path / "wide.png")])
    cut = read_picture(query, 8)
    assert np.array_equal(cut.pixels, pixels[:, :, 2:10]) and cut.was_resized and cut.original == (12, 8)

    picture(tmp_path / "large.png", width=16, height=16)
    (query,) = find_queries([str(tmp_path / "large.png")])
    assert read_picture(query, 8).pixels.shape == (3, 8, 8) and read_picture(query, 8).was_resized


def test_tensors(tmp_path: Path):
    z = np.linspace(-2, 2, 12, dtype=np.float32).reshape(3, 2, 2)
    np.save(tmp_path / "z.npy", z.astype(np.float64))
    save_file({"image": z, "condition": np.zeros(3, np.float32)}, tmp_path / "z.safetensors")
    for name in ("z.npy", "z.safetensors"):
        (query,) = find_queries([str(tmp_path / name)])
        assert query.is_tensor and np.array_equal(read_tensor(query), z)
    np.save(tmp_path / "nan.npy", np.full(3, np.nan))
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    np.save(tmp_path / "picture.npy", np.zeros((3, 2, 2), np.uint8))
    save_file({"one": z, "other": z}, tmp_path / "two.safetensors")
    (tmp_path / "text.npy").write_text("no")
    for name, message in {
        "nan.npy": "expected finite floats", "objects.npy": "not a readable npy", "text.npy": "not a readable npy",
        "two.safetensors": "expected a tensor z or latents or image",
        "picture.npy": "expected finite floats.*found uint8 .save a picture as PNG",
    }.items():  # fmt: skip
        with pytest.raises(InputError, match=message):
            read_tensor(find_queries([str(tmp_path / name)])[0])


def test_a_folder_with_metadata(tmp_path: Path):
    picture(tmp_path / "in" / "one.png", seed=1)
    picture(tmp_path / "two.png", seed=2)
    lines = [
        {"file_name": "in\\one.png", "label": 2, "seed": 42},
        {"file_name": "two.png", "text": "a\u2028cat", "steps": 30},
    ]
    text = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n\n"
    (tmp_path / "metadata.jsonl").write_bytes(text.encode("utf-16"))
    by_name = {Path(query.name).name: query for query in find_queries([], str(tmp_path))}
    assert by_name["one.png"].label == "2" and by_name["one.png"].settings == {"seed": 42}
    assert by_name["two.png"].prompt == "a\u2028cat" and by_name["two.png"].settings == {"steps": 30}
    (tmp_path / "metadata.jsonl").rename(tmp_path / "metadata.csv")
    with pytest.raises(InputError, match=r"read from metadata\.jsonl; found metadata\.csv"):
        find_queries([], str(tmp_path))
    (tmp_path / "metadata.csv").unlink()
    lines = []
    find_queries([], str(tmp_path), tell=lines.append)
    assert lines == [f"--queries {tmp_path}: 1 files or folders are passed over, e.g. in"]
    with pytest.raises(InputError, match="no such folder"):
        find_queries([], str(tmp_path / "no"))
    assert [Path(query.name).name for query in find_queries([], str(tmp_path))] == ["two.png"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"file_name": "../x.png"}', "line 1: file_name '../x.png' leaves the folder"),
        ('{"file_name": "/etc/x.png"}', "leaves the folder"),
        ('{"file": "x.png"}', 'line 1: expected an object with "file_name"'),
        ('{"file_name": "x.png", "promt": "a"}', "line 1: unknown key promt; known: caption, "),
        ("{", "line 1: not JSON"),
        ("", "expected 1 to 10,000 pictures; found 0"),
        ('{"file_name": "x.png", "prompt": "a", "text": "b"}', "line 1: prompt and text differ"),
        ('{"file_name": "x.png"}', "x.png: there is no such file"),
    ],
)
def test_metadata_that_is_not_understood(tmp_path: Path, line: str, message: str):
    (tmp_path / "metadata.jsonl").write_text(line)
    with pytest.raises(InputError, match=message):
        find_queries([], str(tmp_path))


@pytest.mark.parametrize(
    ("images", "more", "message"),
    [
        (["absent.png"], {}, "absent.png: there is no such file"),
        (["weights.pt"], {}, r"expected a file that ends in \.jpg"),
        (["idx:x"], {}, "expected idx:N"),
        (["idx:3"], {"label": "cat"}, "has its own condition"),
        ([], {}, "give --image FILE or --queries FOLDER"),
    ],
)
def test_names_that_are_no_query(images: list[str], more: dict[str, str], message: str):
    with pytest.raises(InputError, match=message):
        find_queries(images, **more)


def test_a_file_that_changed_or_went_is_told(tmp_path: Path):
    picture(tmp_path / "a.png")
    (query,) = find_queries([str(tmp_path / "a.png")])
    picture(tmp_path / "a.png", seed=5)
    with pytest.raises(InputError, match="was changed meanwhile"):
        read_picture(query, 8)
    (tmp_path / "a.png").unlink()
    with pytest.raises(InputError, match="not there any more"):
        read_picture(query, 8)
    (tmp_path / "a.png").write_text("no picture")
    (query,) = find_queries([str(tmp_path / "a.png")])
    with pytest.raises(InputError, match="not a readable image"):
        read_picture(query, 8)


def test_the_prompt_in_a_file_stands_for_a_caption_that_nobody_named(tmp_path: Path):
    info = PngInfo()
    info.add_text("parameters", "a [red] fox\nSteps: 20, Sampler: Euler a, Seed: 5")
    Image.new("RGB", (4, 4)).save(tmp_path / "fox.png", pnginfo=info)
    name = str(tmp_path / "fox.png")
    (query,), (own,) = find_queries([name]), find_queries([name], prompt="a cat")
    assert query.prompt is None and query.settings == {} and query.embedded["seed"] == 5
    assert from_json(json.loads(json.dumps(to_json([query])))) == (query,)

    def card(condition: str) -> Card:
        return Card(name="x", source="x", licence="x", size=8, condition=condition, condition_dim=768, shards=())  # pyright: ignore[reportArgumentType]

    taken = with_own_prompt(query, card("embedding"), conditional=True)
    assert taken.prompt == "a [red] fox" and taken.reads() != query.reads() and taken.idx == query.idx
    assert with_own_prompt(own, card("embedding"), conditional=True).prompt == "a cat"
    assert with_own_prompt(query, card("label"), conditional=True).prompt is None
    assert with_own_prompt(query, card("embedding"), conditional=False).prompt is None
    assert prompt_line([taken, taken]).startswith(f"{name} (and those of 1 more pictures): no caption was named")


def test_several_seeds_explain_no_pictures():
    told = CliRunner().invoke(app, ["run", "--dataset", "emoji", "--seeds", "1..2", "--image", "idx:1"])
    assert told.exit_code == 2 and "--seeds: pictures are explained by the model of one run" in told.stderr


def test_conditions(tmp_path: Path):
    picture(tmp_path / "a.png")
    name = str(tmp_path / "a.png")

    def card(condition: str, *classes: str) -> Card:
        return Card(
            name="x", source="x", licence="x", size=8, condition=condition, condition_dim=3,  # pyright: ignore[reportArgumentType]
            classes=classes, shards=(),
        )  # fmt: skip

    def number(label: str | None, *classes: str) -> int | None:
        named = with_class(find_queries([name], label=label)[0], card("label", *classes), conditional=True).label
        return None if named is None else class_number(named, card("label", *classes))

    assert number(None, "a", "b", "c") is None and number("", "a", "b", "c") is None
    assert (number("b", "a", "b", "c"), number("B", "a", "b", "c"), number("2", "a", "b", "c")) == (1, 1, 2)
    assert number("0", "1", "0", "c") == 1  # a name goes before a number
    for label, message in {"3": "no class '3'", "catt": "did you mean cat?", "x": "expected one of cat, dog"}.items():
        with pytest.raises(InputError, match=message):
            number(label, "cat", "dog", "CAT")
    with pytest.raises(InputError, match="no class 'Cat'"):  # two classes differ by capitals only
        number("Cat", "cat", "dog", "CAT")
    labelled = find_queries([name], label="cat")[0]
    with pytest.raises(InputError, match="has no captions"):
        with_class(find_queries([name], prompt="a cat")[0], card("label", "cat"), conditional=True)
    for data, conditional in ((card("none"), True), (card("label", "cat"), False)):
        with pytest.raises(InputError, match="has no classes"):
            with_class(labelled, data, conditional=conditional)
