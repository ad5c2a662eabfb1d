"""The report of a finished run: report.html, and report/ with the numbers as JSON, CSV and LaTeX."""

import json
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from hashlib import sha256
from typing import Any

import torch

from mucs_ray import storage
from mucs_ray.attribution.registry import REFERENCE
from mucs_ray.data.table import Row
from mucs_ray.evaluation.analysis import Analysis
from mucs_ray.models.adapters import adapter
from mucs_ray.pipeline.graph import Pipeline
from mucs_ray.report.document import Answer, Histogram, ItemSection, RankedImage, Report, Unlearning
from mucs_ray.report.export import to_csv, to_latex
from mucs_ray.report.html import render
from mucs_ray.results import counterfactual
from mucs_ray.results.counterfactual import is_done
from mucs_ray.store import checkpoint
from mucs_ray.store.item_names import item_file
from mucs_ray.store.items import load_item, shown
from mucs_ray.store.run import Stage
from mucs_ray.store.topk import read_topk

SHOWN = 16
"""The number of training images shown for each item."""


def write(pipeline: Pipeline) -> tuple[dict[str, str], dict[str, Any]]:
    """Publish the report of a run whose attribution is done.

    Returns the sha256 of its files, and that of report.html as a fact.
    """
    analysis = counterfactual.analysis_of([pipeline])
    report, numbers = document(pipeline, analysis), as_json(pipeline, analysis)
    return publish(pipeline.report(), pipeline.run_url, report, numbers, analysis)


def publish(
    stage: Stage, run_url: str, report: Report, numbers: dict[str, Any], analysis: Analysis | None
) -> tuple[dict[str, str], dict[str, Any]]:
    """Publish report.html in the run directory itself, and the other files in the stage's folder."""
    files = {"report.json": json.dumps(numbers, indent=1)}
    if analysis is not None and report.evaluation is not None:
        files |= {"results.csv": to_csv(analysis), "tables.tex": to_latex(report.evaluation.tables)}
    stage.begin(list(files))
    stage.retract()
    html = render(report).encode()
    storage.publish(storage.join(run_url, "report.html"), html)
    for name in {"results.csv", "tables.tex"} - set(files):  # an earlier report had an evaluation
        storage.remove(stage.url(name))
    digests = {name: storage.publish(stage.url(name), text.encode()) for name, text in files.items()}
    return digests, {"sha256": sha256(html).hexdigest()}


def shown_methods(pipeline: Pipeline) -> list[str]:
    """Return the methods whose answers are shown: all that are done except random, unless only random is done."""
    finished = [method for method in pipeline.available_methods() if is_done(pipeline.stages[f"attribute/{method}"])]
    return [method for method in finished if method != REFERENCE] or finished


def method_lines(pipeline: Pipeline) -> tuple[tuple[str, str], ...]:
    """Return the name and the one-line summary of each method that is shown."""
    return tuple((pipeline.known[method].label, pipeline.known[method].summary) for method in shown_methods(pipeline))


def document(pipeline: Pipeline, analysis: Analysis | None) -> Report:
    """Collect everything that the report shows."""
    methods = shown_methods(pipeline)
    pictured = counterfactual.without_variants(methods)
    facts = pipeline.stages[f"attribute/{methods[0]}"].facts()
    sections = item_sections(pipeline, pictured)
    return Report(
        title=f"{pipeline.recipe.name}, seed {pipeline.recipe.seed}",
        subtitle=f"{len(sections)} generated images attributed to {facts['num_images']:,} training images",
        methods=method_lines(pipeline),
        top_k=facts["k"],
        num_training_images=facts["num_images"],
        facts=tuple(run_facts(pipeline)),
        stages=tuple(stage_times(pipeline)),
        items=tuple(sections),
        evaluation=None if analysis is None else counterfactual.section([pipeline], analysis),
        hubs=counterfactual.hubs([pipeline], methods),
    )


def item_sections(pipeline: Pipeline, methods: Sequence[str]) -> list[ItemSection]:
    """Return one section for each generated image, with every method's answer."""
    tops = {method: read_topk(pipeline.stages[f"attribute/{method}"]) for method in methods}
    pictured = {int(row["idx"]) for top in tops.values() for rows in top.values() for row in rows[:SHOWN]}
    pictures = pipeline.dataset.find(pictured, "train")
    planned = pipeline.stages["generate"].facts()["items"]
    test_rows = pipeline.dataset.find({item["idx"] for item in planned}, "test")
    codec, sections = adapter(pipeline.recipe.model).codec(torch.device("cpu")), []
    for number in range(pipeline.recipe.generate.items):
        item = load_item(pipeline.stages["generate"], number)
        answers = [answer(pipeline, method, number, top[number], pictures) for method, top in tops.items()]
        label = condition_name(pipeline, test_rows[planned[number]["idx"]])
        sections.append(
            ItemSection(number=number, idx=item.idx, label=label, image=shown(item, codec), answers=tuple(answers))
        )
    return sections


def answer(
    pipeline: Pipeline, method: str, number: int, rows: list[dict[str, str]], pictures: dict[int, Row]
) -> Answer:
    """Return one method's top training images of an item, the course of its unlearning, and all its scores."""
    histogram = pipeline.stages[f"attribute/{method}"].facts()["histograms"][number]
    ranked = [
        RankedImage(
            rank=int(row["rank"]),
            idx=int(row["idx"]),
            score=float(row["score"]),
            label=row["label"],
            text=row["text"],
            name=row.get("name", ""),  # topk.csv of earlier versions has none
            image=pictures[int(row["idx"])].image,
        )
        for row in rows[:SHOWN]
    ]
    return Answer(
        method=pipeline.known[method].label,
        ranked=tuple(ranked),
        unlearning=unlearning(pipeline, method, number),
        histogram=Histogram(
            edges=tuple(histogram["edges"]),
            counts=tuple(histogram["counts"]),
            top_k_score=float(rows[-1]["score"]),
        ),
    )


def condition_name(pipeline: Pipeline, test_row: Row) -> str:
    """Return what the item was generated from: a caption, a class, or nothing."""
    card = pipeline.dataset.card
    if not pipeline.recipe.model.conditional:
        return "unconditional"
    if card.condition == "embedding":
        return test_row.text[0] if test_row.text else ""
    return card.classes[test_row.label] if test_row.label is not None and card.classes else ""


def unlearning(pipeline: Pipeline, method: str, number: int) -> Unlearning | None:
    """Return the trace stored beside an item's tensors; None for methods that do not unlearn up to a bound."""
    for name in () if pipeline.known[method].is_ensemble else pipeline.stages_of(method):
        part, stage = pipeline.method_stages[name].method_stage, pipeline.stages[name]
        if part is None or part.hook != "fit_item":
            continue
        _, facts = checkpoint.load(stage.url(item_file(stage, number)))
        if "target" in facts:
            return Unlearning(
                steps=facts["updates"],
                outcome=facts["outcome"],
                seconds=stage.facts()["seconds_an_item"].get(str(number), 0.0),
                null_loss=facts["null_loss"],
                target=facts["target"],
                item_loss=tuple(facts["item_loss"]),
                train_loss=tuple(facts["train_loss"]),
            )
    return None


def run_facts(pipeline: Pipeline) -> Iterable[tuple[str, str]]:
    """Yield the name and value of each fact that a reader needs to judge or repeat the run."""
    recipe, card = pipeline.recipe, pipeline.dataset.card
    trained = pipeline.stages["pretrain"].facts()
    counts = {split: f"{card.num_images(split):,} {split}" for split in ("train", "test")}
    yield "recipe", f"{recipe.name}, seed {recipe.seed}"
    yield "data set", f"{card.name}: {counts['train']}, {counts['test']}, {card.size} px"
    yield "licence of the images", card.licence
    yield "model", recipe.model.describe()
    if recipe.weights:
        yield "weights", recipe.weights.rsplit("/", 1)[-1]
    elif recipe.trains:
        yield "training", f"{trained['updates']:,} updates of {recipe.train.batch_size}, {trained['workers']} workers"
        yield "validation loss", f"{trained['best_loss']:.4f} (best, after {trained['best_step']:,} updates)"
    if any(is_done(stage) for stage in pipeline.evaluated.values()):
        yield "removed", f"{recipe.remove.mode}: top {recipe.rank.top_percent:g} % an image"
    if is_done(pipeline.stages["attribute/mucs"]):
        yield from mucs_facts(pipeline)
    if is_done(pipeline.stages["attribute/mucs/screen"]):
        screen = pipeline.method_stages["attribute/mucs/screen/bounds"].load()
        yield "screening", screen.expectation(pipeline.stages["attribute/mucs/screen/bounds"].facts())
    versions = {**pipeline.stages["generate"].facts()["versions"], "python": platform.python_version()}
    yield "versions", ", ".join(f"{name} {value}" for name, value in versions.items())
    yield "fingerprint", pipeline.report().fingerprint[:16]


def mucs_facts(pipeline: Pipeline) -> Iterable[tuple[str, str]]:
    """Yield the facts that only MUCS has."""
    stages, score = pipeline.stages, pipeline.recipe.score
    measured = stages["attribute/mucs/score"].facts()
    yield "null loss", f"{stages['attribute/mucs/null'].facts()['null_loss']:.4f}"
    compiled = ", compiled" if measured["compile"] == "on" else ""
    together = "1 image" if measured["images_per_forward"] == 1 else f"{measured['images_per_forward']} images"
    how = f"{measured['precision']}, {together} a forward{compiled}"
    yield "noises an image", f"{score.noises}; {how}"
    if measured.get("forwards"):
        rate = measured["forwards"] / measured["wall_seconds"]
        outside = measured["worker_seconds_outside"] / measured["worker_seconds"]
        yield "scoring", f"{measured['forwards']:,} forwards, {rate:,.0f}/s, {outside:.1%} outside the network"


def stage_times(pipeline: Pipeline) -> Iterable[tuple[str, str]]:
    """Yield the name and wall time of each stage that is done, in order."""
    for name, seconds in seconds_by_stage(pipeline):
        yield name, f"{seconds:.1f} s"


def seconds_by_stage(pipeline: Pipeline) -> Iterable[tuple[str, float]]:
    """Yield the name and seconds of each stage that is done, in order."""
    for name, stage in (pipeline.stages | pipeline.evaluated).items():
        if is_done(stage):
            yield name, stage.facts()["seconds"]


def as_json(pipeline: Pipeline, analysis: Analysis | None) -> dict[str, Any]:
    """Return the answer as JSON values, for other programs.

    It holds, by method, the top images of each item and where the files are, and all statistics.
    """
    methods = shown_methods(pipeline)
    return {
        "run": pipeline.run_url,
        "recipe": pipeline.recipe.name,
        "seed": pipeline.recipe.seed,
        "attributions": {method: attribution(pipeline, method) for method in methods},
        "hubs": {name: asdict(hubs) for name, hubs in counterfactual.found_hubs([pipeline], methods).items()},
        "evaluation": None if analysis is None else asdict(analysis),
    }


def attribution(pipeline: Pipeline, method: str) -> dict[str, Any]:
    """Return one method's answer as JSON values."""
    stage = pipeline.stages[f"attribute/{method}"]
    items = [
        {
            "item": number,
            "idx": int(rows[0]["item_idx"]),
            "top": [[int(row["idx"]), float(row["score"])] for row in rows],
            "names": [row.get("name", "") for row in rows],
        }
        for number, rows in read_topk(stage).items()
    ]
    return {"scores": stage.url("scores.parquet"), "topk": stage.url("topk.csv"), "items": items}
