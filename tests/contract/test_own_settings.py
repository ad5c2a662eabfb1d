"""A third-party method's settings go from its card to the recipe, the command line, and the fingerprints."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from toys import Brightness, BrightnessConfig
from typer.testing import CliRunner

from mucs_ray.attribution.base import Attributor, MethodContext
from mucs_ray.attribution.card import MethodCard, MethodStage
from mucs_ray.attribution.registry import find_method, import_method
from mucs_ray.cli.app import app
from mucs_ray.config.recipe import Recipe, build, for_method, with_settings
from mucs_ray.config.values import method_settings
from mucs_ray.data.table import Dataset
from mucs_ray.errors import InputError
from mucs_ray.pipeline.graph import Pipeline, reopen
from mucs_ray.run.resolve import resolve
from mucs_ray.storage import join, publish_json
from tiny import TINY, tiny_dataset, tiny_toml

TOY = "toys:Brightness"
STAGES = [f"attribute/{TOY}/features", f"attribute/{TOY}/score", f"attribute/{TOY}"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("data"))


def recipe(*settings: str, data: str = "nowhere", methods: tuple[str, ...] = (TOY,)) -> Recipe:
    return build(with_settings({**TINY, "data": data, "evaluate": {"metrics": ["mse"]}}, settings), methods)


def fingerprints(data: Dataset, *settings: str) -> dict[str, str]:
    """Return the fingerprints of the stages of the toy's attribution."""
    run = Pipeline(recipe=recipe(*settings, data=data.url), dataset=data, run_url="runs/x", console=Console(),
                   methods=(TOY,))  # fmt: skip
    return {name: run.stages[name].fingerprint for name in STAGES}


def test_its_values_reach_the_method():
    assert recipe().method["brightness"] == BrightnessConfig()
    actual = recipe("method.brightness.power=3", "method.brightness.over=maximum")
    assert actual.method["brightness"] == BrightnessConfig(over="maximum", power=3.0)
    method = Brightness(MethodContext(settings=actual, device=torch.device("cpu"), num_images=1))
    assert method.config.power == 3.0


def test_without_its_section_it_runs_by_its_defaults():
    """An installed method that an earlier command has attributed with does so too."""
    plain = recipe(methods=())
    assert "brightness" not in plain.method
    assert for_method(plain, find_method(TOY)).method["brightness"] == BrightnessConfig()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "method.brightness.powr=2",
            "unknown recipe key method.brightness.powr; did you mean method.brightness.power?",
        ),
        ("method.brightness.zzz=2", "unknown recipe key method.brightness.zzz; known: over, power"),
        ("method.brightnes.power=2", "unknown recipe key method.brightnes; did you mean method.brightness?"),
        ("method.brightness.power=-1", "recipe key method.brightness.power: input should be greater than 0; found -1"),
        ("method.brightness.over=median", "recipe key method.brightness.over: "),
        ("method.brightness=5", "recipe key method.brightness: "),
        ("method=5", "recipe key method: expected sections such as [method.mucs]; found 5"),
    ],
)
def test_what_is_wrong_is_one_line(setting: str, message: str):
    with pytest.raises(InputError) as refused:
        recipe(setting)
    assert str(refused.value).startswith(message) and "\n" not in str(refused.value)


def test_its_section_is_known_once_it_is_named():
    with pytest.raises(InputError, match=r"unknown recipe key method.brightness; .*--method MODULE:CLASS"):
        recipe("method.brightness.power=2", methods=("mucs",))


def test_a_changed_value_makes_exactly_the_stages_stale_that_read_it(data: Dataset):
    plain = fingerprints(data)

    def stale(*settings: str) -> list[str]:
        other = fingerprints(data, *settings)
        return [name for name in STAGES if other[name] != plain[name]]

    assert stale("method.brightness.power=3") == STAGES[1:]
    assert stale("method.brightness.over=maximum") == STAGES
    assert stale("method.mucs.ascent_weight=0.7", "method.das.dim=8", "score.noises=9") == []
    assert stale("method.brightness.power=2", "method.brightness.over=mean") == []  # the defaults, written out
    assert fingerprints(data, "method.brightness.power=3") == fingerprints(data, "method.brightness.power=3.0")


def test_a_run_directory_keeps_its_values(data: Dataset, tmp_path: Path):
    changed = recipe("method.brightness.power=3", data=data.url)
    run = Pipeline.open(changed, data, str(tmp_path / "run"), console=Console(file=io.StringIO()), methods=(TOY,))
    publish_json(join(run.run_url, "recipe.json"), run.describe())
    again = reopen(run.run_url, console=run.console)
    assert again.recipe.method == run.recipe.method
    assert [again.stages[name].fingerprint for name in STAGES] == [run.stages[name].fingerprint for name in STAGES]


def test_on_the_command_line(data: Dataset, tmp_path: Path):
    """--method decides which methods' settings --set may name."""
    file = tmp_path / "mine.toml"
    file.write_text(tiny_toml(data.url))
    chosen, _ = resolve(
        dataset=None, recipe=str(file), weights=None, settings=["method.brightness.power=3"], methods=(TOY,),
        console=Console(),
    )  # fmt: skip
    assert chosen.method["brightness"].power == 3.0
    command = ["attribute", "--recipe", str(file), "--run", str(tmp_path / "run"), "--method", TOY]
    refused = CliRunner().invoke(app, [*command, "--set", "method.brightness.powr=3"])
    assert refused.exit_code == 2 and "did you mean method.brightness.power?" in refused.output


@pytest.mark.parametrize(
    ("setting", "now"),
    [
        ("unlearn.ascent_weight=0.3", "unlearn.ascent_weight is now method.mucs.ascent_weight"),
        ("screen.recall=0.9", "screen.recall is now method.mucs/screen.recall"),
        ("forward_inf.updates=3", "forward_inf.updates is now method.forward-inf.updates"),
        ("abu.step=1", "abu.step is now method.abu.step"),
        ("dtrak.dim=8", "dtrak.dim is now method.dtrak.dim"),
        ("das=5", "das is now method.das"),
        ("unlearn.null_loss=1.5", "unlearn.null_loss is now method.mucs.bound"),
        (
            "method.mucs.null_loss=1.5",
            'method.mucs.null_loss is now method.mucs.bound, and its value "analytic" is now "zero-output"',
        ),
    ],
)
def test_an_error_on_an_earlier_spelling_names_the_new_one(setting: str, now: str):
    with pytest.raises(InputError) as refused:
        recipe(setting)
    assert str(refused.value) == f"recipe key {now}"


def test_a_run_of_an_earlier_version_can_be_looked_at(data: Dataset, tmp_path: Path):
    """The training and the images of the run are kept; what a method made is made again."""
    settings = ("method.mucs.ascent_weight=0.3", "method.mucs.bound=zero-output", "method.das.dim=8")
    run = Pipeline.open(recipe(*settings, data=data.url, methods=()), data,
                        str(tmp_path / "run"), console=Console(file=io.StringIO()))  # fmt: skip
    values = run.describe()
    own = values.pop("method")
    own["mucs"]["null_loss"] = "analytic"  # as the bound was called, and "zero-output"
    del own["mucs"]["bound"]
    values |= {"unlearn": own["mucs"], "das": own["das"], "forward_inf": own["forward-inf"]}
    publish_json(join(run.run_url, "recipe.json"), values)
    again = reopen(run.run_url, console=run.console)
    assert again.recipe == run.recipe


# --- what is refused of a card ------------------------------------------------------------------------------------


def test_two_methods_do_not_share_a_section_by_accident():
    other = MethodCard(name="brightness", label="Other", summary="other settings", config_class=WithoutDefault)
    with pytest.raises(InputError, match=r"toys:Brightness and brightness both have settings .* \[method.brightness\]"):
        method_settings({}, [find_method(TOY), other])


class WithoutDefault:
    """This is neither a dataclass nor does it have defaults."""


class Dotted(Brightness):
    card = MethodCard(name="a.b", label="Dotted", summary="cannot be set")


class Unset(Brightness):
    card = MethodCard(name="unset", label="Unset", summary="has no dataclass", config_class=WithoutDefault)


class Grouped(Attributor):
    stage = MethodStage(name="groups", hook="fit_item", over="groups")
    card = MethodCard(name="grouped", label="Grouped", summary="for later", stages=(stage,))

    def score(self, rows: Any) -> Any: ...


@pytest.mark.parametrize(
    ("kind", "message"),
    [(Dotted, "a name without dots"), (Unset, "a dataclass with defaults"), (Grouped, "a stage over groups")],
)
def test_a_card_that_cannot_be_used_is_one_line(kind: type[Attributor], message: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("toys.Brightness", kind)
    import_method.cache_clear()
    try:
        with pytest.raises(InputError, match=message):
            find_method(TOY)
    finally:
        import_method.cache_clear()


@pytest.mark.parametrize(
    "make",
    [
        lambda: MethodStage(name="unlearn", hook="fit_item"),
        lambda: MethodStage(name="score", hook="score", over="items"),
    ],
)
def test_a_stage_goes_over_what_its_hook_is_called_for(make: Callable[[], MethodStage]):
    with pytest.raises(ValueError, match="does not go over"):
        make()
