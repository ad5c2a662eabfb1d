"""The documentation names only things that exist, and its examples run."""

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

from mucs_ray.attribution.base import MethodContext
from mucs_ray.attribution.cards.retrain import RETRAINED
from mucs_ray.attribution.registry import METHODS, find_method, installed_methods
from mucs_ray.attribution.unlearn import draw_losses
from mucs_ray.cli.app import app
from mucs_ray.config.recipe import Recipe, build
from mucs_ray.data.prepare import prepare
from mucs_ray.data.sources import registry
from mucs_ray.diffusion.batch import Batch, Item
from mucs_ray.diffusion.noise import generator, normal
from mucs_ray.models.adapters import adapter
from mucs_ray.models.dit_edm import DiTEDM
from mucs_ray.store.weights import load_weights
from tiny import lively, tiny_dataset, tiny_recipe
from tiny import rows as tiny_rows

ROOT = Path(__file__).parents[2]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", ROOT / "CHANGELOG.md"]
PAGES.append(ROOT / "cluster/README.md")


REFERENCE = re.compile(r"`((?:tests|mucs_ray)/[\w/]+\.py):{1,2}([\w.]+)`")
PATH = re.compile(
    r"`((?:mucs_ray|tests|docs|cluster|benchmarks)/[\w./-]*|[A-Z]+\.md|cli\.py|pyproject\.toml|\.ci/run)`"
)


@cache
def defined(file: str) -> set[str]:
    """Return the names at the top level of a file, and those in its classes as Class.name."""
    tree = ast.parse((ROOT / file).read_text())
    return set(names_in(tree.body, ""))


def names_in(body: list[ast.stmt], prefix: str) -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield prefix + node.name
        if isinstance(node, ast.ClassDef):
            yield from names_in(node.body, f"{prefix}{node.name}.")


def absent(text: str) -> list[str]:
    """Return the references of a page to things that do not exist."""
    missing = [path for path in PATH.findall(text) if not (ROOT / path).exists()]
    for file, name in REFERENCE.findall(text):
        if not (ROOT / file).is_file() or name not in defined(file):
            missing.append(f"{file}:{name}")
    return missing


def block(page: str, language: str, containing: str) -> str:
    """Return the one code block of a page that contains a text."""
    blocks = re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / page).read_text(), flags=re.DOTALL)
    (only,) = [each for each in blocks if containing in each]
    return only


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_is_there(page: Path):
    assert absent(page.read_text()) == []


def test_the_check_can_fail():
    text = "`docs/none.md` `mucs_ray/cli/app.py:no_such` `tests/unit/test_docs.py::test_no` `mucs_ray/none.py:x`"
    assert len(absent(text)) == 4
    assert absent("`mucs_ray/cli/app.py:work` `mucs_ray/data/table.py:Dataset.batch` `docs/promises.md`") == []


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
    """Return every line of the shell examples that calls mucs-ray."""
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
    keys = set()
    for each in fields(Recipe):
        default = each.default_factory() if callable(each.default_factory) else None
        if each.name == "method":
            keys |= {f"method.{name}.{f.name}" for name, own in default.items() for f in fields(own)}
            continue
        keys |= {f"{each.name}.{f.name}" for f in fields(default)} if is_dataclass(default) else {each.name}
    return keys


def test_the_recipe_has_every_key_at_its_default():
    values = tomllib.loads(block("your-own-model.md", "toml", "[engine]"))
    sections = values | {f"method.{name}": own for name, own in values["method"].items()}
    del sections["method"]
    documented = {f"{k}.{inner}" for k, v in sections.items() if isinstance(v, dict) for inner in v}
    documented |= {key for key, value in sections.items() if not isinstance(value, dict)}
    assert documented == recipe_keys() - {"weights", "finetune.base", "ensemble.learned_from", "score.lowest_sigma"}
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


def log_losses_by_hand(denoiser: DiTEDM, image: torch.Tensor, condition: torch.Tensor, seed: int) -> torch.Tensor:
    """Return log mean (D(x + s n) - x)^2 (s^2 + 1/4) / (s / 2)^2 at the largest 4 of floor(4 / 0.7) = 5 levels."""
    ends = 80 ** (1 / 7), 0.002 ** (1 / 7)
    levels = [(ends[0] + step / 4 * (ends[1] - ends[0])) ** 7 for step in range(4)]
    losses = []
    for sigma, noise in zip(levels, normal(generator(seed, "profile"), 4, *image.shape), strict=True):
        denoised = denoiser((image + sigma * noise)[None], torch.tensor([sigma]), {"condition": condition[None]})[0]
        losses.append((denoised - image).square().mean() * (sigma**2 + 0.25) / (sigma / 2) ** 2)
    return torch.stack(losses).log()


def test_the_method_of_the_example_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The hooks run one by one, each in its own worker, as `mucs-ray attribute --method my_method:MyMethod` does it."""
    code = block("your-own-method.md", "python", "class MyMethod")
    assert len([line for line in code.splitlines() if line.strip()]) <= 36
    (tmp_path / "my_method.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    method = find_method("my_method:MyMethod")
    assert method.name == "my_method:MyMethod"
    recipe = tiny_recipe("nowhere", score={"noises": 4, "keep": 0.7})
    made, f1 = tiny_rows(5, first_idx=10, seed=4), lively(recipe.model)
    images = Batch(
        idx=torch.tensor([row.idx for row in made]),
        z=torch.from_numpy(np.stack([row.image for row in made])).float() / 127.5 - 1,
        condition={"condition": torch.eye(3)[[row.label for row in made]]},
    )
    drawn = normal(generator(9, "item"), 3, 8, 8)
    items = [
        Item(number=0, idx=70, condition={"condition": torch.eye(3)[2]}, z=drawn),
        Item(number=1, idx=71, condition={"condition": torch.eye(3)[made[3].label]}, z=images.z[3]),
    ]
    features, score = method.stages
    context = {"settings": recipe, "device": torch.device("cpu"), "num_images": 5, "denoiser": f1}
    assert (features.uses_items, score.uses_items) == (False, True)
    attributor = method.load()
    table = attributor(MethodContext(**context)).features(images)
    scorer = attributor(MethodContext(**context, items=items))
    scorer.load({}, [{}, {}])
    scores = scorer.columns({"idx": images.idx, **table})["score"]

    pairs = zip(images.z, images.condition["condition"], strict=True)
    of_images = torch.stack([log_losses_by_hand(f1, *each, recipe.seed) for each in pairs])
    of_items = [log_losses_by_hand(f1, item.z.clamp(-1, 1), item.condition["condition"], recipe.seed) for item in items]
    expected = torch.stack([-(of_images - each).square().mean(dim=1) for each in of_items], dim=1)
    torch.testing.assert_close(scores, expected, rtol=1e-3, atol=1e-4)
    assert scores[3, 1] == 0 and scores[:, 1].argmax() == 3


def test_a_method_of_an_installed_package_is_known_by_its_entry_point(monkeypatch: pytest.MonkeyPatch):
    section, line = block("your-own-method.md", "toml", "entry-points").strip().splitlines()
    assert section == '[project.entry-points."mucs_ray.methods"]'
    assert line == 'profile = "my_package.my_method:MyMethod"'
    entry = EntryPoint(name="profile", value="mucs_ray.attribution.pixel:Pixel", group="mucs_ray.methods")
    monkeypatch.setattr(
        "mucs_ray.attribution.registry.entry_points", lambda *, group: [entry] if group == entry.group else []
    )
    installed_methods.cache_clear()
    try:
        assert find_method("profile").label == "Pixel"
    finally:
        installed_methods.cache_clear()


def test_the_page_of_methods_names_all_of_them_and_no_other():
    page = (ROOT / "docs/methods.md").read_text()
    rows = re.findall(r"^\| ((?:`[\w./=-]+`(?:, )?)+) \|", page, flags=re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    assert sorted(name for name in named if "." not in name.split("=")[0]) == sorted([*METHODS, *RETRAINED])


def test_settings_of_variants_on_the_page_are_those_of_the_registry():
    page = (ROOT / "docs/methods.md").read_text()
    for name, method in METHODS.items():
        for key, value in () if method.is_ensemble else method.settings.items():
            shown = str(value).lower() if isinstance(value, bool) else str(value)
            (row,) = [line for line in page.splitlines() if line.startswith(f"| `{name}` |") and "=" in line]
            assert f"{key} = {shown}" in row, name
        for member, weight in method.weights.items():
            (row,) = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
            assert f"{member} {weight:g}" in row


def test_the_weights_of_the_example_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(block("your-own-model.md", "python", "model_facts"), names)
    spec, loaded = load_weights("weights.safetensors")
    assert spec == names["config"]
    own = names["network"].state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in loaded.items())


def test_the_network_of_the_example_is_attributed_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "grey.py").write_text(block("your-own-model.md", "python", "class Grey(Adapter)"))
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    recipe = build(tomllib.loads(block("your-own-model.md", "toml", "grey:Grey")))
    assert recipe.to_dict()["model"] == {"kind": "grey:Grey", "size": 8, "width": 64}
    kind, device = adapter(recipe.model), torch.device("cpu")
    dataset, model, codec = tiny_dataset(tmp_path / "data"), kind.model(device), kind.codec(device)
    batch = dataset.batch(next(dataset.stream("train")), codec)
    assert batch.z.shape[1:] == model.shape
    pictures = codec.decode(codec.shown(batch.z))
    assert pictures.shape[1:] == (3, 8, 8) and 0 <= pictures.min() <= pictures.max() <= 1
    losses = draw_losses(model, batch.z, batch.condition, seed=1, name="example")
    assert losses.shape == (len(batch),) and losses.isfinite().all()
    assert {*model.names("mlp")} < {*model.names("all")} == {name for name, _ in model.network.named_parameters()}


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
