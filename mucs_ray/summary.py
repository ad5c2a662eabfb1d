"""From a finished run's files to its report."""

import csv
import io
import platform
from collections.abc import Iterable
from typing import Any

from mucs_ray import storage
from mucs_ray.data.table import Row
from mucs_ray.pipeline import Pipeline
from mucs_ray.report.document import Histogram, ItemSection, RankedImage, Report, Unlearning
from mucs_ray.report.html import render
from mucs_ray.store import checkpoint
from mucs_ray.store.items import item_file, load_item, to_pixels

SHOWN = 16
"""Training images shown an item."""


def html(pipeline: Pipeline) -> str:
    """The report of a run whose attribution is done."""
    return render(document(pipeline))


def document(pipeline: Pipeline) -> Report:
    """Everything the report shows."""
    facts = pipeline.stages["attribute"].facts()
    top = read_topk(pipeline)
    shown = {int(row["idx"]) for rows in top.values() for row in rows[:SHOWN]}
    pictures = pipeline.dataset.find(shown, "train")
    planned = pipeline.stages["generate"].facts()["items"]
    lent = pipeline.dataset.find({each["idx"] for each in planned}, "test")
    sections = [
        section(pipeline, number, top[number], facts["histograms"][number], pictures, lent[planned[number]["idx"]])
        for number in range(pipeline.recipe.generate.items)
    ]
    return Report(
        title=f"{pipeline.recipe.name}, seed {pipeline.recipe.seed}",
        subtitle=f"{len(sections)} generated images attributed to {facts['num_images']:,} training images",
        method="MUCS: mirrored unlearning, noise-consistent skew",
        top_k=facts["k"],
        num_training_images=facts["num_images"],
        facts=tuple(run_facts(pipeline)),
        stages=tuple(stage_times(pipeline)),
        items=tuple(sections),
    )


def section(
    pipeline: Pipeline,
    number: int,
    rows: list[dict[str, str]],
    histogram: dict[str, Any],
    pictures: dict[int, Row],
    lent: Row,
) -> ItemSection:
    """One item: its picture, its top training images, how it was unlearned."""
    item = load_item(pipeline.stages["generate"], number)
    ranked = [
        RankedImage(
            rank=int(row["rank"]),
            idx=int(row["idx"]),
            score=float(row["score"]),
            label=row["label"],
            text=row["text"],
            image=pictures[int(row["idx"])].image,
        )
        for row in rows[:SHOWN]
    ]
    return ItemSection(
        number=number,
        idx=item.idx,
        label=condition_name(pipeline, lent),
        image=to_pixels(item.image),
        ranked=tuple(ranked),
        unlearning=unlearning(pipeline, number),
        histogram=Histogram(
            edges=tuple(histogram["edges"]),
            counts=tuple(histogram["counts"]),
            top_k_score=float(rows[-1]["score"]),
        ),
    )


def condition_name(pipeline: Pipeline, lent: Row) -> str:
    """What the item was generated from: a caption, a class, or nothing."""
    card = pipeline.dataset.card
    if not pipeline.recipe.model.condition_dim:
        return "unconditional"
    if card.condition == "embedding":
        return lent.text[0] if lent.text else ""
    return card.classes[lent.label] if lent.label is not None and card.classes else ""


def unlearning(pipeline: Pipeline, number: int) -> Unlearning:
    """The trace stored beside an item's tensors."""
    stage = pipeline.stages["unlearn"]
    _, facts = checkpoint.load(stage.url(item_file(stage, number)))
    seconds = stage.facts()["seconds_an_item"].get(str(number), 0.0)
    return Unlearning(
        steps=facts["updates"],
        outcome=facts["outcome"],
        seconds=seconds,
        null_loss=facts["null_loss"],
        target=facts["target"],
        item_loss=tuple(facts["item_loss"]),
        train_loss=tuple(facts["train_loss"]),
    )


def read_topk(pipeline: Pipeline) -> dict[int, list[dict[str, str]]]:
    """The rows of topk.csv by item, best first."""
    rows: dict[int, list[dict[str, str]]] = {}
    for row in csv.DictReader(io.StringIO(pipeline.stages["attribute"].checked("topk.csv").decode())):
        rows.setdefault(int(row["item"]), []).append(row)
    return rows


def run_facts(pipeline: Pipeline) -> Iterable[tuple[str, str]]:
    """Name and value of what a reader needs to judge or repeat the run."""
    recipe, card = pipeline.recipe, pipeline.dataset.card
    manifests = {
        short: pipeline.stages[short].facts() for short in ("pretrain", "generate", "null", "unlearn", "score")
    }
    model, score = recipe.model, manifests["score"]
    yield "recipe", f"{recipe.name}, seed {recipe.seed}"
    yield (
        "data set",
        f"{card.name}: {card.num_images('train'):,} train, {card.num_images('test'):,} test, {card.size} px",
    )
    yield "licence of the images", card.licence
    yield (
        "model",
        f"DiT-EDM, width {model.width}, depth {model.depth}, patch {model.patch_size}, {model.num_heads} heads",
    )
    if recipe.weights:
        yield "weights", storage.join("", recipe.weights.rsplit("/", 1)[-1]).lstrip("/")
    else:
        trained = manifests["pretrain"]
        yield "training", f"{trained['updates']:,} updates of {recipe.train.batch_size}, {trained['workers']} workers"
        yield "validation loss", f"{trained['best_loss']:.4f} (best, after {trained['best_step']:,} updates)"
    yield "null loss", f"{manifests['null']['null_loss']:.4f}"
    yield "noises an image", f"{recipe.score.noises}, precision {recipe.score.precision}"
    if score.get("forwards"):
        rate, outside = (
            score["forwards"] / score["wall_seconds"],
            score["worker_seconds_outside"] / score["worker_seconds"],
        )
        yield (
            "scoring",
            f"{score['forwards']:,} forwards, {rate:,.0f}/s, {outside:.1%} of worker time outside the network",
        )
    versions = {**manifests["score"]["versions"], "python": platform.python_version()}
    yield "versions", ", ".join(f"{name} {value}" for name, value in versions.items())
    yield "fingerprint", pipeline.stages["attribute"].fingerprint[:16]


def stage_times(pipeline: Pipeline) -> Iterable[tuple[str, str]]:
    """Stage and wall time, in order."""
    for short in ("pretrain", "generate", "null", "unlearn", "score", "attribute"):
        yield short, f"{pipeline.stages[short].facts()['seconds']:.1f} s"


def as_json(pipeline: Pipeline) -> dict[str, Any]:
    """The answer for programs: per item the top images, and where the files are."""
    top = read_topk(pipeline)
    items = [
        {"item": number, "idx": int(rows[0]["item_idx"]), "top": [[int(r["idx"]), float(r["score"])] for r in rows]}
        for number, rows in top.items()
    ]
    folder = pipeline.stages["attribute"].folder
    return {"run": pipeline.run_url, "scores": f"{folder}/scores.parquet", "topk": f"{folder}/topk.csv", "items": items}
