"""The documentation names only what there is, and its examples run."""

import ast
import importlib
import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import typer

from mucs_ray.cli import app
from mucs_ray.config import Recipe, build
from mucs_ray.data.prepare import prepare
from mucs_ray.data.sources import registry
from mucs_ray.weights import load_weights

ROOT = Path(__file__).parents[2]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", ROOT / "CHANGELOG.md"]
PAGES.append(ROOT / "cluster/README.md")


REFERENCE = re.compile(r"`((?:tests|mucs_ray)/[\w/]+\.py):{1,2}([\w.]+)`")
PATH = re.compile(
    r"`((?:mucs_ray|tests|docs|cluster|benchmarks)/[\w./-]*|[A-Z]+\.md|cli\.py|pyproject\.toml|\.ci/run)`"
)


@cache
def defined(file: str) -> set[str]:
    """Names at the top of a file, and those in its classes as Class.name."""
    tree = ast.parse((ROOT / file).read_text())
    return set(names_in(tree.body, ""))


def names_in(body: list[ast.stmt], prefix: str) -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield prefix + node.name
        if isinstance(node, ast.ClassDef):
            yield from names_in(node.body, f"{prefix}{node.name}.")


def absent(text: str) -> list[str]:
    """References of a page to which there is nothing."""
    missing = [path for path in PATH.findall(text) if not (ROOT / path).exists()]
    for file, name in REFERENCE.findall(text):
        if not (ROOT / file).is_file() or name not in defined(file):
            missing.append(f"{file}:{name}")
    return missing


def block(page: str, language: str, containing: str) -> str:
    """The one code block of a page that contains a text."""
    found = re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / page).read_text(), flags=re.DOTALL)
    (only,) = [each for each in found if containing in each]
    return only


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_is_there(page: Path):
    assert absent(page.read_text()) == []


def test_the_check_can_fail():
    text = "`docs/none.md` `mucs_ray/cli.py:no_such` `tests/unit/test_docs.py::test_no` `mucs_ray/none.py:x`"
    assert len(absent(text)) == 4
    assert absent("`mucs_ray/cli.py:work` `mucs_ray/data/table.py:Dataset.batch` `docs/promises.md`") == []


@pytest.mark.parametrize(("page", "least"), [("paper-to-code.md", 100), ("promises.md", 25)])
def test_references_are_written_so_that_they_are_checked(page: str, least: int):
    text = (ROOT / "docs" / page).read_text()
    assert len(REFERENCE.findall(text)) >= least
    assert len(re.findall(r"\.py:", text)) == len(REFERENCE.findall(text))


def test_every_spec_number_of_the_code_has_a_title():
    titles = {number for row in re.findall(r"^\| (\d[\d.]*) \| (.+) \|$", page_of_numbers(), re.MULTILINE)
              for number in [row[0], *re.findall(r"\b7\.\d", row[1])]}  # fmt: skip
    used: set[str] = set()
    for folder in ("mucs_ray", "tests"):
        for file in (ROOT / folder).rglob("*.py"):
            for numbers in re.findall(r"spec (\d+(?:\.\d)?(?:(?:, | and )\d+(?:\.\d)?)*)", file.read_text()):
                used |= set(re.findall(r"\d+(?:\.\d)?", numbers))
    assert {"7.2", "18"} <= used
    assert {number for number in used if number not in titles and f"{number}.1" not in titles} == set()


def page_of_numbers() -> str:
    return (ROOT / "docs/paper-to-code.md").read_text()


def commands() -> list[str]:
    """Every line of a shell example that calls us."""
    lines = [line for page in PAGES for code in re.findall(r"```sh\n(.*?)```", page.read_text(), flags=re.DOTALL)
             for line in code.splitlines()]  # fmt: skip
    calls = [re.split(r"^mucs-ray |python cli\.py ", line, maxsplit=1) for line in lines]
    return [call[1] for call in calls if len(call) == 2]


def test_commands_and_their_options_are_there():
    assert len(commands()) >= 6
    for line in commands():
        command, words = typer.main.get_command(app), shlex.split(line, comments=True)
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, line


# --- examples -------------------------------------------------------------------------------------------------------


def recipe_keys() -> set[str]:
    found = set()
    for each in fields(Recipe):
        default = each.default_factory() if callable(each.default_factory) else None
        found |= {f"{each.name}.{f.name}" for f in fields(default)} if is_dataclass(default) else {each.name}
    return found


def test_the_recipe_has_every_key_at_its_default():
    values = tomllib.loads(block("your-own-model.md", "toml", "[engine]"))
    told = {f"{k}.{inner}" for k, v in values.items() if isinstance(v, dict) for inner in v}
    told |= {key for key, value in values.items() if not isinstance(value, dict)}
    assert told == recipe_keys() - {"weights"}
    assert build(values) == build({"name": values["name"], "data": values["data"]})


def test_the_source_of_the_example_is_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "arrays_example.py").write_text(block("your-own-model.md", "python", "def plan"))
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    entry = EntryPoint(name="arrays", value="arrays_example", group="mucs_ray.sources")
    monkeypatch.setattr(registry, "entry_points", lambda *, group: [entry] if group == entry.group else [])
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (40, 3, 8, 8), dtype=np.uint8), rng.permutation(np.arange(40) % 4)
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in/images.npy", images)
    np.save(tmp_path / "in/labels.npy", labels)

    dataset = prepare("arrays", where=str(tmp_path / "in"), out=str(tmp_path / "out"), size=None)
    card = dataset.card
    assert (card.name, card.size, card.condition, card.classes) == ("arrays", 8, "label", ("0", "1", "2", "3"))
    assert card.num_images("train") + card.num_images("test") == 40 and card.num_images("test") > 0
    rows = [row for split in ("train", "test") for row in dataset.find(set(range(40)), split).values()]
    assert sorted(row.idx for row in rows) == list(range(40))
    pictures = {image.tobytes(): int(label) for image, label in zip(images, labels, strict=True)}
    assert [pictures[row.image.tobytes()] for row in rows] == [row.label for row in rows]


def test_the_weights_of_the_example_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(block("your-own-model.md", "python", "model_facts"), names)
    loaded = load_weights("weights.safetensors")
    assert loaded.config == names["config"]
    own = names["network"].state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in loaded.state_dict().items())


@pytest.mark.parametrize("library", ["pyarrow", "duckdb", "polars"])
def test_scores_are_read_in_three_lines(library: str, tmp_path: Path):
    pytest.importorskip(library)
    scores = np.random.default_rng(0).uniform(-1, 1, (30, 2)).astype(np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(scores.reshape(-1)), 2)
    pq.write_table(pa.table({"idx": np.arange(100, 130), "score": column}), tmp_path / "scores.parquet")
    program = block("run-directory.md", "python", f"import {library}")
    assert len(program.splitlines()) == 3
    path = "runs/demo/attribute/mucs/scores.parquet"
    assert path in program
    names: dict[str, object] = {}
    exec(program.replace(path, str(tmp_path / "scores.parquet")), names)
    expected = (100 + np.argsort(-scores[:, 0])[:10]).tolist()
    if library == "pyarrow":
        assert [idx for _, idx in names["top"]] == expected
    elif library == "duckdb":
        assert [idx for idx, _ in names["top"].fetchall()] == expected
    else:
        assert names["top"]["idx"].to_list() == expected
