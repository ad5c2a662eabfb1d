"""From finished counterfactual tests, of one seed or several, to the numbers and the section of the report."""

import io
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import torch

from mucs_ray.attribution.registry import REFERENCE, find
from mucs_ray.data.table import open_parquet
from mucs_ray.evaluation.analysis import Analysis, analyse
from mucs_ray.evaluation.hubs import Hubs, find_hubs
from mucs_ray.evaluation.outcome import Outcome, Unrelated
from mucs_ray.models.adapters import adapter
from mucs_ray.pipeline.graph import UNRELATED, Pipeline
from mucs_ray.report.document import Evaluation, Grid, GridCell, GridRow, HubSection
from mucs_ray.report.hub_tables import TrainingImage, hub_section
from mucs_ray.report.published import Published, published
from mucs_ray.report.tables import densities, headline, remarks, tables
from mucs_ray.spaces.codec import Codec
from mucs_ray.store.items import load_item, shown
from mucs_ray.store.run import Stage
from mucs_ray.store.topk import top_lists

SHOWN_UNDER_IMAGES = ("ssim", "lpips")
MUCH_WORSE = 1.2
"""Validation loss as a multiple of the best. On the emoji 59 of 60 retrainings were within 1.11, and one at 1.33."""


def evaluated_methods(pipelines: Sequence[Pipeline]) -> list[str]:
    """Methods whose counterfactual test is done in every one of these runs; empty without the reference."""
    done = [
        method
        for method in pipelines[0].available_methods()
        if all(f"evaluate/{method}" in p.evaluated and is_done(p.stage(f"evaluate/{method}")) for p in pipelines)
    ]
    return done if REFERENCE in done else []


def is_done(stage: Stage) -> bool:
    """Whether a stage's manifest stands."""
    return stage.state().status == "done"


def outcomes(pipelines: Sequence[Pipeline], methods: Iterable[str]) -> list[Outcome]:
    """What was measured, a seed and method each."""
    return [outcome(pipeline, method) for method in methods for pipeline in pipelines]


def outcome(pipeline: Pipeline, method: str) -> Outcome:
    """One method in one seed."""
    stage = pipeline.stage(f"evaluate/{method}")
    table = similarities(stage)
    return Outcome(
        seed=pipeline.recipe.seed,
        method=method,
        num_images=pipeline.dataset.card.num_images("train"),
        mode=pipeline.recipe.remove.mode,
        removed=stage.facts()["removed"],
        top=np.stack(top_lists(pipeline.stages[f"attribute/{method}"])),
        similarity=by_metric(table, "target"),
        controls=by_metric(table, "control"),
        seconds_an_item=attribution_seconds(pipeline, method) / pipeline.recipe.generate.items,
    )


def unrelated(pipelines: Sequence[Pipeline]) -> list[Unrelated]:
    """The reference level of each seed."""
    return [
        Unrelated(
            seed=pipeline.recipe.seed,
            similarity=by_metric(similarities(pipeline.stage(f"evaluate/{UNRELATED}")), UNRELATED),
        )
        for pipeline in pipelines
        if is_done(pipeline.stage(f"evaluate/{UNRELATED}"))
    ]


def similarities(stage: Stage) -> pa.Table:
    """item, other, role, metric, similarity."""
    return open_parquet(io.BytesIO(stage.checked(stage.part("similarity", "parquet")))).read()


def by_metric(table: pa.Table, role: str) -> dict[str, np.ndarray]:
    """Similarities of items in this role, in order of the item."""
    found: dict[str, list[float]] = {metric: [] for metric in table["metric"].unique().to_pylist()}
    for row in table.to_pylist():
        if row["role"] == role:
            found[row["metric"]].append(row["similarity"])
    return {metric: np.asarray(values, dtype=np.float64) for metric, values in found.items()}


def attribution_seconds(pipeline: Pipeline, method: str) -> float:
    """Wall time of all parts of an attribution."""
    return sum(pipeline.stages[name].facts()["seconds"] for name in pipeline.stages_of(method))


def analysis_of(pipelines: Sequence[Pipeline]) -> Analysis | None:
    """All statistics; None if the counterfactual test is not done."""
    methods = evaluated_methods(pipelines)
    if not methods:
        return None
    return analyse(outcomes(pipelines, methods), unrelated(pipelines), reference=REFERENCE)


def sentence(analysis: Analysis) -> str:
    """The verdict in words."""
    return headline(analysis, method_labels=labels(analysis))


def labels(analysis: Analysis) -> dict[str, str]:
    """How the methods are called in tables."""
    return {each.method: find(each.method).label for each in analysis.methods}


def paper_numbers(pipeline: Pipeline) -> Published | None:
    """Of the paper, for the paper's data sets under the paper's protocol."""
    from_paper = pipeline.dataset.card.request.get("name") == pipeline.recipe.name
    return published(pipeline.recipe.name) if from_paper and pipeline.recipe.remove.mode == "union" else None


def left_out(pipelines: Sequence[Pipeline]) -> list[str]:
    """Sentences on the metrics that cannot be measured here, if there are any."""
    lines = dict(pipelines[0].similarities[1])
    told = [f"Left out: {lines.pop('ssim')}."] if "ssim" in lines else []
    if lines:
        told.append(
            f"Left out, because their weights are not on this machine: {', '.join(lines)}. `mucs-ray doctor` says which"
            " files are expected where."
        )
    return told


def bad_retrainings(pipelines: Sequence[Pipeline], method_labels: Mapping[str, str]) -> list[str]:
    """Sentences on retrainings that went much worse than the best one of their seed, if there are any."""
    told = []
    for pipeline in pipelines:
        losses = {method: validation_loss(pipeline, method) for method in method_labels}
        best = min(losses.values())
        told += [
            f"Seed {pipeline.recipe.seed}, {method_labels[method]}: its retraining ended at a validation loss of"
            f" {loss:.3f}, the best one of this seed at {best:.3f}. A model that is worse in all changes every image,"
            " whichever training images it lacks."
            for method, loss in losses.items()
            if loss > MUCH_WORSE * best
        ]
    return told


def validation_loss(pipeline: Pipeline, method: str) -> float:
    """The lowest of the retraining without a method's images; of a retraining for each item, that of the worst."""
    return max(pipeline.stages[name].facts()["best_loss"] for name in pipeline.retrained(method))


def section(pipelines: Sequence[Pipeline], analysis: Analysis) -> Evaluation:
    """The report's part on the counterfactual test."""
    found = outcomes(pipelines, [each.method for each in analysis.methods])
    named = labels(analysis)
    told = (*remarks(analysis, method_labels=named), *bad_retrainings(pipelines, named), *left_out(pipelines))
    return Evaluation(
        headline=sentence(analysis),
        remarks=told,
        tables=tables(analysis, published=paper_numbers(pipelines[0]), method_labels=named),
        densities=densities(found, method_labels=named),
        grids=tuple(grid(pipeline, [o for o in found if o.seed == pipeline.recipe.seed]) for pipeline in pipelines),
    )


def grid(pipeline: Pipeline, found: Sequence[Outcome]) -> Grid:
    """The targets of one seed, and what each method's removal made of them."""
    numbers = range(pipeline.recipe.generate.items)
    before, codec = pipeline.stages["generate"], adapter(pipeline.recipe.model).codec(torch.device("cpu"))
    generated = tuple(GridCell(image=picture(before, n, codec), note=str(n)) for n in numbers)
    rows = [GridRow(label="Generated", note="", cells=generated)]
    for each in found:
        after = pipeline.stages[f"regenerate/{each.method}"]
        cells = tuple(GridCell(image=picture(after, n, codec), note=note(each, n)) for n in numbers)
        removed = f"without {each.removed:,} of {each.num_images:,}"
        rows.append(GridRow(label=find(each.method).label, note=removed, cells=cells))
    return Grid(title=f"Seed {pipeline.recipe.seed}", rows=tuple(rows))


def picture(stage: Stage, number: int, codec: Codec) -> np.ndarray:
    """A generated image as 8-bit pixels."""
    return shown(load_item(stage, number), codec)


def note(found: Outcome, number: int) -> str:
    """The first of the similarities, for the place under a picture."""
    metric = next((name for name in SHOWN_UNDER_IMAGES if name in found.similarity), None)
    return "" if metric is None else f"{metric.upper()} {found.similarity[metric][number]:.2f}"


def found_hubs(pipelines: Sequence[Pipeline], methods: Iterable[str]) -> dict[str, Hubs]:
    """By method: training images that are in more lists than chance explains, the items of all seeds pooled."""
    num = pipelines[0].dataset.card.num_images("train")
    lists = {
        method: [top for pipeline in pipelines for top in top_lists(pipeline.stages[f"attribute/{method}"])]
        for method in methods
    }
    return {method: find_hubs(tops, num_images=num) for method, tops in lists.items()}


def hubs(pipelines: Sequence[Pipeline], methods: Iterable[str]) -> HubSection | None:
    """The report's part on them; None with a single item."""
    hubs = found_hubs(pipelines, methods)
    pictured = [find(method).label for method in without_variants(list(hubs))]
    found = {find(method).label: each for method, each in hubs.items()}
    dataset = pipelines[0].dataset
    rows = dataset.find({one.idx for method in pictured for one in found[method].most_frequent}, "train")
    classes = dataset.card.classes
    images = {
        idx: TrainingImage(
            label=classes[row.label] if classes and row.label is not None else "",
            text=row.text[0] if row.text else "",
            image=row.image,
        )
        for idx, row in rows.items()
    }
    return hub_section(found, images, pictured=pictured)


def without_variants(methods: Sequence[str]) -> list[str]:
    """For pictures, of which there would be too many: methods by themselves, unless variants are all there is."""
    return [method for method in methods if "/" not in method] or list(methods)
