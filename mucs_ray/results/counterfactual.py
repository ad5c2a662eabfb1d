"""The numbers and the report's section on counterfactual tests that are finished, for one seed or several."""

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from mucs_ray.attribution.registry import REFERENCE, find_method
from mucs_ray.config.recipe import Recipe
from mucs_ray.data.table import Card, open_parquet
from mucs_ray.evaluation.analysis import Analysis, analyse
from mucs_ray.evaluation.config import Mode
from mucs_ray.evaluation.hubs import Hubs, find_hubs
from mucs_ray.evaluation.outcome import MethodOutcome, Unrelated
from mucs_ray.models.adapters import adapter
from mucs_ray.pipeline.graph import FRESH, UNRELATED, Pipeline, RemovalTest
from mucs_ray.report.document import Evaluation, Grid, GridCell, GridRow, HubSection
from mucs_ray.report.hub_tables import TrainingImage, hub_section
from mucs_ray.report.published import Published, published
from mucs_ray.report.tables import densities, headline, remarks, tables
from mucs_ray.results import query_test
from mucs_ray.spaces.codec import Codec
from mucs_ray.store.facts import DoneFacts, RemovalFacts, TrainingFacts, read_facts
from mucs_ray.store.items import load_item, shown
from mucs_ray.store.run import Stage
from mucs_ray.store.topk import top_lists

SHOWN_UNDER_IMAGES = ("ssim", "lpips")
PROCEDURE = (
    "Each method’s highest ranked training images were removed, the model was trained again from scratch without them,"
    " and the images were generated again from the same noise. A method that found the right images changes them more"
    " than random removal does."
)
MUCH_WORSE = 1.2
"""A multiple of the best validation loss. On the emoji, 59 of 60 retrainings were within 1.11 and one was at 1.33."""


def evaluated_methods(pipelines: Sequence[Pipeline], mode: Mode) -> list[str]:
    """Return the methods whose counterfactual test in a mode is done in every run; none if the reference is not among
    them.
    """
    names = {method: f"evaluate/{pipelines[0].key(RemovalTest(method, mode))}" for method in pipelines[0].known}
    done = [
        method
        for method in pipelines[0].available_methods()
        if all(names[method] in p.evaluated and is_done(p.stage(names[method])) for p in pipelines)
    ]
    return done if REFERENCE in done else []


def is_done(stage: Stage) -> bool:
    """Return True if a stage is done under its present settings."""
    return stage.state().status == "done"


def outcomes(pipelines: Sequence[Pipeline], methods: Iterable[str], mode: Mode) -> list[MethodOutcome]:
    """Return what was measured in a mode, one outcome for each method and seed."""
    return [outcome(pipeline, RemovalTest(method, mode)) for method in methods for pipeline in pipelines]


def outcome(pipeline: Pipeline, test: RemovalTest) -> MethodOutcome:
    """Return what one test measured in one seed."""
    stage = pipeline.stage(f"evaluate/{pipeline.key(test)}")
    table = similarities(stage)
    attribution = [pipeline.stages[name] for name in pipeline.stages_of(test.method)]
    return MethodOutcome(
        seed=pipeline.recipe.seed,
        method=test.method,
        num_images=pipeline.dataset.card.num_images("train"),
        mode=test.mode,
        removed=read_facts(stage, RemovalFacts).removed,
        top=np.stack(top_lists(pipeline.stages[f"attribute/{test.method}"])),
        similarity=by_metric(table, "target"),
        controls=by_metric(table, "control"),
        seconds_an_item=wall_seconds(attribution) / pipeline.recipe.generate.items,
    )


def unrelated(pipelines: Sequence[Pipeline]) -> list[Unrelated]:
    """Return the reference level of each seed in which it was measured."""
    return [
        Unrelated(
            seed=pipeline.recipe.seed,
            similarity=by_metric(similarities(pipeline.stage(name)), UNRELATED),
        )
        for pipeline in pipelines
        if (name := f"evaluate/{UNRELATED}") in pipeline.evaluated and is_done(pipeline.stage(name))
    ]


def similarities(stage: Stage) -> pa.Table:
    """Read a stage's table with the columns item, other, role, metric and similarity."""
    return open_parquet(io.BytesIO(stage.checked(stage.part("similarity", "parquet")))).read()


def by_metric(table: pa.Table, role: str) -> dict[str, np.ndarray]:
    """Return, by metric, the similarities of the items in this role, in order of the item."""
    values_of: dict[str, list[float]] = {metric: [] for metric in table["metric"].unique().to_pylist()}
    for row in table.to_pylist():
        if row["role"] == role:
            values_of[row["metric"]].append(row["similarity"])
    return {metric: np.asarray(values, dtype=np.float64) for metric, values in values_of.items()}


def wall_seconds(stages: Iterable[Stage]) -> float:
    """Return the wall time of finished stages, added up."""
    return sum(read_facts(stage, DoneFacts).seconds for stage in stages)


def analyses_of(pipelines: Sequence[Pipeline]) -> tuple[Analysis, ...]:
    """Compute all statistics, for each mode of removal in which tests are done; that of the headline comes first."""
    done: dict[Mode, list[str]] = {
        mode: evaluated_methods(pipelines, mode) for mode in pipelines[0].recipe.remove.modes
    }
    return tuple(
        analyse(outcomes(pipelines, methods, mode), unrelated(pipelines), reference=REFERENCE)
        for mode, methods in done.items()
        if methods
    )


def as_json(analyses: Sequence[Analysis]) -> dict[str, Any]:
    """Return the statistics as JSON values: those of the headline, and those of every mode of removal."""
    by_mode = {analysis.mode: asdict(analysis) for analysis in analyses}
    return {"evaluation": next(iter(by_mode.values()), None), "evaluations": by_mode}


def sentence(analysis: Analysis) -> str:
    """Return the headline of the test in words."""
    return headline(analysis, method_labels=labels(analysis))


def labels(analysis: Analysis) -> dict[str, str]:
    """Return the names of the methods in tables."""
    return {analysed.method: find_method(analysed.method).label for analysed in analysis.methods}


def paper_numbers(recipe: Recipe, card: Card, mode: Mode) -> Published | None:
    """Return the paper's numbers; None unless data set and protocol are the paper's."""
    from_paper = card.request.get("name") == recipe.name
    return published(recipe.name) if from_paper and mode == "union" else None


def left_out(reasons: Mapping[str, str]) -> list[str]:
    """Return sentences on the metrics that cannot be measured here, given the reason for each by name."""
    lines = dict(reasons)
    sentences = [f"Left out: {lines.pop('ssim')}."] if "ssim" in lines else []
    if lines:
        sentences.append(
            f"Left out, because their weights are not on this machine: {', '.join(lines)}. `mucs-ray doctor` says which"
            " files are expected where."
        )
    return sentences


def bad_retrainings(pipelines: Sequence[Pipeline], method_labels: Mapping[str, str], mode: Mode) -> list[str]:
    """Return sentences on retrainings that went much worse than the best one of their seed."""
    sentences = []
    for pipeline in pipelines:
        losses = {
            method: worst_loss(pipeline.stages[name] for name in pipeline.retrained(RemovalTest(method, mode)))
            for method in method_labels
        }
        best = min(losses.values())
        sentences += [
            f"Seed {pipeline.recipe.seed}, {method_labels[method]}: its retraining ended at a validation loss of"
            f" {loss:.3f}, the best one of this seed at {best:.3f}. A model that is worse overall changes every image,"
            " whichever training images it lacks."
            for method, loss in losses.items()
            if loss > MUCH_WORSE * best
        ]
    return sentences


def worst_loss(retrainings: Iterable[Stage]) -> float:
    """Return the lowest validation loss of a retraining; of several retrainings, that of the worst."""
    return max(read_facts(retraining, TrainingFacts).best_loss for retraining in retrainings)


def sections(pipelines: Sequence[Pipeline], analyses: Sequence[Analysis]) -> tuple[Evaluation, ...]:
    """Lay out the report's sections on the counterfactual test, one for each mode of removal."""
    if not analyses:
        return ()
    first, *others = analyses
    return section(pipelines, first, beside=others), *(with_own_keys(section(pipelines, other)) for other in others)


def with_own_keys(evaluation: Evaluation) -> Evaluation:
    """Return a section whose tables have other keys than those of the headline, which name places in the report."""
    own = tuple(replace(table, key=f"{table.key}-{evaluation.mode}") for table in evaluation.tables)
    return replace(evaluation, tables=own)


def section(pipelines: Sequence[Pipeline], analysis: Analysis, *, beside: Sequence[Analysis] = ()) -> Evaluation:
    """Lay out the section on one mode of removal; its main table also shows the AUC in the modes `beside` it."""
    measured = outcomes(pipelines, [analysed.method for analysed in analysis.methods], analysis.mode)
    named, first = labels(analysis), pipelines[0]
    sentences = [*remarks(analysis, method_labels=named), *bad_retrainings(pipelines, named, analysis.mode)]
    sentences += left_out(first.similarities[1]) if first.regeneration != "none" else []
    paper = None if first.queries else paper_numbers(first.recipe, first.dataset.card, analysis.mode)
    return Evaluation(
        mode=analysis.mode,
        headline=sentence(analysis),
        procedure=PROCEDURE if not first.queries else query_test.procedure(first),
        by_loss=analysis.by_loss,
        remarks=tuple(sentences),
        tables=(
            *tables(analysis, beside=beside, published=paper, method_labels=named),
            *([query_test.loss_table(first, analysis.mode, named)] if first.queries else ()),
        ),
        densities=densities(measured, method_labels=named),
        grids=tuple(
            grid(pipeline, [outcome for outcome in measured if outcome.seed == pipeline.recipe.seed])
            for pipeline in pipelines
            if pipeline.regeneration != "none"
        ),
    )


def grid(pipeline: Pipeline, measured: Sequence[MethodOutcome]) -> Grid:
    """Lay out the targets of one seed and, for each method, their regenerations."""
    numbers, each = range(pipeline.recipe.generate.items), 1
    before, codec = pipeline.stages["generate"], adapter(pipeline.recipe.model).codec(torch.device("cpu"))
    if pipeline.regeneration == "fresh":  # of each picture's fresh images, the first is shown
        before, each = pipeline.stages[FRESH], pipeline.recipe.evaluate.fresh
    generated = tuple(GridCell(image=picture(before, n * each, codec), note=str(n)) for n in numbers)
    rows = [GridRow(label="Generated", note="", cells=generated)]
    for outcome in measured:
        after = pipeline.stages[f"regenerate/{pipeline.key(RemovalTest(outcome.method, outcome.mode))}"]
        notes = [(n * each, similarity_text(outcome, n)) for n in numbers]
        cells = tuple(GridCell(image=picture(after, number, codec), note=note) for number, note in notes)
        removed = f"without {outcome.removed:,} of {outcome.num_images:,}"
        rows.append(GridRow(label=find_method(outcome.method).label, note=removed, cells=cells))
    return Grid(title=f"Seed {pipeline.recipe.seed}", rows=tuple(rows))


def picture(stage: Stage, number: int, codec: Codec) -> np.ndarray:
    """Return a generated image as 8-bit pixels."""
    return shown(load_item(stage, number), codec)


def similarity_text(outcome: MethodOutcome, number: int) -> str:
    """Return the first of an item's similarities, to be shown under a picture; "" if it has none of them."""
    metric = next((name for name in SHOWN_UNDER_IMAGES if name in outcome.similarity), None)
    return "" if metric is None else f"{metric.upper()} {outcome.similarity[metric][number]:.2f}"


def hubs_by_method(pipelines: Sequence[Pipeline], methods: Iterable[str]) -> dict[str, Hubs]:
    """Return, by method, the training images that are in more lists than chance explains; all seeds are pooled."""
    num = pipelines[0].dataset.card.num_images("train")
    lists = {
        method: [top for pipeline in pipelines for top in top_lists(pipeline.stages[f"attribute/{method}"])]
        for method in methods
    }
    return {method: find_hubs(tops, num_images=num) for method, tops in lists.items()}


def hubs_report(pipelines: Sequence[Pipeline], methods: Iterable[str]) -> HubSection | None:
    """Lay out the report's section on hubs; None for a single item."""
    by_method = hubs_by_method(pipelines, methods)
    pictured = [find_method(method).label for method in without_variants(list(by_method))]
    hubs_of = {find_method(method).label: hubs for method, hubs in by_method.items()}
    dataset = pipelines[0].dataset
    rows = dataset.find({frequent.idx for method in pictured for frequent in hubs_of[method].most_frequent}, "train")
    classes = dataset.card.classes
    images = {
        idx: TrainingImage(
            label=classes[row.label] if classes and row.label is not None else "",
            text=row.text[0] if row.text else "",
            name=row.name or "",
            image=row.image,
        )
        for idx, row in rows.items()
    }
    return hub_section(hubs_of, images, pictured=pictured)


def without_variants(methods: Sequence[str]) -> list[str]:
    """Return the methods to show pictures of: those without their variants, unless only variants were run."""
    return [method for method in methods if "/" not in method] or list(methods)
