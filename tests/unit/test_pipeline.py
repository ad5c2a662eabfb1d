"""Each command needs certain stages, and a changed setting makes certain stages stale."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from mucs_ray import storage
from mucs_ray.data.queries import find_queries, query_folder
from mucs_ray.data.table import Dataset
from mucs_ray.errors import InputError, MachineError
from mucs_ray.pipeline.graph import Pipeline, reopen
from mucs_ray.run.experiment import Experiment
from mucs_ray.run.resolve import method_names
from mucs_ray.run.seeds import parse_seeds
from mucs_ray.store.run import Stage
from tiny import tiny_dataset, tiny_recipe

MUCS = ["attribute/mucs/null", "attribute/mucs/unlearn", "attribute/mucs/score", "attribute/mucs"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hide all weights of similarity metrics."""
    for name in ("MUCS_RAY_WEIGHTS", "MUCS_RAY_CLIP_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


def opened(
    data: Dataset,
    folder: Path,
    *,
    methods: tuple[str, ...] = ("mucs",),
    weights_dir: str | None = None,
    **changes: object,
) -> Pipeline:
    recipe = tiny_recipe(data.url, **{"evaluate": {"metrics": ["mse"]}, **changes})
    console = Console(file=io.StringIO())
    return Pipeline.open(recipe, data, str(folder), console=console, methods=methods, weights_dir=weights_dir)


def finish(pipeline: Pipeline, *names: str) -> None:
    """Write the manifests of these stages, as if they had run."""
    for name in names:
        pipeline.stage(name).finish({}, {})


def changed(pipeline: Pipeline, other: Pipeline) -> list[str]:
    """Return the stages that the second run has to repeat if the first is done."""
    every = [*pipeline.stages, *pipeline.evaluations]
    return [name for name in every if pipeline.stage(name).fingerprint != other.stage(name).fingerprint]


def test_what_each_command_needs(data: Dataset, tmp_path: Path):
    pipeline = opened(data, tmp_path)
    assert list(pipeline.plan("pretrain")) == ["pretrain"]
    assert list(pipeline.plan("generate")) == ["pretrain", "generate"]
    assert list(pipeline.plan("attribute")) == ["pretrain", "generate", *MUCS, "report"]
    first = ["pretrain", "generate", "attribute/random", *MUCS]
    retrained = ["retrain/random", "retrain/mucs"]
    assert sorted(pipeline.plan("retrain")) == sorted([*first, *retrained])
    regenerated = ["regenerate/random", "regenerate/mucs"]
    assert sorted(pipeline.plan("regenerate")) == sorted([*first, *retrained, *regenerated])
    compared = ["evaluate/random", "evaluate/mucs", "evaluate/unrelated", "report"]
    assert sorted(pipeline.plan("evaluate")) == sorted([*first, *retrained, *regenerated, *compared])


def test_every_stage_comes_after_what_it_reads(data: Dataset, tmp_path: Path):
    order = list(opened(data, tmp_path).plan("evaluate"))
    for place, name in enumerate(order[:-1]):
        needs = [each for each in opened(data, tmp_path).stage(name).inputs if each not in ("data", "targets")]
        assert set(needs) <= set(order[:place])


def test_the_reference_alone_needs_no_unlearning(data: Dataset, tmp_path: Path):
    plan = opened(data, tmp_path, methods=("random",)).plan("evaluate")
    assert not set(MUCS) & set(plan) and "evaluate/random" in plan


def test_each_item_is_a_training_of_its_own(data: Dataset, tmp_path: Path):
    plan = opened(data, tmp_path, remove={"mode": "per-item"}).plan("retrain")
    assert [name for name in plan if name.startswith("retrain/mucs")] == [
        "retrain/mucs/item-0000", "retrain/mucs/item-0001",
    ]  # fmt: skip


def test_both_modes_stand_beside_each_other(data: Dataset, tmp_path: Path):
    """A run that was tested by union removal keeps that when matched removal is asked for as well."""
    union, both = opened(data, tmp_path), opened(data, tmp_path, remove={"mode": "both", "size": 9})
    assert [name for name in both.plan("retrain") if name.startswith("retrain/")] == [
        "retrain/random/matched", "retrain/random", "retrain/mucs/matched", "retrain/mucs",
    ]  # fmt: skip
    assert changed(union, both) == []
    alone = opened(data, tmp_path, remove={"mode": "matched", "size": 9})
    assert both.stage("retrain/mucs/matched").reads == alone.stage("retrain/mucs").reads
    assert both.tests["mucs/matched"] == ("mucs", "matched") and both.tests["mucs"] == ("mucs", "union")


ATTRIBUTED = ["pretrain", "generate", "attribute/random", *MUCS, "report"]


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("mucs/subtraction", ["attribute/mucs/subtraction"]),
        ("mucs/mutual", ["attribute/mucs/mutual"]),
        ("mucs/whitened", ["attribute/mucs/whitened"]),
        ("mucs/full-schedule", ["attribute/mucs/full-schedule/score", "attribute/mucs/full-schedule"]),
        (
            "mucs/lambda=0.1",
            [f"attribute/mucs/lambda=0.1{part}" for part in ("/unlearn", "/score", "")],
        ),
        ("ensemble/R", ["attribute/ensemble/R"]),
        ("mucs/linear", [f"attribute/mucs/linear{part}" for part in ("/features", "/solve", "/score", "")]),
        (
            "mucs/linear-half",
            [
                "attribute/mucs/linear/features",
                *(f"attribute/mucs/linear-half{part}" for part in ("/solve", "/score", "")),
            ],
        ),
    ],
)
def test_a_variant_does_only_what_it_does_differently(data: Dataset, tmp_path: Path, method: str, more: list[str]):
    plan = opened(data, tmp_path, methods=("mucs", method)).plan("attribute")
    assert sorted({*plan} - {*ATTRIBUTED}) == sorted(more)
    alone = opened(data, tmp_path, methods=(method,)).plan("attribute")
    assert "attribute/mucs/null" in alone and {*alone} <= {*plan}


def test_a_variants_recipe_is_the_methods_own(data: Dataset, tmp_path: Path):
    specs = opened(data, tmp_path, method={"mucs": {"ascent_weight": 0.7}}).method_stages
    weights = [
        specs[f"attribute/mucs{name}/unlearn"].recipe.method["mucs"].ascent_weight for name in ("", "/lambda=0.1")
    ]
    assert weights == [0.7, 0.1]
    assert specs["attribute/forward-inf/score"].recipe.score.noise == "independent"
    assert specs["attribute/forward-inf/skew/score"].recipe.score.noise == "shared"
    assert "attribute/forward-inf/skew/unlearn" not in specs


def streams_pictures(pipeline: Pipeline, names: list[str]) -> list[str]:
    """Return those of the stages that stream the training set and no features of it."""
    specs = [pipeline.method_stages[name] for name in names if name in pipeline.method_stages]
    featured = {name for name, spec in pipeline.method_stages.items() if spec.hook == "features"}
    return [spec.name for spec in specs if spec.streams and not featured.intersection(spec.inputs)]


@pytest.mark.parametrize(
    ("method", "features", "missing"),
    [
        ("das", "attribute/das", ["attribute/das/items", "attribute/das/score", "attribute/das"]),
        ("dtrak", "attribute/dtrak", ["attribute/dtrak/items", "attribute/dtrak/score", "attribute/dtrak"]),
        (
            "mucs/linear",
            "attribute/mucs/linear",
            ["attribute/mucs/unlearn", "attribute/mucs/linear/score", "attribute/mucs/linear"],
        ),
    ],
)
def test_a_further_query_streams_features_and_no_picture(
    data: Dataset, tmp_path: Path, method: str, features: str, missing: list[str]
):
    """Once the features and K are there, for whatever picture, nothing that streams the pictures is left to do."""
    run = opened(data, tmp_path, methods=(method,))
    first = run.explaining(find_queries(["idx:5"]))
    assert f"{features}/features" in streams_pictures(first, list(first.plan("attribute")))
    finish(run, "pretrain", f"{features}/features", f"{features}/solve", "attribute/mucs/null")
    further = run.explaining(find_queries(["idx:7"]))
    left = [name for name, state in further.plan("attribute").items() if state.status != "done"]
    assert left == ["generate", *missing, "report"]
    assert streams_pictures(further, left) == []
    assert streams_pictures(further, [f"{features}/score", "attribute/mucs/score"]) == ["attribute/mucs/score"]


def test_parts_of_a_method_are_those_it_shares_too(data: Dataset, tmp_path: Path):
    pipeline = opened(data, tmp_path)
    assert pipeline.stages_of("mucs") == MUCS
    assert sorted(pipeline.stages_of("mucs/subtraction")) == sorted([*MUCS[:3], "attribute/mucs/subtraction"])


@pytest.mark.usefixtures("bare")
def test_a_method_whose_weights_are_absent_is_one_line(data: Dataset, tmp_path: Path):
    for method in ("clip", "ensemble/D"):
        with pytest.raises(MachineError, match=r"clip: .*open_clip|dino: .*DINOv2") as caught:
            opened(data, tmp_path, methods=(method,)).plan("attribute")
        assert len(str(caught.value).splitlines()) == 1
    assert "attribute/pixel" in opened(data, tmp_path, methods=("pixel",)).plan("attribute")


def test_learned_weights_come_from_other_seeds(data: Dataset, tmp_path: Path):
    with pytest.raises(InputError, match=r"ensemble/learned needs weights: give --set ensemble.learned_from=URL"):
        opened(data, tmp_path / "a", methods=("ensemble/learned",)).plan("attribute")
    tested = [
        {"method": "mucs", "metrics": {"mse": {"auc": 0.7}, "ssim": {"auc": 0.9}}},
        {"method": "pixel", "metrics": {"mse": {"auc": 0.6}, "ssim": {"auc": 0.55}}},
        {"method": "random", "metrics": {"mse": {"auc": 0.5}, "ssim": {"auc": 0.5}}},
        *({"method": name, "metrics": {"mse": {"auc": 0.9}}} for name in ("ensemble/A", "ensemble/learned", "my:Own")),
    ]
    other = str(tmp_path / "other")
    storage.publish_json(f"{other}/report/report.json", {"evaluation": {"seeds": [7, 8], "methods": tested}})
    change = {"ensemble": {"learned_from": other}}
    learned = opened(data, tmp_path / "b", methods=("ensemble/learned",), **change)
    assert learned.known["ensemble/learned"].weights == {"mucs": 10.0, "pixel": 2.5}
    assert {"attribute/mucs", "attribute/pixel", "attribute/ensemble/learned"} <= {*learned.plan("attribute")}
    with pytest.raises(InputError, match=r"has seed 7 itself; learn weights on other seeds"):
        _ = opened(data, tmp_path / "c", methods=("ensemble/learned",), seed=7, **change).known
    for folder in (other, f"{other}/seed-1"):
        with pytest.raises(InputError, match=r"other is this run itself; give another folder with --run"):
            _ = opened(data, folder, methods=("ensemble/learned",), **change).known
    missing = {"ensemble": {"learned_from": str(tmp_path / "none")}}
    with pytest.raises(InputError, match=r"no report at .*; run mucs-ray run there first"):
        _ = opened(data, tmp_path / "d", methods=("mucs", "ensemble/learned"), **missing).known
    assert opened(data, tmp_path / "d", **missing).known["ensemble/learned"].weights == {}  # not asked for


def test_learned_weights_are_kept_with_the_run(data: Dataset, tmp_path: Path):
    """The run from which they were learned may be gone when somebody looks at this one."""
    tested = [{"method": "mucs", "metrics": {"mse": {"auc": 0.7}}}]
    other = tmp_path / "other"
    storage.publish_json(f"{other}/report/report.json", {"evaluation": {"seeds": [7], "methods": tested}})
    run = opened(data, tmp_path / "run", methods=("ensemble/learned",), ensemble={"learned_from": str(other)})
    storage.publish_json(storage.join(run.run_url, "recipe.json"), run.describe())
    (other / "report/report.json").unlink()
    again = reopen(run.run_url, console=run.console)
    assert again.known["ensemble/learned"].weights == {"mucs": 10.0}
    assert again.describe() == run.describe()


def test_ranks_are_corrected_once_and_the_reference_never(data: Dataset, tmp_path: Path):
    specs = opened(data, tmp_path, methods=("mucs", "ensemble/R"), rank={"correction": "mutual"}).method_stages
    variants = {name: specs[f"attribute/{name}"] for name in ("random", "mucs", "pixel", "ensemble/R")}
    corrections = {name: task.recipe.rank.correction for name, task in variants.items()}
    assert corrections == {"random": "none", "mucs": "mutual", "pixel": "mutual", "ensemble/R": "none"}
    assert {name: task.reads["rank.correction"] for name, task in variants.items()} == corrections


def test_variants_stay_what_they_are_called(data: Dataset, tmp_path: Path):
    """A variant keeps its own settings, whatever the recipe's are."""
    other = {"sigmas": "training", "noise": "independent", "keep": 0.5}
    specs = opened(data, tmp_path, score=other, rank={"measure": "skew"}).method_stages

    def scored(method: str) -> tuple[object, ...]:
        recipe = specs[f"attribute/{method}"].recipe
        return recipe.score.sigmas, recipe.score.keep, recipe.score.noise, recipe.rank.measure

    assert scored("abu") == ("schedule", 1.0, "shared", "difference")
    assert scored("mucs/full-schedule") == ("schedule", 1.0, "independent", "skew")
    assert scored("forward-inf") == ("training", 0.5, "independent", "difference")
    assert scored("abu/skew") == scored("forward-inf/skew") == scored("mucs")  # whatever MUCS is scored by


@pytest.mark.parametrize(
    ("change", "first", "kept"),
    [
        ({"remove": {"mode": "matched"}}, "retrain/random", ["attribute/mucs", "attribute/random", "generate"]),
        ({"remove": {"mode": "matched", "size": 9}}, "retrain/random", ["attribute/mucs"]),
        ({"rank": {"top_percent": 5.0}}, "attribute/random", ["attribute/mucs/score", "generate"]),
        ({"score": {"noises": 4}}, "attribute/forward-inf/score", ["attribute/random", "retrain/random", "pretrain"]),
        ({"generate": {"controls": 2}}, "generate", ["attribute/mucs", "attribute/random", "retrain/mucs"]),
        ({"evaluate": {"metrics": ["mse"], "unrelated": 1}}, "evaluate/unrelated", ["evaluate/mucs"]),
        ({"train": {"updates": 16}}, "pretrain", ["attribute/mucs/null"]),
        ({"generate": {"conditions": "train"}}, "generate", ["pretrain"]),
        ({"engine": {"trainings": 1}}, None, ["pretrain", "retrain/mucs", "evaluate/mucs"]),
    ],
)
def test_what_a_setting_makes_stale(data: Dataset, tmp_path: Path, change: dict, first: str | None, kept: list[str]):
    stale = changed(opened(data, tmp_path), opened(data, tmp_path, **change))
    assert stale[:1] == ([first] if first else []) and not set(kept) & set(stale)


def test_a_setting_that_came_later_is_in_no_fingerprint_until_it_is_changed(data: Dataset, tmp_path: Path):
    runs = [opened(data, tmp_path, generate={"conditions": split}) for split in ("test", "train")]
    reads = [set(run.stages["generate"].reads) for run in runs]
    assert reads[1] - reads[0] == {"generate.conditions"} and not reads[0] - reads[1]


def test_other_weights_make_only_the_comparison_stale(data: Dataset, tmp_path: Path):
    recipe = {"evaluate": {"metrics": ["mse", "lpips-squeeze"]}}
    runs = []
    for content in (b"one", b"another"):
        folder = tmp_path / content.decode()
        folder.mkdir()
        (folder / "squeezenet1_1.safetensors").write_bytes(content)
        runs.append(opened(data, tmp_path / "run", weights_dir=str(folder), **recipe))
    stale = changed(*runs)
    assert {"evaluate/random", "evaluate/mucs", "evaluate/unrelated"} <= {*stale}
    assert all(name.startswith("evaluate/") for name in stale)


def test_the_weights_folder_is_remembered_from_any_folder(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Otherwise a later command that does not name it would lose what was measured with it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    first = opened(data, tmp_path / "run", weights_dir="weights")
    storage.publish_json(storage.join(first.run_url, "recipe.json"), first.describe())
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert opened(data, tmp_path / "run").weights_dir == str(tmp_path / "weights") == first.weights_dir
    assert reopen(str(tmp_path / "run"), console=Console()).weights_dir == first.weights_dir


def test_the_report_shows_what_is_done_whoever_asks(data: Dataset, tmp_path: Path):
    """Repeating an attribution after the counterfactual test does not take the test out of the report."""
    pipeline = opened(data, tmp_path)
    alone = pipeline.report(planned=["generate", "attribute/mucs"]).fingerprint
    finish(pipeline, *pipeline.plan("evaluate"))
    (tmp_path / "report.html").write_text("")
    assert pipeline.report().fingerprint != alone
    for command in ("evaluate", "attribute", "report"):
        assert pipeline.plan(command)["report"].status == "done"


def test_imported_weights_cannot_be_retrained(data: Dataset, tmp_path: Path):
    pipeline = Pipeline(
        recipe=tiny_recipe(data.url, weights="x.ckpt"), dataset=data, run_url=str(tmp_path), console=Console()
    )
    for command in ("retrain", "regenerate", "evaluate", "lds"):
        with pytest.raises(InputError, match=f"{command} needs a model trained in this run"):
            pipeline.target_stages(command)


def test_absent_weights_cost_only_the_evaluation(data: Dataset, tmp_path: Path, bare: None):
    pipeline = opened(data, tmp_path, evaluate={"metrics": ["sscd"]})
    assert pipeline.plan("attribute")["report"].status == "missing"
    with pytest.raises(MachineError, match=r"^sscd: the weights of SSCD"):
        pipeline.plan("evaluate")


def test_status_finds_the_same_stages(data: Dataset, tmp_path: Path):
    pipeline = opened(data, tmp_path, methods=("mucs",))
    storage.publish_json(storage.join(pipeline.run_url, "recipe.json"), pipeline.describe())
    again = reopen(str(tmp_path), console=Console())
    assert changed(pipeline, again) == [] and again.methods == ("mucs",)
    assert again.last_command() == "attribute"
    finish(pipeline, "retrain/random")
    assert again.last_command() == "retrain"


def test_a_single_picture_is_not_tested_twice(data: Dataset, tmp_path: Path):
    """The top-k of one list is what matched removal takes too."""
    run = opened(data, tmp_path, methods=("pixel",), remove={"mode": "both"})
    one, two = (run.explaining(find_queries(images)) for images in (["idx:1"], ["idx:1", "idx:2"]))
    assert one.compared_keys() == ["random", "pixel"] and len(two.compared_keys()) == 4
    sized = opened(data, tmp_path, methods=("pixel",), remove={"mode": "both", "size": 9})
    assert len(sized.explaining(find_queries(["idx:1"])).compared_keys()) == 4


def with_pictures(data: Dataset, folder: Path, *, generated: bool, **evaluate: object) -> Pipeline:
    """Return a run that explains two images of the data set, as if it had generated them or not."""
    run = opened(data, folder, methods=("pixel",), evaluate={"metrics": ["mse"], **evaluate})
    queries = [replace(query, generated="x" if generated else "") for query in find_queries(["idx:1", "idx:2"])]
    return run.explaining(queries)


def test_what_a_test_of_pictures_needs(data: Dataset, tmp_path: Path):
    """The noise of a picture is not known, so only its loss is compared, unless fresh images stand in its place."""
    strange = with_pictures(data, tmp_path, generated=False)
    retrained = ["generate", "attribute/random", "attribute/pixel/score", "attribute/pixel"]
    retrained += ["retrain/random", "retrain/pixel"]
    losses = ["pretrain", *retrained, "evaluate/random", "evaluate/pixel", "report"]
    assert sorted(strange.plan("evaluate")) == sorted(losses) and sorted(strange.plan("retrain")) == sorted(retrained)
    with pytest.raises(InputError, match=r"idx:1 was not generated in this run.*--set evaluate\.fresh=8"):
        strange.plan("regenerate")
    with pytest.raises(InputError, match="pretrain explains no pictures"):
        strange.plan("pretrain")
    again = ["regenerate/random", "regenerate/pixel", "evaluate/unrelated"]
    fresh = with_pictures(data, tmp_path, generated=False, fresh=3)
    assert sorted(fresh.plan("evaluate")) == sorted([*losses, *again, "generate/fresh"])
    assert sorted(with_pictures(data, tmp_path, generated=True).plan("evaluate")) == sorted([*losses, *again])
    assert fresh.stages["retrain/pixel"].run_url == fresh.run_url == f"{tmp_path}/{query_folder(fresh.queries)}"
    # the number of fresh images changes nothing of the losses' retrainings, and the noises only what is measured
    more = with_pictures(data, tmp_path, generated=False, fresh=4)
    assert changed(fresh, more) == [
        "generate/fresh", *(name for name in fresh.stages if name.startswith("regenerate/")), *fresh.evaluations,
    ]  # fmt: skip
    noisier = with_pictures(data, tmp_path, generated=False, noises=9)
    assert changed(strange, noisier) == list(strange.evaluations)


def test_seeds():
    assert parse_seeds("1..3") == [1, 2, 3] and parse_seeds("4") == [4] and parse_seeds("1,5..6") == [1, 5, 6]
    for wrong in ("", "a", "3..1", "1,1", "-1", "1..99999"):
        with pytest.raises(InputError, match="--seeds"):
            parse_seeds(wrong)


def test_the_report_over_seeds_depends_on_each(data: Dataset, tmp_path: Path):
    def experiment(*seeds: int) -> Stage:
        runs = [opened(data, tmp_path / f"seed-{seed}", seed=seed) for seed in seeds]
        return Experiment(run_url=str(tmp_path), pipelines=tuple(runs)).report()

    one, both = experiment(1), experiment(1, 2)
    assert both.fingerprint not in (one.fingerprint, experiment(1, 3).fingerprint)
    assert both.fingerprint == experiment(1, 2).fingerprint
    assert set(one.inputs) < set(both.inputs)


def test_methods_by_name():
    assert method_names(None) == ("mucs",) and method_names(["mucs,random"]) == ("random", "mucs")
    with pytest.raises(InputError, match=r"unknown method 'magic'; known: random, pixel, .*, or give MODULE:CLASS"):
        method_names(["mucs,magic"])
    with pytest.raises(InputError, match="names no method"):
        method_names([" ,"])
