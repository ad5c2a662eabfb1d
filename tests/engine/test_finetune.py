"""A fine-tune starts from a base, trains what [finetune] says, and stores that alone."""

import io
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

from mucs_ray import storage
from mucs_ray.config.recipe import Recipe
from mucs_ray.data.table import Dataset
from mucs_ray.diffusion.batch import Item
from mucs_ray.diffusion.noise import generator, normal
from mucs_ray.engine import base_losses, item_losses, trainings
from mucs_ray.engine.base_losses import BaseJob, losses_task
from mucs_ray.engine.models import build_denoiser, to_arrays
from mucs_ray.engine.ray_train import TrainJob, fresh_state
from mucs_ray.errors import InputError
from mucs_ray.evaluation.item_loss import as_batch, batch_losses, evaluation_noises
from mucs_ray.models.adapters import adapter
from mucs_ray.models.low_rank import A, B, add_branch, takes_branch
from mucs_ray.pipeline.graph import Pipeline, StageRef, reopen
from mucs_ray.results import base_share
from mucs_ray.run.driver import finish, record, write_result
from mucs_ray.run.resolve import with_base
from mucs_ray.run.stages import base as stages_base
from mucs_ray.run.stages import loo as stages_loo
from mucs_ray.run.stages import run_together, train
from mucs_ray.spaces.pixels import PIXELS
from mucs_ray.store import checkpoint
from mucs_ray.store.facts import LooFacts, RankingFacts, read_facts
from mucs_ray.store.items import load_item, save_item
from mucs_ray.store.parts import matrix, stored_scores
from mucs_ray.store.run import Stage
from mucs_ray.store.weights import load_weights
from mucs_ray.training.step import TrainState
from tiny import rows, tiny_dataset, tiny_recipe, write_dataset
from tiny_run import open_tiny, train_all_plainly, train_plainly, trained_weights

CPU = torch.device("cpu")
BLOCKS = {"kind": "lora", "rank": 2, "alpha": 4.0, "targets": "blocks"}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def base(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> str:
    return trained_weights(dataset, tmp_path_factory.mktemp("base"))


def job(pipeline: Pipeline, **changes: object) -> TrainJob:
    recipe, stage = pipeline.recipe, pipeline.stages["pretrain"]
    plain = TrainJob(dataset=pipeline.dataset, stage=stage, model=recipe.model, train=recipe.train, seed=recipe.seed)
    return replace(plain, **changes)


def tuned(dataset: Dataset, start: str, run: Path, **finetune: object) -> Pipeline:
    return open_tiny(dataset, run, finetune={**BLOCKS, "base": start, **finetune})


def layer_with_branch(layer: nn.Linear | nn.Conv2d, a: torch.Tensor, b: torch.Tensor, scale: float) -> nn.Module:
    layer.register_parameter(A, nn.Parameter(a))
    layer.register_parameter(B, nn.Parameter(b))
    layer.lora_scale = scale
    layer.register_forward_hook(add_branch)
    return layer


def test_a_branch_adds_its_two_matrices():
    layer = nn.Linear(2, 2, bias=False)
    layer.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    layer_with_branch(layer, torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [-1.0]]), 0.5)
    # x = (1, 1): A x = 3, B A x = (9, -3), half of it (4.5, -1.5)
    assert layer(torch.tensor([[1.0, 1.0]])).tolist() == [[5.5, -0.5]]


def test_the_branch_of_a_convolution_is_a_change_of_its_kernel():
    stream = generator(1, "convolution")
    layer = nn.Conv2d(3, 4, 3, padding=1, stride=2)
    a, b, x = normal(stream, 2, 3, 3, 3), normal(stream, 4, 2), normal(stream, 2, 3, 6, 6)
    kernel = layer.weight + 0.5 * torch.einsum("or,rikl->oikl", b, a)
    expected = nn.functional.conv2d(x, kernel, layer.bias, stride=2, padding=1)
    assert torch.allclose(layer_with_branch(layer, a, b, 0.5)(x), expected, atol=1e-5)


def test_a_convolution_in_groups_has_no_branch():
    assert not takes_branch(nn.Conv2d(4, 4, 3, groups=2)) and takes_branch(nn.Conv2d(4, 4, 3))


def test_branches_add_nothing_at_first_and_are_all_that_is_trained(dataset: Dataset, base: str, tmp_path: Path):
    first = job(tuned(dataset, base, tmp_path))
    state = fresh_state(first, torch.device("cpu"))
    spec, tensors = load_weights(base)
    plain = adapter(spec).model(torch.device("cpu"), tensors)
    noises = evaluation_noises(plain, 3, seed=1)
    noisy, condition = noises.unit, {"condition": torch.eye(3)}
    assert torch.equal(state.live.eval()(noisy, noises.level, condition), plain(noisy, noises.level, condition))
    trained = {name for name, parameter in state.live.network.named_parameters() if parameter.requires_grad}
    assert trained == set(state.live.names("mlp")) == set(state.live.names("all"))
    assert {name.rpartition(".")[2] for name in trained} == {A, B}
    assert len(trained) == 2 * len(plain.names("blocks"))


def test_the_first_branches_have_names_and_the_right_spread(dataset: Dataset, base: str, tmp_path: Path):
    pipeline = tuned(dataset, base, tmp_path, rank=64)
    models = [fresh_state(job(pipeline, seed=seed), torch.device("cpu")).live.network for seed in (1, 1, 2)]
    one, same, other = (model.get_parameter("dit_backbone.0.attention.qkv.lora_a") for model in models)
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert one.square().mean().item() == pytest.approx(1 / one.shape[1], rel=0.1)


def test_only_branches_are_stored_and_they_are_enough(dataset: Dataset, base: str, tmp_path: Path):
    pipeline = tuned(dataset, base, tmp_path)
    first = job(pipeline)
    state = train_plainly(first)
    url = first.stage.url(first.stage.part("last", "safetensors"))
    tensors, facts = checkpoint.load(url)
    assert set(tensors) == set(state.live.names("all")) and facts["model"]["base"] == base
    assert any(tensor.abs().max() > 0 for name, tensor in tensors.items() if name.endswith(B))
    again = build_denoiser(first.model, to_arrays(tensors), torch.device("cpu"))
    noises = evaluation_noises(again, 3, seed=1)
    condition = {"condition": torch.eye(3)}
    expected = state.average(noises.unit, noises.level, condition)
    assert torch.equal(again(noises.unit, noises.level, condition), expected)
    with pytest.raises(InputError, match="holds only the branches that a fine-tune trained beside"):
        load_weights(url)


def test_an_interrupted_fine_tune_goes_on_bit_for_bit(dataset: Dataset, base: str, tmp_path: Path):
    def weights(state: TrainState) -> dict[str, torch.Tensor]:
        return state.average.network.state_dict()

    whole = train_plainly(job(tuned(dataset, base, tmp_path / "whole")))
    first = job(tuned(dataset, base, tmp_path / "cut"))
    train_plainly(replace(first, train=replace(first.train, updates=8)))
    resumed = train_plainly(first)
    assert all(torch.equal(tensor, weights(resumed)[name]) for name, tensor in weights(whole).items())


def test_a_full_fine_tune_starts_from_the_base_and_is_a_model_of_its_kind(dataset: Dataset, base: str, tmp_path: Path):
    first = job(tuned(dataset, base, tmp_path, kind="full"))
    _, tensors = load_weights(base)
    started = fresh_state(first, torch.device("cpu")).live.network
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in started.state_dict().items())
    assert all(parameter.requires_grad for parameter in started.parameters())
    train_plainly(first)
    spec, trained = load_weights(first.stage.url(first.stage.part("last", "safetensors")))
    assert spec == tiny_recipe(dataset.url).model and trained.keys() == tensors.keys()


def test_other_branches_or_another_base_make_trainings_stale(dataset: Dataset, base: str, tmp_path: Path):
    def pretrain(**finetune: object) -> str:
        return tuned(dataset, base, tmp_path, **finetune).stages["pretrain"].fingerprint

    other = str(tmp_path / "other.safetensors")
    tensors, facts = checkpoint.load(base)
    checkpoint.save(other, {name: tensor + 1 for name, tensor in tensors.items()}, facts)
    copied = str(tmp_path / "copied.safetensors")
    checkpoint.save(copied, tensors, facts)
    changes = [{"rank": 3}, {"alpha": 1.0}, {"targets": "mlp"}, {"kind": "full"}, {"base": other}]
    assert len({pretrain(), *(pretrain(**change) for change in changes)}) == 6
    assert pretrain(noises=7) == pretrain(base=copied) == pretrain()  # what the base is called does not count
    assert pretrain(kind="full", rank=3) == pretrain(kind="full")


def test_a_run_is_opened_again_with_its_base(dataset: Dataset, base: str, tmp_path: Path):
    pipeline = tuned(dataset, base, tmp_path)
    record(pipeline)
    again = reopen(str(tmp_path), console=Console(file=io.StringIO()))
    assert again.recipe == pipeline.recipe and again.base_digest == pipeline.base_digest
    assert again.stages["pretrain"].fingerprint == pipeline.stages["pretrain"].fingerprint


def test_the_model_is_read_off_the_base(dataset: Dataset, base: str):
    values = with_base({"data": dataset.url, "model": {"width": 999}, "finetune": {"kind": "lora", "base": base}})
    assert values["model"]["width"] == 16 and values["finetune"]["base"] == base


@pytest.mark.parametrize(
    ("finetune", "weights", "message"),
    [
        ({"kind": "lora"}, None, "there is nothing to start from; set finetune.base"),
        ({"base": "b.safetensors"}, None, "nothing is trained from it; set finetune.kind"),
        ({"base": "b.safetensors", "kind": "lora"}, "w.safetensors", "cannot be read yet"),
    ],
)
def test_what_does_not_fit_together_is_told(finetune: dict[str, str], weights: str | None, message: str):
    with pytest.raises(InputError, match=message):
        tiny_recipe("x", finetune=finetune, **({"weights": weights} if weights else {}))


def test_the_drawn_bound_has_no_untrained_weights(dataset: Dataset, base: str, tmp_path: Path):
    with pytest.raises(InputError, match="a fine-tune starts from a base"):
        open_tiny(dataset, tmp_path, finetune={**BLOCKS, "base": base}, method={"mucs": {"bound": "drawn"}})


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Six training images, with idx that do not count from 0."""
    folder = tmp_path_factory.mktemp("few")
    return write_dataset(str(folder), rows(6, first_idx=10, seed=1), rows(4, first_idx=60, seed=2))


def run(pipeline: Pipeline, *names: str) -> None:
    """Run these stages without Ray, whose tasks are called one after the other."""
    for name in names:
        refs = [StageRef(pipeline, name)]
        for _, output in run_together(refs, None):  # type: ignore[arg-type]
            finish(pipeline, pipeline.stage(name), output, time.monotonic())  # type: ignore[arg-type]


def run_plainly(function: Any, units: dict[str, tuple[Any, ...]], **_: object) -> Iterator[tuple[str, Any]]:
    return ((name, function(*arguments)) for name, arguments in units.items())


def plain_weights(training: Stage, recipe: Recipe, **_: object) -> dict[str, Any]:
    file = training.part(recipe.train.checkpoint, "safetensors")
    return to_arrays(checkpoint.parse(training.checked(file), file)[0])


def test_leaving_one_out_and_the_base_share_measure_each_image(
    few: Dataset, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(trainings, "train_all", train_all_plainly)
    monkeypatch.setattr(train, "workers_for", lambda *_, **__: 1)
    for module in (item_losses, base_losses):
        monkeypatch.setattr(module, "run_units", run_plainly)
    for module in (stages_loo, stages_base):
        monkeypatch.setattr(module, "weights_ref", plain_weights)
    pipeline = open_tiny(
        few,
        tmp_path,
        methods=("retrain/loo",),
        finetune={**BLOCKS, "base": base},
        train={"batch_size": 2},
        evaluate={"noises": 7},
        rank={"top": 2},
    )
    generate = pipeline.stages["generate"]
    for number in range(2):
        z = torch.linspace(-1, 1, 192).view(3, 8, 8) * (0.5 + number / 4)
        item = Item(number=number, idx=60 + number, condition={"condition": torch.eye(3)[number]}, z=z)
        save_item(generate, item, PIXELS, {})
    items = [{"number": number, "row": number, "idx": 60 + number, "role": "target"} for number in range(2)]
    generate.finish({}, {"items": items, "seconds": 0.0, "versions": {}})
    todo = [name for name, state in pipeline.plan("attribute").items() if state.status != "done" and name != "report"]
    without_one = [f"loo/train/000{number}" for number in range(6)]
    measured = ["pretrain", "base/share", *without_one, "loo/train/all-repeat", "loo/losses", "attribute/retrain/loo"]
    assert sorted(todo) == sorted(measured)
    run(pipeline, *measured)

    def losses(name: str) -> torch.Tensor:
        model = build_denoiser(pipeline.recipe.model, plain_weights(pipeline.stages[name], pipeline.recipe), CPU)
        own = [load_item(generate, number) for number in range(2)]
        return batch_losses(model, as_batch(own), evaluation_noises(model, 7, seed=1)).mean(dim=1)

    without = pipeline.stages["loo/train/0004"]
    assert storage.read_bytes(without.url(without.part("removed", "csv"))).decode().split() == ["idx", "14"]
    (scores,) = stored_scores(pipeline.stages["attribute/retrain/loo"])
    assert scores["idx"].to_pylist() == [*range(10, 16)]
    expected = losses("loo/train/0004") - losses("pretrain")
    assert matrix(scores, "score")[4].tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    assert read_facts(pipeline.stages["attribute/retrain/loo"], RankingFacts).k == 2
    facts = read_facts(pipeline.stages["loo/losses"], LooFacts)
    assert facts.with_all_images == pytest.approx(losses("pretrain").tolist(), abs=1e-6)
    assert facts.another_seed == pytest.approx(losses("loo/train/all-repeat").tolist(), abs=1e-6)
    shares = base_share.finished(pipeline)
    assert shares is not None and [len(shares.targets), len(shares.images)] == [2, 6]
    assert [share.idx for share in shares.targets] == [60, 61] and shares.images[4].idx == 14
    first = shares.targets[0]
    assert first.share == pytest.approx((first.base - first.own) / (first.base + first.own), abs=1e-5)
    write_result(StageRef(pipeline, "report"))
    page = storage.read_bytes(f"{pipeline.run_url}/report.html").decode()
    assert "Generated image 1: the " in page and "of 6 images are above that floor" in page
    assert (
        json.loads(storage.read_bytes(f"{pipeline.run_url}/report/report.json"))["base_share"]["images"][4]["idx"] == 14
    )


def test_pictures_have_their_losses_under_the_base_and_under_the_model(few: Dataset, base: str, tmp_path: Path):
    """A branch that adds nothing leaves the base's losses, and one that does changes them."""
    pipeline = open_tiny(few, tmp_path, finetune={**BLOCKS, "base": base}, train={"batch_size": 2})
    model = fresh_state(job(pipeline), torch.device("cpu")).live
    weights = {name: model.network.get_parameter(name).detach() for name in model.names("all")}
    plan = BaseJob(
        dataset=few,
        items=Stage(run_url=str(tmp_path), name="generate", reads={}, inputs={}),
        model=pipeline.recipe.model,
        base=base,
        noises=5,
        seed=1,
    )
    (unit,) = few.units("train")
    idx, losses = losses_task(to_arrays(weights), unit, plan)
    assert idx.tolist() == [*range(10, 16)] and losses[:, 0].tolist() == losses[:, 1].tolist()
    changed = {name: tensor + 0.1 for name, tensor in weights.items()}
    _, other = losses_task(to_arrays(changed), unit, plan)
    assert other[:, 0].tolist() == losses[:, 0].tolist() and (other[:, 1] != losses[:, 1]).all()


def test_leaving_one_out_needs_few_images_and_a_training(dataset: Dataset, base: str, tmp_path: Path):
    more = write_dataset(str(tmp_path / "more"), rows(61, first_idx=0, seed=1), rows(4, first_idx=70, seed=2))
    with pytest.raises(InputError, match="once for each image, up to 60, and there are 61"):
        open_tiny(more, tmp_path / "run", methods=("retrain/loo",)).plan("attribute")
    with pytest.raises(InputError, match="and this run trains none; leave --weights out"):
        open_tiny(dataset, tmp_path / "given", methods=("retrain/loo",), weights=base).plan("attribute")
