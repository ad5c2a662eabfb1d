"""The registry finds methods that are built in, installed, or named by MODULE:CLASS."""

import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mucs_ray.attribution import registry
from mucs_ray.attribution.cards.retrain import RETRAINED
from mucs_ray.attribution.mucs import MUCS
from mucs_ray.attribution.registry import METHODS, all_methods, available_methods, find_method
from mucs_ray.cli.app import app
from mucs_ray.errors import InputError

MINE = """
from mucs_ray.attribution.base import Attributor
from mucs_ray.attribution.card import MethodCard

class Mine(Attributor):
    card = MethodCard(name="mine", label="Mine", summary="nothing yet")

    def score(self, rows):
        return rows.image.mean(dim=(1, 2, 3))[:, None]

class Lacking(Attributor):
    pass

class Other:
    pass
"""


@pytest.fixture(autouse=True)
def a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put `mine` on the path, and let the registry remember nothing before and after."""
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "broken.py").write_text("raise ValueError('half of it')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for remembered in (registry.installed_methods, registry.import_method):
        remembered.cache_clear()
    yield
    for remembered in (registry.installed_methods, registry.import_method):
        remembered.cache_clear()
    sys.modules.pop("mine", None)


def install(monkeypatch: pytest.MonkeyPatch, **points: str) -> None:
    actual = [EntryPoint(name=name, value=value, group=registry.ENTRY_POINTS) for name, value in points.items()]
    monkeypatch.setattr(registry, "entry_points", lambda *, group: actual if group == registry.ENTRY_POINTS else [])


def test_by_module_and_class():
    method = find_method("mine:Mine")
    assert (method.name, method.label, method.summary) == ("mine:Mine", "Mine", "nothing yet")
    assert available_methods(["mucs", "mine:Mine"])["mine:Mine"].load() is method.load()
    assert "mine:Mine" not in available_methods(["mucs"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mine:None", "mine has no attribute|module 'mine' has no attribute 'None'"),
        ("nowhere:Mine", "ModuleNotFoundError: No module named 'nowhere'"),
        ("broken:Mine", "ValueError: half of it"),
        ("mine:Other", "is not a subclass of mucs_ray.attribution.base.Attributor"),
        ("mine:Lacking", "lacks card, score"),
        ("magic", "unknown method 'magic'; known: random, pixel"),
    ],
)
def test_what_is_no_method_is_one_line(name: str, message: str):
    with pytest.raises(InputError, match=message) as caught:
        find_method(name)
    assert len(str(caught.value).splitlines()) == 1


def test_installed_methods(monkeypatch: pytest.MonkeyPatch):
    """One that cannot be loaded does not hide the others; none replaces a method of the package."""
    install(monkeypatch, theirs="mine:Mine", half="broken:Mine", mucs="mine:Mine")
    assert find_method("theirs").label == "Mine" and all_methods()["theirs"].name == "theirs"
    assert all_methods()["mucs"].load() is find_method("mucs").load() is MUCS
    assert set(all_methods()) == {*METHODS, *RETRAINED, "theirs"}
    with pytest.raises(InputError, match="method broken:Mine: ValueError: half of it"):
        find_method("half")


def test_an_installed_method_is_imported_only_when_it_is_named(monkeypatch: pytest.MonkeyPatch):
    install(monkeypatch, theirs="mine:Mine", half="broken:Mine")
    with pytest.raises(InputError, match=r"unknown method 'magic'; known: .*, theirs, half, or give MODULE:CLASS"):
        find_method("magic")
    assert set(available_methods(["mucs"])) == {*METHODS} and "mine" not in sys.modules
    assert set(available_methods(["theirs"])) == {*METHODS, "theirs"} and "mine" in sys.modules


def test_cost_classes():
    expected = {"random": "none", "pixel": "pass", "clip": "pass", "dtrak": "gradients", "das": "gradients"}
    expected |= {
        "forward-inf": "unlearning",
        "abu": "unlearning",
        "mucs": "unlearning",
        "mucs/linear": "gradients",
        "kfac": "gradients",
        "ensemble/A": "ranks",
    }
    assert {name: METHODS[name].cost_class for name in expected} == expected
    assert all(json_ready(value) for method in METHODS.values() for value in method.facts().values())


def test_the_command_lists_needs_cost_and_source_of_each():
    result = CliRunner().invoke(app, ["methods"])
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    for name, method in all_methods().items():
        (at,) = [at for at, line in enumerate(lines) if line.startswith(f"{name}  {method.cost_class}  ")]
        assert method.summary in lines[at]
        assert lines[at + 1].endswith(f"needs {method.needs}; costs {method.cost}; {method.source}")
        assert all(f"{key}={value}" in lines[at + 1] for key, value in (method.weights or method.settings).items())
    assert any("needs finished tests on other seeds, ensemble.learned_from" in line for line in lines)


def json_ready(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, dict) and all(isinstance(key, str) for key in value))
