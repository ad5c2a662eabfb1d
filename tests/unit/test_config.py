"""Recipes hold the paper's constants, refuse wrong values in one line, and take values from `--set` and a card."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mucs_ray.attribution.ranking import list_length, top_k
from mucs_ray.config.recipe import (
    Recipe,
    build,
    check_fits,
    from_card,
    parse_setting,
    read_recipe,
    recipe_names,
    with_settings,
)
from mucs_ray.data.table import Card, Shard
from mucs_ray.errors import InputError
from mucs_ray.models.dit import DiT, unlearned_names
from tiny import TINY, tiny_recipe


def card(size: int, condition: Any, dim: int, *, train: int = 50_000, test: int = 10_000) -> Card:
    shards = tuple(
        Shard(path=f"{split}/part-00000.parquet", split=split, row_groups=(count,), sha256="0" * 64)
        for split, count in (("train", train), ("test", test))
    )
    return Card(name="x", source="x", licence="x", size=size, condition=condition, condition_dim=dim, shards=shards)


CARDS = {
    "emoji": card(16, "label", 10, train=1700, test=200),
    "cifar10": card(32, "label", 10),
    "artbench10": card(64, "label", 10, train=49_900),
    "coco": card(64, "embedding", 768, train=118_287, test=5000),
    "custom": card(64, "none", 0),
    "custom-small": card(32, "none", 0),
    "cifar10_dit_vp": card(32, "label", 10),
    "cifar10_unet_edm": card(32, "label", 10),
    "cifar10_unet_vp": card(32, "label", 10),
    "ddpm": card(32, "label", 10),
}


def recipe(name: str) -> Recipe:
    return build(from_card(read_recipe(name), CARDS[name]))


def refused(values: dict[str, Any], *, among: str = "") -> str:
    """Check that a recipe is refused, and return the one line that says why."""
    with pytest.raises(InputError) as error:
        build(values)
    text = str(error.value)
    assert "\n" not in text
    assert among in text, text
    return text


# --- packaged recipes -------------------------------------------------------------------------------------------------


def test_there_is_a_recipe_for_each_data_set():
    assert set(CARDS) <= set(recipe_names())


@pytest.mark.parametrize("name", CARDS)
def test_packaged_recipes_load_and_fit(name: str):
    chosen = recipe(name)
    assert chosen.name == name
    check_fits(chosen, CARDS[name])
    assert build(chosen.to_dict()) == chosen  # recipe.json is a recipe


PAPER = {  # spec 1
    "cifar10": {
        "image_size": 32, "channels": (4, 4), "strides": (1, 1), "condition_channels": 256, "condition_dim": 0,
        "rate": 1e-4, "updates": 200_000, "guidance": 1.0, "k": 1000, "parameters": 99_787_890, "unlearned": 56_623_104,
    },
    "artbench10": {
        "image_size": 64, "channels": (16, 16), "strides": (1, 2), "condition_channels": 256, "condition_dim": 10,
        "rate": 2e-4, "updates": 250_000, "guidance": 2.0, "k": 998, "parameters": 99_975_788, "unlearned": 56_691_200,
    },
    "coco": {
        "image_size": 64, "channels": (16, 16), "strides": (1, 2), "condition_channels": 1024, "condition_dim": 768,
        "rate": 2e-4, "updates": 300_000, "guidance": 3.0, "k": 2366,
        "parameters": 146_574_690, "unlearned": 58_458_112,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PAPER)
def test_constants_by_data_set(name: str):
    chosen, paper = recipe(name), PAPER[name]
    for key in ("image_size", "channels", "strides", "condition_channels", "condition_dim"):
        assert getattr(chosen.model, key) == paper[key], key
    model = chosen.model
    shape = (model.width, model.depth, model.num_heads, model.mlp_ratio, model.patch_size, model.registers)
    assert shape == (768, 12, 12, 4, 2, 32)
    assert (model.kernel_size, model.condition_drop, model.dropout) == (5, 0.1, 0.1)
    assert chosen.train.learning_rate == paper["rate"]
    assert chosen.train.updates == paper["updates"]
    assert chosen.generate.guidance == paper["guidance"]
    assert top_k(CARDS[name].num_images("train"), chosen.rank.top_percent) == paper["k"]
    with torch.device("meta"):
        network = DiT(model)
    assert sum(parameter.numel() for parameter in network.parameters()) == paper["parameters"]
    unlearned = [network.get_parameter(each).numel() for each in unlearned_names(network)]
    assert sum(unlearned) == paper["unlearned"]


@pytest.mark.parametrize("name", PAPER)
def test_constants_common_to_all_data_sets(name: str):
    """The constants are those of spec 5, 6 and 15."""
    chosen = recipe(name)
    train = chosen.train
    assert (train.batch_size, train.updates_per_epoch, train.warmup_epochs, train.patience) == (128, 1000, 10, 20)
    assert (train.weight_decay, train.ema_decay, train.augment, train.flip) == (0.01, 0.999, 0.12, True)
    assert (train.checkpoint, train.precision) == ("best", "fp32")
    generate = chosen.generate
    assert (generate.items, generate.controls, generate.steps) == (20, 20, 32)
    unlearn = chosen.method["mucs"]
    assert (unlearn.ascent_weight, unlearn.batch_size, unlearn.learning_rate_divisor) == (0.2, 100, 10)
    assert (unlearn.tolerance, unlearn.max_updates, unlearn.weight_decay) == (0.05, 2000, 0.01)
    assert (unlearn.bound, unlearn.null_batches) == ("auto", 200)
    score = chosen.score
    assert (score.noises, score.keep, score.epsilon, score.precision) == (100, 0.7, 1e-3, "auto")  # bf16 on a GPU
    assert chosen.rank.top_percent == 2.0


def test_a_fine_tune_removes_a_tenth_of_few_images_for_each_item():
    def chosen(num_images: int, **changes: object) -> tuple[int, str]:
        data = card(16, "none", 0, train=num_images)
        values = {"name": "x", "data": "x", "finetune": {"kind": "lora", "base": "b"}, **changes}
        made = build(from_card(values, data))
        return list_length(num_images, made.rank), made.remove.mode

    assert [chosen(num) for num in (4, 30, 34, 499)] == [
        (1, "per-item"),
        (3, "per-item"),
        (3, "per-item"),
        (50, "per-item"),
    ]
    assert chosen(500) == (10, "union")
    assert chosen(30, rank={"top": 7}, remove={"mode": "matched"}) == (7, "matched")
    assert chosen(30, finetune={}) == (1, "union")


# --- what is refused --------------------------------------------------------------------------------------------------


def test_the_tiny_recipe_is_accepted_and_frozen():
    chosen = tiny_recipe("x")
    assert chosen.score.noises == 5
    with pytest.raises(AttributeError):
        chosen.seed = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("score.nosies=5", "unknown recipe key score.nosies; did you mean score.noises?"),
        ("scroe.noises=5", "unknown recipe key scroe; did you mean score?"),
        ("train.lr=1", "unknown recipe key train.lr; known: augment, batch_size, "),
        ("zzz=1", "unknown recipe key zzz; known: data, engine, "),
    ],
)
def test_an_unknown_key_names_the_nearest_known_one(setting: str, message: str):
    refused(with_settings({**TINY, "data": "x"}, [setting]), among=message)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("score.noises=1.5", "recipe key score.noises: "),
        ("score.noises=many", "found 'many'"),
        ("score.noises=[5]", "recipe key score.noises: "),
        ("score=5", "recipe key score: "),
        ("model=5", "recipe key model: "),
        ("weights=5", "recipe key weights: "),
        ("train.flip=maybe", "recipe key train.flip: "),
        ("train.precision=fp16", "found 'fp16'"),
        ("model.channels=[4, 4, 4]", "recipe key model.channels: "),
        ("model.channels=4", "recipe key model.channels: "),
        ("method.mucs.bound=exact", "'auto', 'drawn', 'linear', 'zero-output' or 'by-level'"),
        ("seed=one", "recipe key seed: "),
    ],
)
def test_a_wrong_type_names_its_key(setting: str, message: str):
    refused(with_settings({**TINY, "data": "x"}, [setting]), among=message)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.updates", 0), ("train.updates_per_epoch", 0), ("train.batch_size", 0), ("train.learning_rate", 0),
        ("train.warmup_epochs", -1), ("train.weight_decay", -0.1), ("train.ema_decay", 1.1), ("train.ema_decay", -0.1),
        ("train.augment", 1.1), ("train.augment", -0.1), ("train.patience", -1), ("train.learning_rate", "nan"),
        ("generate.items", 0), ("generate.controls", -1), ("generate.steps", 0),
        ("method.mucs.bound", 0), ("method.mucs.bound", -1), ("method.mucs.null_batches", 0),
        ("method.mucs.ascent_weight", -0.1), ("method.mucs.batch_size", 0), ("method.mucs.learning_rate_divisor", 0),
        ("method.mucs.weight_decay", -1),
        ("method.mucs.tolerance", 1), ("method.mucs.tolerance", -0.1), ("method.mucs.max_updates", 0),
        ("score.noises", 0), ("score.keep", 0), ("score.keep", 1.1), ("score.epsilon", 0),
        ("score.images_per_forward", 0), ("rank.top_percent", 0), ("rank.top_percent", 101),
        ("engine.train_workers", -1),
    ],
)  # fmt: skip
def test_a_value_out_of_range_names_its_key(key: str, value: object):
    refused(with_settings({**TINY, "data": "x"}, [f"{key}={value}"]), among=f"recipe key {key}: ")


def test_a_bound_may_be_named_or_a_number_and_the_error_says_so():
    for given in ("auto", "drawn", "linear", "zero-output", 0.93, 1):
        assert tiny_recipe("x", method={"mucs": {"bound": given}}).method["mucs"].bound == given
    text = refused(
        with_settings({**TINY, "data": "x"}, ["method.mucs.bound=-1"]),
        among="'linear', 'zero-output' or 'by-level', or ",
    )
    assert text.endswith("greater than 0; found -1")


def test_a_recipe_without_data_is_refused():
    refused(TINY, among="recipe key data: ")


# --- reading and --set ------------------------------------------------------------------------------------------------


def test_a_recipe_is_read_from_a_file(tmp_path: Path):
    file = tmp_path / "mine.toml"
    file.write_text('name = "mine"\ndata = "d"\n[score]\nnoises = 3\n')
    assert build(read_recipe(str(file))).score.noises == 3
    file.write_text("name = ")
    with pytest.raises(InputError, match="is not TOML"):
        read_recipe(str(file))
    with pytest.raises(InputError, match="no recipe file at"):
        read_recipe(str(tmp_path / "none.toml"))
    with pytest.raises(InputError, match="no recipe 'cifra10'; known: artbench10, cifar10, "):
        read_recipe("cifra10")


@pytest.mark.parametrize(
    ("setting", "path", "value"),
    [
        ("seed=3", ["seed"], 3),
        ("train.learning_rate=2e-4", ["train", "learning_rate"], 2e-4),
        ("train.flip=false", ["train", "flip"], False),
        ("model.channels=[16, 16]", ["model", "channels"], [16, 16]),
        ("score.precision=bf16", ["score", "precision"], "bf16"),
        ('score.precision="bf16"', ["score", "precision"], "bf16"),
        ("data=s3://bucket/a=b", ["data"], "s3://bucket/a=b"),
        ("weights=", ["weights"], ""),
        ("score.noises = 50", ["score", "noises"], 50),
    ],
)
def test_settings_are_toml_or_else_strings(setting: str, path: list[str], value: object):
    assert parse_setting(setting) == (path, value)
    assert type(parse_setting(setting)[1]) is type(value)


@pytest.mark.parametrize("setting", ["noises", "=5", ""])
def test_a_setting_without_key_or_value_is_refused(setting: str):
    with pytest.raises(InputError, match=r"expected section\.key=value, e\.g\."):
        parse_setting(setting)


def test_settings_apply_in_order_and_leave_the_recipe_as_it_was():
    values = {"name": "x", "data": "d", "score": {"noises": 5}}
    actual = with_settings(values, ["score.noises=6", "score.keep=0.5", "train.updates=9", "score.noises=7", "seed=4"])
    assert actual == {
        "name": "x", "data": "d", "seed": 4, "score": {"noises": 7, "keep": 0.5}, "train": {"updates": 9},
    }  # fmt: skip
    assert values == {"name": "x", "data": "d", "score": {"noises": 5}}


def test_a_setting_inside_a_value_is_refused():
    with pytest.raises(InputError, match="'name' is not a section of the recipe"):
        with_settings({"name": "x"}, ["name.first=1"])


# --- the data set's card ----------------------------------------------------------------------------------------------


def test_the_card_fills_only_what_is_open():
    given = card(48, "label", 7)
    assert from_card({"name": "x"}, given)["model"] == {"image_size": 48, "condition_dim": 7}
    values = {"model": {"condition_dim": 0, "depth": 3}}
    assert from_card(values, given)["model"] == {"image_size": 48, "condition_dim": 0, "depth": 3}
    assert values == {"model": {"condition_dim": 0, "depth": 3}}
    assert from_card({"model": {"image_size": 16}}, given)["model"] == {"image_size": 16, "condition_dim": 7}


def test_a_set_without_test_images_can_be_attributed_to_but_not_trained_on():
    lending = {"generate": {"conditions": "train", "items": 3, "controls": 0}}
    with pytest.raises(InputError, match="no test images, on which a training is validated; give weights"):
        check_fits(tiny_recipe("x", **lending), card(8, "label", 3, test=0))
    check_fits(replace(tiny_recipe("x", **lending), weights="w.pt"), card(8, "label", 3, test=0))


def test_a_model_that_is_no_section_is_one_line():
    refused(from_card({**TINY, "data": "x", "model": 5}, card(8, "label", 3)), among="recipe key model: ")


FITTING = card(8, "label", 3, test=3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"image_size": 16}}, "model.image_size is 16 but x holds 8 px images; set model.image_size=8"),
        ({"model": {"condition_dim": 5}}, "model.condition_dim is 5 but x has conditions of width 3"),
        ({"generate": {"items": 3}}, "4 images to generate (items + controls), but the test split has only 3"),
        ({"generate": {"items": 3}}, "or generate.conditions=train to take those of training images"),
        ({"generate": {"items": 60_000, "conditions": "train"}}, "but the train split has only"),
        ({"model": {"patch_size": 3}}, "model.image_size 8 is not a multiple of strides x patch_size = 3"),
        ({"model": {"strides": [2, 8]}}, "not a multiple of strides x patch_size = 64"),
        ({"model": {"num_heads": 3}}, "model.width 16 must be a multiple of num_heads 3 and of 4"),
        ({"model": {"width": 18}}, "model.width 18 must be a multiple of num_heads 2 and of 4"),
        ({"model": {"patch_size": 0}}, "model.patch_size must be at least 1, found 0"),
        ({"model": {"num_heads": 0}}, "model.num_heads must be at least 1, found 0"),
        ({"model": {"strides": [1, 0]}}, "model.strides must be at least 1, found (1, 0)"),
        ({"model": {"registers": -1}}, "model.registers must be at least 0, found -1"),
        ({"model": {"dropout": 1.5}}, "model.dropout must be at most 1, found 1.5"),
        ({"model": {"kernel_size": 4}}, "model.kernel_size must be odd, found 4"),
    ],
)
def test_a_misfit_is_one_line(changes: dict[str, Any], message: str):
    check_fits(tiny_recipe("x"), FITTING)
    with pytest.raises(InputError) as error:
        check_fits(tiny_recipe("x", **changes), FITTING)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unconditional_model_fits_any_condition():
    check_fits(tiny_recipe("x", model={"condition_dim": 0}), FITTING)
    with pytest.raises(InputError, match="conditions of width 0"):
        check_fits(tiny_recipe("x"), card(8, "none", 0))
