"""Methods through Ray equal the plain loop over their hooks."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
import users

from mucs_ray import storage
from mucs_ray.attribution.abu import AbU
from mucs_ray.attribution.base import Attributor
from mucs_ray.attribution.das import DAS
from mucs_ray.attribution.loss_change import select_measure
from mucs_ray.attribution.mucs import MUCS
from mucs_ray.attribution.ranking import mutual_ranks, ranks
from mucs_ray.attribution.tuning import AUTO_SETTINGS
from mucs_ray.attribution.whitening import whitened
from mucs_ray.data.table import Dataset, read_unit
from mucs_ray.diffusion.batch import Batch
from mucs_ray.diffusion.condition import joined
from mucs_ray.encoders.weights import DINO_WEIGHTS
from mucs_ray.engine.attributors import build
from mucs_ray.engine.fitting import numerics
from mucs_ray.engine.models import Arrays, to_arrays
from mucs_ray.engine.session import Cluster
from mucs_ray.pipeline.graph import Pipeline
from mucs_ray.planning.speed import facts_of_streams
from mucs_ray.run.stages.attribute import attribute_job
from mucs_ray.run.stages.rank import all_scores, ranking_name
from mucs_ray.store import checkpoint
from mucs_ray.store.items import load_item
from mucs_ray.store.parts import stored_scores
from tiny_run import open_tiny, work

CPU = torch.device("cpu")
METHODS = ("random", "pixel", "das", "forward-inf", "abu", "mucs/screen", "mucs/subtraction")
"""One for every way through the engine; tests/contract has all of them, without Ray."""
SMALL = {
    "das": {"dim": 32, "noises": 4, "leverage": True},
    "abu": {"draws": 8, "draws_per_forward": 4, "fisher_draws": 2},
    "mucs/screen": {"sample": 12, "recall": 0.05, "rounds": (0.3, 0.6)},
    "forward-inf": {"updates": 2, "draws": 4, "learning_rate_divisor": 1.0},
}


@pytest.fixture(scope="module")
def encoder_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / DINO_WEIGHTS.names[0]
    path.write_text("5")
    return path


@pytest.fixture(scope="module")
def compared(data: Dataset, copied: Callable[[], Path], cluster: Cluster, encoder_weights: Path) -> Pipeline:
    methods = (*METHODS, "mucs", "mucs/mutual", "mucs/whitened", "ensemble/R", "users:SmallDINO")
    weights_dir = str(encoder_weights.parent)
    pipeline = open_tiny(data, copied(), methods=methods, method=SMALL, weights_dir=weights_dir)
    work(pipeline, "attribute", cluster)
    return pipeline


def weights_of(pipeline: Pipeline) -> Arrays:
    stage = pipeline.stages["pretrain"]
    return to_arrays(checkpoint.load(stage.url(stage.part("last", "safetensors")))[0])


def whole(dataset: Dataset) -> Batch:
    """Return all training images as one batch."""
    batches = [dataset.batch(read_unit(unit)) for unit in dataset.units("train")]
    conditions = [batch.condition for batch in batches]
    return Batch(
        idx=torch.cat([batch.idx for batch in batches]),
        z=torch.cat([batch.z for batch in batches]),
        condition=joined(conditions),
    )


def plain_scores(pipeline: Pipeline, method: str) -> np.ndarray:
    """Run the hooks of a method in order, over the whole training set at once and one item after the other."""
    images, weights = whole(pipeline.dataset), weights_of(pipeline)
    items = [load_item(pipeline.stages["generate"], n) for n in range(pipeline.recipe.generate.items)]
    specs = [pipeline.method_stages[name] for name in pipeline.stages_of(method)]
    rows, total, prepared, adapted = images, {}, {}, []

    def hook_of(spec) -> Attributor:
        return build(attribute_job(pipeline, spec), weights if spec.method_stage.uses_model else None, CPU)

    for spec in specs[:-1]:
        hooked = hook_of(spec)
        match spec.method_stage.hook:
            case "features":
                rows = {"idx": images.idx, **hooked.features(images)}
            case "accumulate":
                total = hooked.accumulate(rows)
                prepared = {name: tensor.double() for name, tensor in total.items()}
            case "fit":
                prepared = hooked.fit(total, iter([rows]))
            case "fit_item":
                adapted = [hooked.fit_item(item, prepared, lambda step, loss: None).tensors for item in items]
            case "sample":
                hooked.load(prepared, adapted)
                inside = torch.from_numpy(np.flatnonzero(hooked.in_sample(images.idx.numpy())))
                assert 0 < len(inside) < len(images)
                rows = hooked.sample(images[inside])
            case "fit_together":
                prepared = hooked.fit_together(prepared, adapted)
            case "fit_screen":
                prepared, rows = hooked.fit_screen(iter([rows])), images
            case "score":
                hooked.load(prepared, adapted)
                columns = hooked.columns(rows)
                measure = specs[-1].recipe.rank.measure
                return (columns["score"] if "score" in columns else select_measure(columns, measure)).numpy()
    raise AssertionError("no part scores")


@pytest.mark.parametrize("method", METHODS[1:])
def test_a_method_through_ray_is_the_plain_loop(compared: Pipeline, method: str):
    idx, scores = all_scores(stored_scores(compared.stages[f"attribute/{method}"]))
    plain = plain_scores(compared, method)
    assert np.array_equal(idx, whole(compared.dataset).idx.numpy())
    assert np.abs(scores).max() > 0 and scores.std(axis=0).max() > 0
    if method in ("das", "abu"):  # sums over the set are added up in another order
        np.testing.assert_allclose(scores, plain, rtol=2e-3, atol=2e-3 * np.abs(plain).max())
    else:
        assert np.array_equal(scores, plain)


def test_screening_leaves_something_out_and_says_what_to_expect(compared: Pipeline):
    stages = compared.stages
    _, scores = all_scores(stored_scores(compared.stages["attribute/mucs/screen"]))
    _, exact = all_scores(stored_scores(compared.stages["attribute/mucs"]))
    out = scores < -1
    assert 0 < out.mean() < 1
    np.testing.assert_allclose(scores[~out], exact[~out], atol=1e-6)
    facts, scored = stages["attribute/mucs/screen/bounds"].facts(), stages["attribute/mucs/screen/score"].facts()
    assert 0 < facts["recall"] <= 1 and facts["sample"] < len(scores)
    assert 0 < scored["forwards"] < stages["attribute/mucs/score"].facts()["forwards"]
    assert "attribute/mucs/screen/unlearn" not in stages  # it is that of mucs


def test_settings_that_tuning_finds_are_kept(
    compared: Pipeline, data: Dataset, copied: Callable[[], Path], cluster: Cluster
):
    """Images a forward: other than one, so equal to rounding; whoever goes on computes in the same way."""
    score = {"precision": "auto", "images_per_forward": "auto", "compile": "auto"}
    pipeline = open_tiny(data, copied(), methods=("mucs",), score=score)
    work(pipeline, "attribute", cluster)
    stage = pipeline.stages["attribute/mucs/score"]
    file = stage.part("tuning", "json")
    actual = stage.manifest()
    assert actual is not None and file in actual.files
    tuning = storage.read_json(stage.url(file))
    assert tuning["images_per_forward"] >= 1 and tuning["compile"] == "off" and tuning["seconds_a_forward"] > 0
    _, scores = all_scores(stored_scores(pipeline.stages["attribute/mucs"]))
    rounding = 1e-4 if tuning["precision"] == "fp32" else 0.02
    np.testing.assert_allclose(scores, all_scores(stored_scores(compared.stages["attribute/mucs"]))[1], atol=rounding)
    assert {knob: stage.facts()[knob] for knob in AUTO_SETTINGS} == {knob: tuning[knob] for knob in AUTO_SETTINGS}
    storage.remove(stage.url("manifest.json"))
    lost = next(name for name in actual.files if name.endswith(".parquet"))
    storage.remove(stage.url(lost))
    storage.publish_json(stage.url(file), {**tuning, "seconds_a_forward": 12.5})
    work(pipeline, "attribute", cluster)
    assert storage.read_json(stage.url(file))["seconds_a_forward"] == 12.5  # not tried again
    again = stage.manifest()
    assert again is not None and again.files[lost] == actual.files[lost]


def test_the_speed_of_the_run_is_that_of_scoring_alone(compared: Pipeline):
    """Features take a backward pass for each forward, so they do not count."""
    actual = facts_of_streams(compared, compared.plan("attribute"))
    assert {"attribute/mucs/score", "attribute/mucs/screen/sample"} <= actual.keys()
    assert compared.stages["attribute/das/features"].facts()["forwards"] > 0
    assert all(name.endswith(("/score", "/sample")) for name in actual)


@pytest.mark.parametrize(("kind", "device", "inside"), [
    (MUCS, "cuda", "medium"), (AbU, "cuda", "medium"), (DAS, "cuda", "highest"), (MUCS, "cpu", "highest"),
])  # fmt: skip
def test_only_unlearning_on_a_gpu_multiplies_as_training_does(kind: type[Attributor], device: str, inside: str):
    """What the process does next is as exact as before."""
    (stage,) = (stage for stage in kind.card.stages if stage.hook == "fit_item")
    with suppress(OSError), numerics(stage, torch.device(device)):
        assert torch.get_float32_matmul_precision() == inside
        assert torch.are_deterministic_algorithms_enabled() == (inside == "medium")
        raise OSError
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.are_deterministic_algorithms_enabled()


def test_methods_differ(compared: Pipeline):
    lists = [
        all_scores(stored_scores(compared.stages[f"attribute/{method}"]))[1].argsort(axis=0).tobytes()
        for method in METHODS
    ]
    assert len({*lists}) == len(METHODS)


def test_the_ensemble_of_mucs_alone_orders_as_mucs(compared: Pipeline):
    idx, scores = all_scores(stored_scores(compared.stages["attribute/mucs"]))
    _, together = all_scores(stored_scores(compared.stages["attribute/ensemble/R"]))
    for number in range(scores.shape[1]):
        name, seed = ranking_name(number), compared.recipe.seed
        assert np.array_equal(ranks(scores[:, number], idx, seed, name), ranks(together[:, number], idx, seed, name))


def test_mutual_ranks_are_those_of_all_scores(compared: Pipeline):
    idx, scores = all_scores(stored_scores(compared.stages["attribute/mucs"]))
    names = [ranking_name(number) for number in range(scores.shape[1])]
    _, mutual = all_scores(stored_scores(compared.stages["attribute/mucs/mutual"]))
    assert np.array_equal(mutual, mutual_ranks(scores, idx, compared.recipe.seed, names))


def test_whitened_scores_are_those_of_all_scores(compared: Pipeline):
    idx, scores = all_scores(stored_scores(compared.stages["attribute/mucs"]))
    ((_, expected),) = whitened(lambda: [(idx, scores)], scores.shape[1], 1.0)
    _, found = all_scores(stored_scores(compared.stages["attribute/mucs/whitened"]))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_the_ensemble_of_mucs_alone_orders_as_mucs_when_corrected(
    compared: Pipeline, data: Dataset, copied: Callable[[], Path], cluster: Cluster
):
    """Ranks are corrected once, and those of the reference are not corrected."""
    mutual = open_tiny(
        data, copied(), methods=("random", "mucs", "ensemble/R"), rank={"correction": "mutual"}, method=SMALL
    )
    work(mutual, "attribute", cluster)
    actual = {
        name: all_scores(stored_scores(mutual.stages[f"attribute/{name}"])) for name in ("random", "mucs", "ensemble/R")
    }
    plain = {
        name: all_scores(stored_scores(compared.stages[f"attribute/{name}"])) for name in ("random", "mucs/mutual")
    }
    assert np.array_equal(actual["random"][1], plain["random"][1])
    assert np.array_equal(actual["mucs"][1], plain["mucs/mutual"][1])
    idx, scores = actual["mucs"]
    for number, together in enumerate(actual["ensemble/R"][1].T):
        name, seed = ranking_name(number), mutual.recipe.seed
        assert np.array_equal(ranks(scores[:, number], idx, seed, name), ranks(together, idx, seed, name))


def test_an_encoder_through_ray_is_the_plain_network(compared: Pipeline, encoder_weights: Path, tmp_path: Path):
    """The driver finds the weights and the workers load them; other weights make the scores stale."""
    idx, scores = all_scores(stored_scores(compared.stages["attribute/users:SmallDINO"]))
    network, images = users.small_network(str(encoder_weights), CPU), whole(compared.dataset)
    items = [load_item(compared.stages["generate"], n).z for n in range(compared.recipe.generate.items)]
    of_images, of_items = (network.embed((each.clamp(-1, 1) + 1) / 2) for each in (images.z, torch.stack(items)))
    assert np.array_equal(idx, images.idx.numpy())
    np.testing.assert_allclose(scores, (of_images.double() @ of_items.double().T).numpy(), atol=1e-6)
    assert scores.std(axis=0).min() > 0.01
    (tmp_path / encoder_weights.name).write_text("16")
    again = open_tiny(compared.dataset, Path(compared.run_url), methods=("users:SmallDINO",), weights_dir=str(tmp_path))
    assert again.stages["attribute/users:SmallDINO/score"].state().status == "stale"


def test_again_does_nothing(compared: Pipeline, cluster: Cluster):
    assert work(compared, "attribute", cluster) == []
