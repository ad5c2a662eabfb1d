"""The report of a finished run: report.html, and report/ with the numbers as JSON, CSV and LaTeX."""

import io
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from PIL import Image

from mucs_ray import storage
from mucs_ray.attribution.loss_change import scored_levels
from mucs_ray.attribution.registry import REFERENCE
from mucs_ray.data.queries import Query
from mucs_ray.data.table import Card, Row
from mucs_ray.diffusion.levels import range_text
from mucs_ray.evaluation.analysis import Analysis
from mucs_ray.models.adapters import adapter
from mucs_ray.pipeline.graph import Pipeline
from mucs_ray.report.document import Answer, Histogram, ItemSection, Picture, RankedImage, Report, Unlearning
from mucs_ray.report.export import to_csv, to_latex
from mucs_ray.report.html import render
from mucs_ray.results import counterfactual, groups, lds, queries, query_test
from mucs_ray.results.counterfactual import is_done
from mucs_ray.results.warnings import nothing_unlearned
from mucs_ray.store import checkpoint
from mucs_ray.store.facts import (
    DoneFacts,
    FittingFacts,
    GenerationFacts,
    ImportFacts,
    NullLossFacts,
    RankingFacts,
    ScoreHistogram,
    ScoringFacts,
    StreamingFacts,
    TrainingFacts,
    UnlearningTrace,
    read_facts,
)
from mucs_ray.store.item_names import item_file
from mucs_ray.store.items import load_item, shown
from mucs_ray.store.run import Stage
from mucs_ray.store.topk import read_topk
from mucs_ray.store.typed import typed

SHOWN = 16
"""The number of training images shown for each item."""


def write(pipeline: Pipeline) -> tuple[dict[str, str], dict[str, Any]]:
    """Publish the report of a run whose attribution is done.

    Returns the sha256 of its files, and that of report.html as a fact.
    """
    analyses = counterfactual.analyses_of([pipeline])
    report, numbers = document(pipeline, analyses), as_json(pipeline, analyses)
    return publish(pipeline.report(), pipeline.run_url, report, numbers, analyses)


def publish(
    stage: Stage, run_url: str, report: Report, numbers: dict[str, Any], analyses: Sequence[Analysis]
) -> tuple[dict[str, str], dict[str, Any]]:
    """Publish report.html in the run directory itself, and the other files in the stage's folder."""
    files = {"report.json": json.dumps(numbers, indent=1)}
    if analyses:
        laid_out = [table for evaluation in report.evaluations for table in evaluation.tables]
        files |= {"results.csv": to_csv(analyses), "tables.tex": to_latex(laid_out)}
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


def document(pipeline: Pipeline, analyses: Sequence[Analysis]) -> Report:
    """Collect everything that the report shows."""
    methods = shown_methods(pipeline)
    pictured = counterfactual.without_variants(methods)
    ranked = read_facts(pipeline.stages[f"attribute/{methods[0]}"], RankingFacts)
    labels = {name: card.label for name, card in pipeline.known.items()}
    sections, kind = item_sections(pipeline, pictured), "pictures" if pipeline.queries else "generated images"
    return Report(
        title=f"{pipeline.recipe.name}, seed {pipeline.recipe.seed}",
        subtitle=f"{len(sections)} {kind} attributed to {ranked.num_images:,} training images",
        methods=method_lines(pipeline),
        top_k=ranked.k,
        num_training_images=ranked.num_images,
        facts=tuple(run_facts(pipeline)),
        stages=tuple(stage_times(pipeline.stages | pipeline.evaluated)),
        items=tuple(sections),
        warnings=tuple(warnings(pipeline)),
        sampled=sampled_picture(pipeline),
        evaluations=counterfactual.sections([pipeline], analyses),
        hubs=counterfactual.hubs_report([pipeline], methods),
        lds=lds.section(pipeline),
        groups=groups.section(pipeline, labels, [section.label for section in sections]),
    )


def sampled_picture(pipeline: Pipeline) -> Picture | None:
    """Return the image that was sampled from weights from elsewhere when they were checked; None if there is none."""
    stage = pipeline.stages["pretrain"]
    name, manifest = stage.part("sample", "png"), stage.manifest()
    if manifest is None or name not in manifest.files:
        return None
    return np.moveaxis(np.asarray(Image.open(io.BytesIO(stage.checked(name))).convert("RGB")), -1, 0)


def item_sections(pipeline: Pipeline, methods: Sequence[str]) -> list[ItemSection]:
    """Return one section for each generated image, with every method's answer."""
    tops = {method: read_topk(pipeline.stages[f"attribute/{method}"]) for method in methods}
    pictured = {int(row["idx"]) for top in tops.values() for rows in top.values() for row in rows[:SHOWN]}
    pictures = pipeline.dataset.find(pictured, "train")
    histograms = {
        method: read_facts(pipeline.stages[f"attribute/{method}"], RankingFacts).histograms for method in methods
    }
    pictures_of_user = queries.facts_of(pipeline)
    labels = [query.condition for query in pictures_of_user] or generated_labels(pipeline)
    codec, sections = adapter(pipeline.recipe.model).codec(torch.device("cpu")), []
    for number in range(pipeline.recipe.generate.items):
        item = load_item(pipeline.stages["generate"], number)
        answers = [
            Answer(
                method=pipeline.known[method].label,
                ranked=tuple(ranked_images(top[number], pictures)),
                unlearning=unlearning(pipeline, method, number),
                histogram=histogram(histograms[method][number], top[number]),
            )
            for method, top in tops.items()
        ]
        query = pipeline.queries[number] if pipeline.queries else None
        sections.append(
            ItemSection(
                number=number,
                idx=item.idx,
                label=labels[number],
                image=shown(item, codec),
                answers=tuple(answers),
                name=query.name if query else "",
                remarks=tuple(queries.remarks(query, pictures_of_user[number], answers, pipeline)) if query else (),
            )
        )
    return sections


def generated_labels(pipeline: Pipeline) -> list[str]:
    """Return what each generated image was made from."""
    planned = read_facts(pipeline.stages["generate"], GenerationFacts).items
    if not pipeline.recipe.model.conditional:
        return ["unconditional"] * len(planned)
    lenders = pipeline.dataset.find({item.idx for item in planned}, pipeline.recipe.generate.conditions)
    captions = pipeline.dataset.card.condition == "embedding" or pipeline.recipe.model.reads_text
    return [condition_name(lenders[item.idx], pipeline.dataset.card, captions=captions) for item in planned]


def ranked_images(rows: Sequence[Mapping[str, str]], pictures: Mapping[int, Row]) -> Iterator[RankedImage]:
    """Yield the first training images of an item's ranking, which `rows` of topk.csv hold, best first."""
    for row in rows[:SHOWN]:
        yield RankedImage(
            rank=int(row["rank"]),
            idx=int(row["idx"]),
            score=float(row["score"]),
            label=row["label"],
            text=row["text"],
            name=row.get("name", ""),  # topk.csv of earlier versions has none
            image=pictures[int(row["idx"])].image,
        )


def histogram(scores: ScoreHistogram, rows: Sequence[Mapping[str, str]]) -> Histogram:
    """Return the histogram of an item's scores for the report, with the k-th highest score."""
    return Histogram(edges=tuple(scores.edges), counts=tuple(scores.counts), top_k_score=float(rows[-1]["score"]))


def condition_name(test_row: Row, card: Card, *, captions: bool) -> str:
    """Return the condition from which an item was generated in words: a caption, a class, or nothing."""
    if captions:
        return test_row.text[0] if test_row.text else ""
    return card.classes[test_row.label] if test_row.label is not None and card.classes else ""


def unlearning(pipeline: Pipeline, method: str, number: int) -> Unlearning | None:
    """Return the trace stored beside an item's tensors; None for methods that do not unlearn up to a bound."""
    for name in () if pipeline.known[method].is_ensemble else pipeline.stages_of(method):
        part, stage = pipeline.method_stages[name].method_stage, pipeline.stages[name]
        if part is None or part.hook != "fit_item":
            continue
        if trace := unlearning_trace(stage, number):
            seconds = read_facts(stage, FittingFacts).seconds_an_item.get(number, 0.0)
            return Unlearning(
                steps=trace.updates,
                outcome=trace.outcome,
                seconds=seconds,
                null_loss=trace.null_loss,
                target=trace.target,
                item_loss=tuple(trace.item_loss),
                train_loss=tuple(trace.train_loss),
            )
    return None


def unlearning_trace(stage: Stage, number: int) -> UnlearningTrace | None:
    """Read the trace in the header of an item's tensors; None if the method does not unlearn up to a bound."""
    url = stage.url(item_file(stage, number))
    _, header = checkpoint.load(url)
    return typed(header, UnlearningTrace, url) if "target" in header else None


def run_facts(pipeline: Pipeline) -> Iterator[tuple[str, str]]:
    """Yield the name and value of each fact that a reader needs to judge or repeat the run."""
    recipe, card = pipeline.recipe, pipeline.dataset.card
    counts = {split: f"{card.num_images(split):,} {split}" for split in ("train", "test")}
    yield "recipe", f"{recipe.name}, seed {recipe.seed}"
    yield "data set", f"{card.name}: {counts['train']}, {counts['test']}, {card.size} px"
    yield "licence of the images", card.licence
    yield "model", recipe.model.describe()
    if recipe.weights:
        yield "weights", recipe.weights.rsplit("/", 1)[-1]
    if not recipe.trains:
        ratio = read_facts(pipeline.stages["pretrain"], ImportFacts).check_ratio
        known = "the loss of knowing only the mean square of the images"
        yield "model check", "not made" if ratio is None else f"{ratio:.2f} of {known}"
    else:
        trained = read_facts(pipeline.stages["pretrain"], TrainingFacts)
        yield "training", f"{trained.updates:,} updates of {recipe.train.batch_size}, {trained.workers} workers"
        yield "validation loss", f"{trained.best_loss:.4f} (best, after {trained.best_step:,} updates)"
    if any(is_done(stage) for stage in pipeline.evaluated.values()):
        yield "removed", f"{', '.join(recipe.remove.modes)}: top {recipe.rank.top_percent:g} % an image"
    if is_done(pipeline.stages["attribute/mucs"]):
        yield from mucs_facts(pipeline.stages, recipe.score.noises)
        process = adapter(recipe.model).model(torch.device("meta")).process
        yield "noise levels", range_text(process, scored_levels(process, recipe.score, recipe.seed))
    if is_done(pipeline.stages["attribute/mucs/screen"]):
        screen = pipeline.method_stages["attribute/mucs/screen/bounds"].load()
        yield "screening", screen.expectation(pipeline.stages["attribute/mucs/screen/bounds"].facts())
    versions = {**read_facts(pipeline.stages["generate"], DoneFacts).versions, "python": platform.python_version()}
    yield "versions", ", ".join(f"{name} {value}" for name, value in versions.items())
    yield "fingerprint", pipeline.report().fingerprint[:16]


def mucs_facts(stages: Mapping[str, Stage], num_noises: int) -> Iterator[tuple[str, str]]:
    """Yield the name and value of the facts that only MUCS has."""
    null_loss = read_facts(stages["attribute/mucs/null"], NullLossFacts).null_loss
    settings = read_facts(stages["attribute/mucs/score"], ScoringFacts)
    work = read_facts(stages["attribute/mucs/score"], StreamingFacts)
    yield "null loss", f"{null_loss:.4f}"
    compiled = ", compiled" if settings.compile == "on" else ""
    together = "1 image" if settings.images_per_forward == 1 else f"{settings.images_per_forward} images"
    yield "noises an image", f"{num_noises}; {settings.precision}, {together} a forward{compiled}"
    if work.forwards:
        rate = work.forwards / work.wall_seconds
        outside = work.worker_seconds_outside / work.worker_seconds
        yield "scoring", f"{work.forwards:,} forwards, {rate:,.0f}/s, {outside:.1%} outside the network"


def stage_times(stages: Mapping[str, Stage]) -> Iterator[tuple[str, str]]:
    """Yield the name and wall time of each stage that is done, in order."""
    for name, seconds in seconds_by_stage(stages):
        yield name, f"{seconds:.1f} s"


def seconds_by_stage(stages: Mapping[str, Stage]) -> Iterator[tuple[str, float]]:
    """Yield the name and seconds of each stage that is done, in order."""
    for name, stage in stages.items():
        if is_done(stage):
            yield name, read_facts(stage, DoneFacts).seconds


def as_json(pipeline: Pipeline, analyses: Sequence[Analysis]) -> dict[str, Any]:
    """Return the answer as JSON values, for other programs.

    It holds, by method, the top images of each item and where the files are, and all statistics.
    """
    methods = shown_methods(pipeline)
    answers = attributions(pipeline)
    return {
        "run": pipeline.run_url,
        "recipe": pipeline.recipe.name,
        "seed": pipeline.recipe.seed,
        "attributions": answers,
        "warnings": list(nothing_unlearned(answers, pipeline.known)),
        "hubs": {name: asdict(hubs) for name, hubs in counterfactual.hubs_by_method([pipeline], methods).items()},
        **counterfactual.as_json(analyses),
        **lds.as_json(pipeline),
        **groups.report_json(pipeline),
        **(query_test.as_json(pipeline) if analyses and pipeline.queries else {}),
    }


def warnings(pipeline: Pipeline) -> list[str]:
    """Return sentences on what makes an answer worthless, if anything does."""
    return list(nothing_unlearned(attributions(pipeline), pipeline.known))


def attributions(pipeline: Pipeline) -> dict[str, dict[str, Any]]:
    """Return the finished attributions as JSON values, by method."""
    stages, methods = pipeline.stages, shown_methods(pipeline)
    return {method: attribution(stages[f"attribute/{method}"], pipeline.queries) for method in methods}


def attribution(stage: Stage, pictures: Sequence[Query] = ()) -> dict[str, Any]:
    """Return a finished attribution as JSON values, with the names of the user's pictures if it explains them."""
    items = [
        {
            "item": number,
            "idx": int(rows[0]["item_idx"]),
            **({"query": pictures[number].name} if pictures else {}),
            "top": [[int(row["idx"]), float(row["score"])] for row in rows],
            "names": [row.get("name", "") for row in rows],
            "captions": [row["text"] or row["label"] for row in rows],
        }
        for number, rows in read_topk(stage).items()
    ]
    return {"scores": stage.url("scores.parquet"), "topk": stage.url("topk.csv"), "items": items}
