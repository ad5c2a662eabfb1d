"""Bad input gives exit code 2 and one line: what was expected, what was found and what to do. Nothing is written."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from mucs_ray.cli.app import app
from mucs_ray.data.table import Dataset
from mucs_ray.models.dit import DiT
from mucs_ray.store import checkpoint
from mucs_ray.store.weights import model_facts
from tiny import tiny_dataset, tiny_recipe, tiny_toml


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    return tiny_dataset(tmp_path / "data")


@pytest.fixture
def recipe(tmp_path: Path, data: Dataset) -> str:
    """Write TINY as a recipe file and return its path."""
    path = tmp_path / "tiny.toml"
    path.write_text(tiny_toml(data.url))
    return str(path)


def refused(*arguments: str, code: int = 2) -> str:
    """Run a command that must be refused, and return its one line."""
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, result.output
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.output
    return lines[0]


def test_no_data_set_named():
    assert "--dataset" in refused("attribute")


def test_missing_data_set(tmp_path: Path):
    line = refused("attribute", "--dataset", str(tmp_path / "nowhere"))
    assert "no data set at" in line and "card.json" in line and "mucs-ray data prepare" in line


def test_unprepared_named_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert "data/coco" in refused("attribute", "--dataset", "coco", "--items", "20")
    assert not list(tmp_path.iterdir())


def test_broken_card(data: Dataset):
    Path(data.url, "card.json").write_text("{")
    assert "card.json" in refused("attribute", "--dataset", data.url)


def test_wrong_shape(recipe: str, tmp_path: Path):
    line = refused("attribute", "--recipe", recipe, "--set", "model.image_size=16", "--run", str(tmp_path / "run"))
    assert "16" in line and "8 px" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("score.nioses=3", "did you mean score.noises?"),
        ("nonsense.key=1", "nonsense"),
        ("train.updates=many", "train.updates"),
        ("score", "section.key=value"),
        ("rank.top_percent=0", "rank.top_percent"),
        ("rank.top_percent=101", "rank.top_percent"),
        ("generate.items=0", "generate.items"),
        ("generate.items=5000", "conditions"),
        ("model.width=18", "width"),
        ("train.batch_size=0", "batch_size"),
        ("train.batch_size=64", "60 training images are fewer than one batch of 64"),
    ],
)
def test_settings(recipe: str, tmp_path: Path, setting: str, expected: str):
    line = refused("attribute", "--recipe", recipe, "--set", setting, "--run", str(tmp_path / "run"))
    assert expected in line
    assert not (tmp_path / "run").exists()


def test_items_out_of_range(recipe: str):
    assert "conditions" in refused("generate", "--recipe", recipe, "--items", "13")


def test_unknown_recipe_and_method(recipe: str):
    assert "known: " in refused("attribute", "--recipe", "cifar11")
    assert "mucs" in refused("attribute", "--recipe", recipe, "--method", "magic")


def test_unwritable_run_directory(recipe: str, tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    line = refused("attribute", "--recipe", recipe, "--run", str(tmp_path / "file" / "run"))
    assert "cannot be written" in line and "--run" in line


def test_status_of_no_run(tmp_path: Path):
    assert "recipe.json" in refused("status", "--run", str(tmp_path))


def test_missing_weights(recipe: str, tmp_path: Path):
    assert "no weights at" in refused("attribute", "--recipe", recipe, "--weights", str(tmp_path / "none.ckpt"))


def test_corrupt_weights(recipe: str, tmp_path: Path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00 not a header")
    assert "safetensors" in refused("attribute", "--recipe", recipe, "--weights", str(path))


def test_weights_of_another_architecture(recipe: str, tmp_path: Path):
    path = tmp_path / "weights.safetensors"
    save_file({"conv.weight": torch.zeros(3, 3)}, path)
    assert "missing" in refused("attribute", "--recipe", recipe, "--weights", str(path))


def test_weights_for_other_images(recipe: str, tmp_path: Path):
    config = tiny_recipe("x", model={"image_size": 16}).model
    path = str(tmp_path / "weights.safetensors")
    checkpoint.save(path, DiT(config).state_dict(), model_facts(config))
    line = refused("attribute", "--recipe", recipe, "--weights", path, "--run", str(tmp_path / "run"))
    assert "16" in line and "8 px" in line


def test_prepare_without_a_source(tmp_path: Path):
    refused("data", "prepare", "cifar10", "--out", str(tmp_path / "out"))
    assert "did you mean emoji" in refused("data", "prepare", "emojis", "--out", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_prepare_over_something_else(tmp_path: Path, data: Dataset):
    before = Path(data.url, "card.json").read_bytes()
    assert "--out" in refused("data", "prepare", "emoji", "--out", data.url)
    assert Path(data.url, "card.json").read_bytes() == before


def test_unknown_option_is_a_usage_error():
    result = CliRunner().invoke(app, ["attribute", "--no-such-option"])
    assert result.exit_code == 2


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hide all weights of similarity metrics."""
    for name in ("MUCS_RAY_WEIGHTS", "MUCS_RAY_CLIP_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


def test_similarity_metrics(recipe: str, tmp_path: Path, bare: None):
    """The weights of a metric that is asked for by name must exist; this is checked before anything is trained."""
    command = ("evaluate", "--recipe", recipe, "--run", str(tmp_path / "run"))
    assert "unknown metric fid; choose from ssim" in refused(*command, "--set", 'evaluate.metrics=["fid"]')
    line = refused(*command, "--set", 'evaluate.metrics=["mse", "sscd"]', code=3)
    assert "sscd_disc_mixup.torchscript.pt" in line and "--weights-dir" in line
    assert "SSIM needs images of 12 px" in refused(*command, "--set", 'evaluate.metrics=["ssim"]')
    assert "nowhere" in refused(*command, "--weights-dir", str(tmp_path / "nowhere"), code=3)
    assert not (tmp_path / "run" / "pretrain").exists()


def test_imported_weights_have_no_counterfactual(recipe: str, tmp_path: Path):
    config = tiny_recipe("x").model
    path = str(tmp_path / "weights.safetensors")
    checkpoint.save(path, DiT(config).state_dict(), model_facts(config))
    line = refused("evaluate", "--recipe", recipe, "--weights", path, "--run", str(tmp_path / "run"))
    assert "evaluate needs a model trained in this run" in line


def test_seeds(recipe: str, tmp_path: Path):
    command = ("run", "--recipe", recipe, "--run", str(tmp_path / "run"))
    assert "--seeds 'one'" in refused(*command, "--seeds", "one")
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.json").write_text("{}")
    assert "holds a run of one seed" in refused(*command, "--seeds", "1..2")
    (tmp_path / "run" / "recipe.json").unlink()
    (tmp_path / "run" / "experiment.json").write_text('{"seeds": [1, 2]}')
    assert "holds the runs of several seeds" in refused(*command, "--set", 'evaluate.metrics=["mse"]')
    assert "has begun" in refused("status", "--run", str(tmp_path / "run"))


@pytest.mark.parametrize("price", ["0", "-2.5", "nan"])
def test_a_price_that_is_none(recipe: str, tmp_path: Path, price: str):
    line = refused("plan", "--recipe", recipe, "--run", str(tmp_path / "run"), "--price", price)
    assert f"--price {price}: expected a number above 0" in line


def test_an_address_where_no_cluster_answers(recipe: str, tmp_path: Path):
    """The command is refused at once, while Ray itself tries for a quarter of an hour."""
    options = ("--recipe", recipe, "--run", str(tmp_path / "run"), "--address", "127.0.0.1:9")
    assert "no Ray cluster answers at 127.0.0.1:9" in refused("pretrain", *options, code=3)
