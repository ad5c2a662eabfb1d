"""The run directory's promises: files are whole or absent, stages resume, and stale ones say why (house rules 6)."""

import io
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from mucs_ray import storage
from mucs_ray.config.recipe import Recipe, build
from mucs_ray.data.table import Dataset
from mucs_ray.diffusion.batch import Item
from mucs_ray.errors import InputError
from mucs_ray.models.adapters import adapter
from mucs_ray.models.dit import DiT
from mucs_ray.pipeline.graph import Pipeline, reopen
from mucs_ray.spaces.pixels import PIXELS
from mucs_ray.store import checkpoint
from mucs_ray.store.items import item_file, load_item, save_item, shown
from mucs_ray.store.run import Stage, open_run
from mucs_ray.store.weights import load_weights, model_facts, model_spec
from tiny import tiny_dataset, tiny_recipe

# --- files ------------------------------------------------------------------------------------------------------------

serial = itertools.count()


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "local" else f"memory://test-store-{next(serial)}"


def test_a_published_file_is_read_back_with_its_digest(folder: str):
    url = storage.join(folder, "deep", "inside", "a.bin")
    assert not storage.exists(url)
    assert storage.publish(url, b"first") == sha256(b"first").hexdigest()
    assert storage.publish(url, b"second") == sha256(b"second").hexdigest()
    assert storage.read_bytes(url) == b"second"
    assert list(storage.names(storage.join(folder, "deep", "inside"))) == ["a.bin"]
    storage.remove(url)
    storage.remove(url)
    assert not storage.exists(url)


@pytest.mark.parametrize("dies_in", ["replace", "fsync"])
def test_a_writer_that_dies_leaves_nothing_or_the_old_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dies_in: str
):
    url = str(tmp_path / "part.bin")

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, dies_in, die)
        storage.publish(url, b"new")
    assert list(tmp_path.iterdir()) == []
    storage.publish(url, b"old")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, dies_in, die)
        storage.publish(url, b"new")
    assert storage.read_bytes(url) == b"old"
    storage.publish(url, b"new")
    assert storage.read_bytes(url) == b"new"


def test_equal_documents_are_equal_bytes(folder: str):
    first = storage.publish_json(storage.join(folder, "a.json"), {"b": 1, "a": [1, 2]})
    assert first == storage.publish_json(storage.join(folder, "b.json"), {"a": [1, 2], "b": 1})
    assert storage.read_json(storage.join(folder, "a.json")) == {"a": [1, 2], "b": 1}


def test_a_run_directory_that_cannot_be_written_is_one_line(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be written \(.*\); choose another with --run"):
        open_run(str(tmp_path / "file" / "run"))
    assert open_run(str(tmp_path / "run")) == str(tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []


# --- a stage ----------------------------------------------------------------------------------------------------------


def stage(folder: str, *, noises: int = 100, data: str = "d1") -> Stage:
    reads = {"score.noises": noises, "model.channels": [4, 4]}
    return Stage(run_url=folder, name="attribute/mucs/score", reads=reads, inputs={"data": data})


def publish(at: Stage, key: str, content: bytes = b"content") -> tuple[str, str]:
    name = at.part(key, "parquet")
    return name, storage.publish(at.url(name), content)


def finished(at: Stage, *keys: str) -> Stage:
    at.begin([at.part(key, "parquet") for key in keys])
    at.finish(dict(publish(at, key) for key in keys), {"rows": 7})
    return at


def state_of(at: Stage) -> tuple[str, str]:
    return at.state().status, at.state().reason


def test_a_stage_goes_from_missing_over_partial_to_done_and_stale(folder: str):
    at = stage(folder)
    assert state_of(at) == ("missing", "not run yet")
    parts = [at.part(key, "parquet") for key in ("a", "b", "c")]
    assert at.begin(parts) == parts
    assert state_of(at) == ("partial", "0 of 3 parts")
    digests = dict([publish(at, "b")])
    assert state_of(at) == ("partial", "1 of 3 parts")
    assert at.begin(parts) == [parts[0], parts[2]]  # the same command again: only what is missing
    digests |= dict(publish(at, key) for key in ("a", "c"))
    assert state_of(at) == ("partial", "3 of 3 parts")  # not done before the manifest
    at.finish(digests, {"rows": 7})
    assert state_of(at) == ("done", "")
    assert at.facts() == {"rows": 7}
    assert state_of(stage(folder, noises=50)) == ("stale", "score.noises 100 -> 50")
    assert state_of(stage(folder, data="d2")) == ("stale", "data changed")
    assert state_of(stage(folder, noises=50, data="d2")) == ("stale", "score.noises 100 -> 50, data changed")


def test_a_setting_that_is_new_or_gone_is_named(folder: str):
    at = finished(stage(folder), "a")
    more = replace(at, reads={**at.reads, "score.keep": 0.7})
    assert state_of(more) == ("stale", "score.keep None -> 0.7")
    other_name = replace(at, reads={"score.noises": 100})
    assert state_of(other_name) == ("stale", "model.channels [4, 4] -> None")


def test_settings_that_only_moved_to_another_section_are_named_by_section(folder: str):
    """A setting is named by itself only if its value has changed as well."""
    place = {"run_url": folder, "name": "attribute/mucs/unlearn", "inputs": {}}
    old = Stage(reads={"unlearn.tolerance": 0.05, "unlearn.sigmas": "training"}, **place)
    finished(old, "a")
    new = Stage(reads={"method.mucs.tolerance": 0.05, "method.mucs.sigmas": "schedule"}, **place)
    status, reason = state_of(new)
    assert status == "stale"
    assert reason == (
        "method.mucs.sigmas None -> schedule, unlearn.sigmas training -> None,"
        " settings of unlearn are now those of method.mucs"
    )


def test_a_stage_begun_anew_is_partial_and_its_old_results_still_there(folder: str):
    """Until the new settings have finished, going back to the old ones costs nothing."""
    old = finished(stage(folder), "a")
    new = stage(folder, noises=50)
    assert new.begin([new.part("a", "parquet")]) == [new.part("a", "parquet")]
    assert state_of(new) == ("partial", "0 of 1 parts")
    assert state_of(old) == ("done", "")
    assert old.checked(old.part("a", "parquet")) == b"content"


def test_finishing_deletes_parts_of_other_settings_and_nothing_of_a_user(folder: str):
    old = finished(stage(folder), "a", "b")
    foreign = ["notes.txt", "holiday.pictures.zip", "backup.2024.tar.gz", "README", "a.12345678.parquet.bak"]
    for name in foreign:
        storage.publish(old.url(name), b"mine")
    storage.publish(storage.join(old.folder, "inner", f"x.{old.fingerprint[:8]}.parquet"), b"another stage's")
    picture = stage(folder, noises=50).part("a", "png")  # of these settings, to look at; in no manifest
    storage.publish(old.url(picture), b"picture")
    new = finished(stage(folder, noises=50), "a")
    existing = set(storage.names(new.folder))
    assert existing == {*foreign, picture, "inner", "plan.json", "manifest.json", new.part("a", "parquet")}
    assert list(storage.names(storage.join(new.folder, "inner"))) == [f"x.{old.fingerprint[:8]}.parquet"]
    assert state_of(new) == ("done", "")
    assert state_of(old) == ("stale", "score.noises 50 -> 100")


def test_a_late_writer_of_other_settings_changes_nothing(folder: str):
    """A worker that outlived its driver publishes under its own tag; the finished stage does not see it."""
    late = stage(folder)
    late.begin([late.part("a", "parquet")])
    done = finished(stage(folder, noises=50), "a")
    manifest = done.manifest()
    publish(late, "a", b"late")
    assert (done.manifest(), state_of(done)) == (manifest, ("done", ""))
    assert done.checked(done.part("a", "parquet")) == b"content"
    assert late.part("a", "parquet") not in done.manifest().files


def test_facts_of_a_stage_that_is_not_done_are_refused(folder: str):
    with pytest.raises(InputError, match=r"attribute/mucs/score of .* is not done; run it first"):
        stage(folder).facts()
    finished(stage(folder), "a")
    with pytest.raises(InputError, match="not done"):
        stage(folder, noises=50).facts()


def one_line(error: pytest.ExceptionInfo[InputError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_corruption_is_one_line(folder: str):
    at = finished(stage(folder), "a", "b")
    name, other = at.part("a", "parquet"), at.part("b", "parquet")
    storage.publish(at.url(name), b"contents")
    with pytest.raises(InputError, match="corrupt: its sha256 differs") as error:
        at.checked(name)
    assert at.url(name) in one_line(error)
    storage.remove(at.url(name))
    with pytest.raises(InputError, match="in the manifest but absent") as error:
        at.checked(name)
    assert "run the command again" in one_line(error)
    with pytest.raises(InputError, match=r"has no file z\.parquet") as error:
        at.checked("z.parquet")
    one_line(error)
    assert at.checked(other) == b"content"


@pytest.mark.parametrize("document", ["plan.json", "manifest.json"])
def test_a_torn_document_counts_as_absent(folder: str, document: str):
    at = finished(stage(folder), "a")
    storage.publish(at.url(document), b'{"fingerprint": "ab')
    assert state_of(at) == (("done", "") if document == "plan.json" else ("partial", "1 of 1 parts"))


def test_parts_carry_the_tag_of_their_settings():
    first, second = stage("x"), stage("x", noises=50)
    assert first.part("item-0001", "parquet") == f"item-0001.{first.fingerprint[:8]}.parquet"
    assert first.part("a", "parquet") != second.part("a", "parquet")


def test_fingerprints_depend_on_what_is_read_and_on_nothing_else():
    base = stage("x")
    assert base.fingerprint == stage("another/run").fingerprint
    turned = replace(base, reads=dict(reversed(base.reads.items())))
    assert base.fingerprint == turned.fingerprint
    changed = [stage("x", noises=50), stage("x", data="d2"), replace(base, name="other")]
    assert len({base.fingerprint, *(each.fingerprint for each in changed)}) == 4


def test_fingerprints_are_the_same_in_other_processes(tmp_path: Path):
    """A driver on another day, with other hash seeds, finds the parts of this one."""
    program = (
        "import sys; from mucs_ray.store.run import Stage;"
        "print(Stage(run_url=sys.argv[1], name='attribute/mucs/score', inputs={'data': 'd1'},"
        " reads={'model.channels': [4, 4], 'score.noises': 100}).fingerprint)"
    )
    for hash_seed in ("1", "2"):
        out = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
        )  # fmt: skip
        assert out.stdout.strip() == stage(str(tmp_path)).fingerprint


# --- which knob makes which stage stale ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def no_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hide all weights of similarity metrics that the user may have."""
    monkeypatch.delenv("MUCS_RAY_WEIGHTS", raising=False)
    monkeypatch.delenv("MUCS_RAY_CLIP_WEIGHTS", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def every_stage(pipeline: Pipeline) -> dict[str, str]:
    every = pipeline.stages | pipeline.evaluations
    report = pipeline.report(planned=list(every))
    kept = {name: each.fingerprint for name, each in every.items() if name in EVERYTHING}
    return kept | {"report": report.fingerprint}


def fingerprints(recipe: Recipe, dataset: Dataset) -> dict[str, str]:
    return every_stage(Pipeline(recipe=recipe, dataset=dataset, run_url="runs/x", console=Console(file=io.StringIO())))


def following(method: str) -> set[str]:
    """Return the stages that follow from a method's ranking, or from the mode of removal."""
    return {f"retrain/{method}", f"regenerate/{method}", f"evaluate/{method}", "report"}


REMOVED = following("random") | following("mucs")
REGENERATED = REMOVED - {"retrain/random", "retrain/mucs"}
COMPARED = {"evaluate/random", "evaluate/mucs", "evaluate/unrelated", "report"}
RANKED = {"attribute/mucs"} | following("mucs")
RERANKED = RANKED | {"attribute/random"} | following("random")
SCORED = {"attribute/mucs/score"} | RANKED
UNLEARNED = {"attribute/mucs/unlearn"} | SCORED
GENERATED = {"generate", "attribute/random"} | UNLEARNED | REMOVED | COMPARED
TRAINED = {"pretrain"} | GENERATED
BOUNDED = {"attribute/mucs/null"} | UNLEARNED
EVERYTHING = TRAINED | BOUNDED

STALE: dict[str, tuple[Any, set[str]]] = {
    "name": ("another", {"report"}),
    "data": ("elsewhere", set()),  # the content counts, not where it is
    "seed": (2, EVERYTHING),
    "model.image_size": (16, EVERYTHING),
    "model.channels": ([8, 8], EVERYTHING),
    "model.strides": ([1, 2], EVERYTHING),
    "model.kernel_size": (5, EVERYTHING),
    "model.patch_size": (2, EVERYTHING),
    "model.width": (32, EVERYTHING),
    "model.depth": (3, EVERYTHING),
    "model.num_heads": (4, EVERYTHING),
    "model.mlp_ratio": (2, EVERYTHING),
    "model.registers": (2, EVERYTHING),
    "model.condition_channels": (8, EVERYTHING),
    "model.condition_dim": (0, EVERYTHING),
    "model.condition_drop": (0.2, EVERYTHING),
    "model.dropout": (0.0, EVERYTHING),
    "model.sigma_data": (0.7, EVERYTHING),
    "train.updates": (16, TRAINED),
    "train.updates_per_epoch": (6, TRAINED),
    "train.batch_size": (4, TRAINED),
    "train.learning_rate": (1e-3, TRAINED),
    "train.warmup_epochs": (2, TRAINED),
    "train.weight_decay": (0.1, TRAINED),
    "train.ema_decay": (0.9, TRAINED),
    "train.augment": (0.0, TRAINED),
    "train.flip": (False, TRAINED),
    "train.patience": (5, TRAINED),
    "train.precision": ("bf16", TRAINED),
    "train.checkpoint": ("best", GENERATED),
    "generate.items": (3, GENERATED),
    "generate.controls": (0, {"generate", "evaluate/unrelated"} | REGENERATED),
    "generate.steps": (5, GENERATED),
    "generate.guidance": (1.0, GENERATED),
    "generate.items_per_forward": (2, GENERATED),
    "generate.sampler": ("euler", GENERATED),
    "generate.compat": (True, GENERATED),
    "generate.conditions": ("train", GENERATED),
    "generate.clip": ("on", GENERATED),
    "method.mucs.bound": ("zero-output", BOUNDED),
    "method.mucs.null_batches": (3, BOUNDED),
    "method.mucs.ascent_weight": (0.3, UNLEARNED),
    "method.mucs.batch_size": (4, UNLEARNED),
    "method.mucs.learning_rate_divisor": (5.0, UNLEARNED),
    "method.mucs.weight_decay": (0.1, UNLEARNED),
    "method.mucs.tolerance": (0.1, UNLEARNED),
    "method.mucs.max_updates": (7, UNLEARNED),
    "method.mucs.clamp": (False, UNLEARNED),
    "method.mucs.fixed_updates": (3, UNLEARNED),
    "method.mucs.parameters": ("block", UNLEARNED),
    "method.mucs.sigmas": ("schedule", UNLEARNED),
    "method.mucs.draws": ("common", UNLEARNED),
    "method.mucs.moments": ("warm", UNLEARNED),
    "method.mucs.retention": (0.5, UNLEARNED),
    "method.mucs.trajectory": (0.5, UNLEARNED),
    "method.mucs.antithetic": (True, UNLEARNED),
    "score.noises": (6, SCORED),
    "score.keep": (0.5, SCORED),
    "score.lowest_sigma": (0.5, SCORED),
    "score.epsilon": (1e-2, SCORED),
    "score.precision": ("bf16", SCORED),
    "score.images_per_forward": (2, SCORED),
    "score.compile": ("on", SCORED),
    "score.keep_losses": (True, SCORED),
    "score.sigmas": ("training", SCORED),
    "score.noise": ("independent", SCORED),
    "score.weights": ("squared", SCORED),
    "rank.top_percent": (5.0, RERANKED),
    "rank.measure": ("difference", RERANKED),
    "rank.correction": ("mutual", RANKED),
    "rank.whitening": (0.3, set()),  # read by the correction "whitened" only
    "remove.mode": ("matched", REMOVED),
    "remove.size": (9, set()),  # read in mode "matched" only
    "evaluate.metrics": (["mse"], set()),  # all there is for 8 px and without weights
    "evaluate.unrelated": (1, {"evaluate/unrelated", "report"}),
    "evaluate.noises": (20, set()),  # for pictures that the user brings
    "evaluate.fresh": (2, set()),
    "lds.subsets": (5, set()),
    "lds.share": (0.4, set()),
    "lds.blocks": (7, set()),
    "lds.repeats": (1, set()),
    "lds.versus": ("random", set()),
    "lds.keep_weights": (True, set()),
    "groups.by": ("text", set()),
    "groups.golds": (2, set()),
    "groups.unlearners": (["zero"], set()),  # no stage of a run by images reads what groups need
    "groups.updates": (5, set()),
    "groups.batch_size": (8, set()),
    "groups.learning_rate": (1e-3, set()),
    "groups.warmup": (3, set()),
    "groups.weight_decay": (0.1, set()),
    "groups.forget_weight": (0.1, set()),
    "groups.retain": ("distil", set()),
    "groups.neighbours": (3, set()),
    "groups.lowest_sigma": (0.2, set()),
    "groups.kl_cap": (8.0, set()),
    "groups.guidance": (3.0, set()),
    "groups.template": ("{content} by {group}", set()),
    "groups.descriptors": ({"cats": ["furry"]}, set()),
    "groups.words": (2, set()),
    "groups.beta": (1.0, set()),
    "groups.eta": (0.1, set()),
    "groups.content": (["label"], set()),
    "groups.dropout": (False, set()),
    "groups.flip": (False, set()),
    "groups.score": ("skew", set()),
    "groups.skip": (20, set()),
    "groups.levels": (9, set()),
    "groups.noise_sets": (3, set()),
    "engine.train_workers": (2, set()),
    "engine.trainings": (1, set()),
    "engine.check_weights": (True, set()),
    "engine.actors": ([1, 2], set()),
    "engine.stages_per_pass": (1, set()),
    "engine.max_failures": (1, set()),
    "engine.gpu_share": (0.5, set()),
    "engine.cuda_graphs": (False, set()),
    "engine.timeout": (60.0, set()),
}
"""A changed value of every field of a recipe, and the stages of MUCS and random that it makes stale."""
OTHER_METHODS: dict[str, tuple[Any, str]] = {
    "method.forward-inf.updates": (2, "attribute/forward-inf/unlearn"),
    "method.forward-inf.learning_rate_divisor": (3.0, "attribute/forward-inf/unlearn"),
    "method.forward-inf.draws": (7, "attribute/forward-inf/unlearn"),
    "method.abu.updates": (2, "attribute/abu/unlearn"),
    "method.abu.step": (0.1, "attribute/abu/unlearn"),
    "method.abu.draws": (200, "attribute/abu/unlearn"),
    "method.abu.draws_per_forward": (50, "attribute/abu/unlearn"),
    "method.abu.fisher_draws": (2, "attribute/abu/fisher"),
    "method.abu.damping": (0.2, "attribute/abu/unlearn"),
    "method.abu.parameters": ("all", "attribute/abu/fisher"),
    "method.mucs/screen.recall": (0.9, "attribute/mucs/screen/bounds"),
    "method.mucs/screen.rounds": ([0.2, 0.5], "attribute/mucs/screen/bounds"),
    "method.mucs/screen.sample": (60, "attribute/mucs/screen/sample"),
    "method.mucs/linear.noises": (7, "attribute/mucs/linear/features"),
    "method.mucs/linear.noises_per_forward": (3, "attribute/mucs/linear/features"),
    "method.mucs/linear.dim": (64, "attribute/mucs/linear/features"),
    "method.mucs/linear.signs": (2, "attribute/mucs/linear/features"),
    "method.mucs/linear.damping": (0.2, "attribute/mucs/linear/solve"),
    "method.mucs/linear.power": (0.7, "attribute/mucs/linear/solve"),
    "method.kfac.noises": (7, "attribute/kfac/items"),
    "method.kfac.noises_per_forward": (3, "attribute/kfac/items"),
    "method.kfac.factor_draws": (2, "attribute/kfac/factors"),
    "method.kfac.damping": (0.1, "attribute/kfac/solve"),
    "method.dtrak.noises": (7, "attribute/dtrak/features"),
    "method.dtrak.noises_per_forward": (3, "attribute/dtrak/features"),
    "method.dtrak.dim": (64, "attribute/dtrak/features"),
    "method.dtrak.signs": (2, "attribute/dtrak/features"),
    "method.dtrak.damping": (0.2, "attribute/dtrak/solve"),
    "method.dtrak.parameters": ("mlp", "attribute/dtrak/features"),
    "method.dtrak.gradients": ("per_noise", "attribute/dtrak/features"),
    "method.das.noises": (7, "attribute/das/features"),
    "method.das.noises_per_forward": (3, "attribute/das/features"),
    "method.das.dim": (64, "attribute/das/features"),
    "method.das.signs": (2, "attribute/das/features"),
    "method.das.damping": (0.2, "attribute/das/solve"),
    "method.das.parameters": ("mlp", "attribute/das/features"),
    "method.das.gradients": ("per_noise", "attribute/das/features"),
    "method.das.square": (False, "attribute/das/score"),
    "method.das.leverage": (True, "attribute/das/score"),
}
"""The first stage that a field makes stale; none of MUCS."""
TESTED_ELSEWHERE = {"weights", "ensemble.learned_from"}


def changed(recipe: Recipe, key: str, value: object) -> Recipe:
    values = recipe.to_dict()
    *sections, field = key.split(".")
    inner = values
    for section in sections:
        inner = inner[section]
    inner[field] = value
    return build(values)


def recipe_keys() -> Iterator[str]:
    recipe = tiny_recipe("x")
    for each in fields(recipe):
        value = getattr(recipe, each.name)
        if each.name == "method":
            yield from (f"method.{name}.{inner.name}" for name, own in value.items() for inner in fields(own))
        elif is_dataclass(value):
            yield from (f"{each.name}.{inner.name}" for inner in fields(value))
        else:
            yield each.name


def test_the_table_has_every_field_of_a_recipe():
    assert {*STALE, *OTHER_METHODS} | TESTED_ELSEWHERE == set(recipe_keys())


@pytest.mark.parametrize("key", OTHER_METHODS)
def test_a_methods_field_makes_its_own_stages_stale(key: str, dataset: Dataset):
    recipe = tiny_recipe(dataset.url)
    value, expected = OTHER_METHODS[key]
    other = changed(recipe, key, value)
    console = Console(file=io.StringIO())
    before, after = (
        Pipeline(recipe=each, dataset=dataset, run_url="runs/x", console=console).stages for each in (recipe, other)
    )
    both = [name for name in before if name in after]  # dtrak becomes the same as its variant dtrak/per-noise
    stale = [name for name in both if before[name].fingerprint != after[name].fingerprint]
    method = expected.removeprefix("attribute/").rpartition("/")[0]
    assert stale[0] == expected and f"attribute/{method}" in stale and not {*stale} & EVERYTHING
    assert all(name.partition("/")[2].startswith((method, "ensemble")) for name in stale)


@pytest.mark.parametrize("key", STALE)
def test_a_changed_field_makes_exactly_its_stages_stale(key: str, dataset: Dataset):
    recipe = tiny_recipe(dataset.url)
    value, expected = STALE[key]
    other = changed(recipe, key, value)
    assert other != recipe
    before, after = fingerprints(recipe, dataset), fingerprints(other, dataset)
    assert set(before) == EVERYTHING
    assert {short for short in before if before[short] != after[short]} == expected


def test_how_far_scores_are_whitened_makes_only_whitened_rankings_stale(dataset: Dataset):
    recipe = changed(tiny_recipe(dataset.url), "rank.correction", "whitened")
    before, after = fingerprints(recipe, dataset), fingerprints(changed(recipe, "rank.whitening", 0.3), dataset)
    assert {short for short in before if before[short] != after[short]} == RANKED


def test_other_data_make_everything_stale(dataset: Dataset, tmp_path: Path):
    recipe = tiny_recipe(dataset.url)
    smaller = tiny_dataset(tmp_path, rows_per_unit=8)
    before, after = fingerprints(recipe, dataset), fingerprints(recipe, smaller)
    assert {short for short in before if before[short] != after[short]} == EVERYTHING


def test_given_weights_count_by_content_and_end_the_influence_of_training(dataset: Dataset, tmp_path: Path):
    paths = [tmp_path / name for name in ("a.pt", "b.pt", "c.pt")]
    for path, content in zip(paths, (b"one", b"one", b"two"), strict=True):
        path.write_bytes(content)
    trained = tiny_recipe(dataset.url)

    def opened(recipe: Recipe) -> dict[str, str]:
        pipeline = Pipeline.open(recipe, dataset, str(tmp_path / "run"), console=Console(file=io.StringIO()))
        return every_stage(pipeline)

    first, copy, other = (opened(replace(trained, weights=str(path))) for path in paths)
    without = fingerprints(trained, dataset)
    attributed = TRAINED - REMOVED - COMPARED | {"report"}  # and there is no training to be done again
    assert {short for short in first if first[short] != without[short]} == attributed
    assert first == copy
    assert {short for short in first if first[short] != other[short]} == attributed
    given = replace(trained, weights=str(paths[0]))
    for key in (key for key in STALE if key.startswith("train.")):
        after = opened(changed(given, key, STALE[key][0]))
        expected = UNLEARNED & attributed if key == "train.learning_rate" else set()
        assert {short for short in first if first[short] != after[short]} == expected, key


def test_a_run_is_reopened_without_the_file_of_its_weights(dataset: Dataset, tmp_path: Path):
    """`status` needs only the run directory and the data set."""
    weights, run, console = tmp_path / "w.pt", str(tmp_path / "run"), Console(file=io.StringIO())
    weights.write_bytes(b"weights")
    pipeline = Pipeline.open(replace(tiny_recipe(dataset.url), weights=str(weights)), dataset, run, console=console)
    storage.publish_json(storage.join(run, "recipe.json"), pipeline.describe())
    weights.unlink()
    assert reopen(run, console=console).stages == pipeline.stages
    with pytest.raises(InputError, match="no run at"):
        reopen(str(tmp_path / "elsewhere"), console=console)


def test_reasons_name_the_recipe_key(dataset: Dataset, tmp_path: Path):
    recipe = tiny_recipe(dataset.url)
    console = Console(file=io.StringIO())
    pipeline = Pipeline.open(recipe, dataset, str(tmp_path), console=console)
    for each in pipeline.stages.values():
        each.finish({}, {})
    pipeline.report().finish({}, {})
    assert pipeline.plan("report")["report"].reason == "no report.html"
    storage.publish(storage.join(pipeline.run_url, "report.html"), b"")
    assert {state.status for state in pipeline.plan("report").values()} == {"done"}
    fewer = Pipeline.open(changed(recipe, "score.noises", 3), dataset, str(tmp_path), console=console)
    plan = fewer.plan("report")
    scored, ranked = plan["attribute/mucs/score"], plan["attribute/mucs"]
    assert (scored.status, scored.reason) == ("stale", "score.noises 5 -> 3")
    assert (ranked.status, ranked.reason) == ("stale", "attribute/mucs/score changed")
    assert plan["attribute/mucs/unlearn"].status == "done"
    tuples = Pipeline.open(changed(recipe, "model.channels", [8, 8]), dataset, str(tmp_path), console=console)
    assert tuples.plan("pretrain")["pretrain"].reason == "model.channels [4, 4] -> [8, 8]"


# --- weights and items ------------------------------------------------------------------------------------------------


@pytest.fixture
def network() -> DiT:
    return DiT(tiny_recipe("x").model)


def saved(network: DiT, path: Path) -> str:
    checkpoint.save(str(path), network.state_dict(), model_facts(network.config))
    return str(path)


def test_weights_come_back_bit_for_bit_with_their_network(network: DiT, tmp_path: Path):
    spec, loaded = load_weights(saved(network, tmp_path / "w.safetensors"))
    assert spec == network.config
    own = network.state_dict()
    assert loaded.keys() == own.keys()
    assert all(torch.equal(tensor, own[name]) for name, tensor in loaded.items())
    model = adapter(spec).model(torch.device("cpu"), loaded)
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(tensor, own[name]) for name, tensor in model.network.state_dict().items())


def test_a_card_beside_the_weights_tells_facts_and_digest(network: DiT, tmp_path: Path):
    path = tmp_path / "best.safetensors"
    checkpoint.save_with_card(str(path), network.state_dict(), {**model_facts(network.config), "step": 8})
    card = json.loads((tmp_path / "best.json").read_text())
    assert card["sha256"] == sha256(path.read_bytes()).hexdigest()
    assert model_spec(card, "card") == network.config
    assert card["step"] == 8


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "flipped header", "facts are not JSON"])
def test_corrupt_weights_are_an_input_error_in_one_line(network: DiT, tmp_path: Path, damage: str):
    path = Path(saved(network, tmp_path / "w.safetensors"))
    content = path.read_bytes()
    path.write_bytes(
        {
            "cut": content[: len(content) // 2],
            "empty": b"",
            "text": b"these are no weights at all",
            "flipped header": content[:20] + bytes([content[20] ^ 0xFF]) + content[21:],
            "facts are not JSON": content.replace(b'"mucs_ray":"{', b'"mucs_ray":"[', 1),
        }[damage]
    )
    with pytest.raises(InputError, match="not a complete safetensors file") as error:
        load_weights(str(path))
    assert str(path) in one_line(error)


def test_absent_weights_are_an_input_error(tmp_path: Path):
    with pytest.raises(InputError, match="no weights at") as error:
        load_weights(str(tmp_path / "none.safetensors"))
    assert "--weights" in one_line(error)


def test_weights_of_another_architecture_are_one_line(network: DiT):
    deeper = DiT(replace(network.config, depth=3, width=32))
    with pytest.raises(InputError, match="another architecture") as error:
        checkpoint.strict_load(network, deeper.state_dict(), source="w.safetensors")
    text = one_line(error)
    assert "unexpected (first dit_backbone.2." in text
    assert "of another shape (first a_embedder" not in text  # that one has the same shape in both
    assert text.startswith("w.safetensors")
    before = {name: tensor.clone() for name, tensor in deeper.state_dict().items()}
    with pytest.raises(InputError, match=r"\d+ missing \(first dit_backbone\.2\.") as error:
        checkpoint.strict_load(deeper, network.state_dict(), source="w.safetensors")
    one_line(error)
    assert all(torch.equal(tensor, before[name]) for name, tensor in deeper.state_dict().items())


def test_a_card_that_does_not_fit_its_tensors_or_version_is_an_input_error(network: DiT, tmp_path: Path):
    facts = model_facts(replace(network.config, depth=5))
    checkpoint.save(str(tmp_path / "w.safetensors"), network.state_dict(), facts)
    with pytest.raises(InputError, match="another architecture") as error:
        load_weights(str(tmp_path / "w.safetensors"))
    one_line(error)
    for described in ({"widht": 3}, {"width": "wide"}, {"channels": [4, 4, 4]}):
        with pytest.raises(InputError, match=f"another version .model.{next(iter(described))}") as error:
            model_spec({"model": described}, "w.safetensors")
        one_line(error)
    with pytest.raises(InputError, match="no description of its network") as error:
        model_spec({}, "w.safetensors")
    one_line(error)


@pytest.mark.parametrize("conditional", [True, False])
def test_items_come_back_unclamped(folder: str, conditional: bool):
    condition = {"tokens": torch.ones(3, 2), "pooled": torch.tensor([0.0, 1.0])} if conditional else {}
    item = Item(number=3, idx=71, condition=condition, z=torch.linspace(-2, 2, 48).reshape(3, 4, 4))
    at = stage(folder)
    digest = save_item(at, item, PIXELS, {"step": 1})
    assert digest == sha256(storage.read_bytes(at.url(item_file(at, 3)))).hexdigest()
    back = load_item(at, 3)
    assert (back.number, back.idx) == (3, 71)
    assert torch.equal(back.z, item.z)
    assert back.condition.keys() == condition.keys()
    assert all(torch.equal(back.condition[name], tensor) for name, tensor in condition.items())


def test_pixels_are_clamped_and_rounded():
    values = torch.tensor([-3.0, -1.0, 0.0, 0.5, 1.0, 9.0]).reshape(1, 1, 6)
    item = Item(number=0, idx=0, condition={}, z=values.expand(3, 1, 6))
    assert shown(item, PIXELS)[0, 0].tolist() == [0, 0, 128, 191, 255, 255]
