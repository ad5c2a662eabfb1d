"""From scores to the ranking of each item."""

import io
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mucs_ray import storage
from mucs_ray.attribution.random import random_scores
from mucs_ray.attribution.ranking import Ranking, top_k
from mucs_ray.attribution.registry import REFERENCE
from mucs_ray.data.table import open_parquet
from mucs_ray.engine import scoring
from mucs_ray.pipeline import Pipeline
from mucs_ray.steps.files import Output
from mucs_ray.store.topk import TOPK_FILE, topk_bytes

HISTOGRAM_BINS = 60


def rank(pipeline: Pipeline, method: str) -> Output:
    """scores.parquet (idx, score[items]) and topk.csv, streaming the scores."""
    recipe, stage = pipeline.recipe, pipeline.stages[f"attribute/{method}"]
    num_items, num_images = recipe.generate.items, pipeline.dataset.card.num_images("train")
    k = top_k(num_images, recipe.rank.top_percent)
    rankings = empty_rankings(pipeline, k)
    stage.begin(["scores.parquet", TOPK_FILE])
    stage.retract()
    low, high = np.full(num_items, np.inf), np.full(num_items, -np.inf)
    with TemporaryDirectory() as folder:
        whole = Path(folder) / "scores.parquet"
        with pq.ParquetWriter(whole, scoring.score_schema(num_items), compression="zstd") as writer:
            for table in score_tables(pipeline, method):
                writer.write_table(table)
                idx, scores = table["idx"].to_numpy(), score_matrix(table)
                low, high = np.minimum(low, scores.min(axis=0)), np.maximum(high, scores.max(axis=0))
                rankings = [ranking.add(idx, scores[:, number]) for number, ranking in enumerate(rankings)]
        scores_digest = storage.publish_file(stage.url("scores.parquet"), whole)
    edges = [np.linspace(a, b, HISTOGRAM_BINS + 1) for a, b in zip(low, high, strict=True)]
    counts = np.zeros((num_items, HISTOGRAM_BINS), dtype=np.int64)
    for table in score_tables(pipeline, method):
        scores = score_matrix(table)
        counts += np.stack([np.histogram(scores[:, n], edges[n])[0] for n in range(num_items)])
    files = {
        "scores.parquet": scores_digest,
        TOPK_FILE: storage.publish(stage.url(TOPK_FILE), topk_bytes(topk_rows(pipeline, rankings))),
    }
    histograms = [{"edges": e.tolist(), "counts": c.tolist()} for e, c in zip(edges, counts, strict=True)]
    return files, {"k": k, "num_images": num_images, "histograms": histograms}


def empty_rankings(pipeline: Pipeline, k: int) -> list[Ranking]:
    """One an item, before anything was seen."""
    recipe = pipeline.recipe
    names = [f"rank/item={number}" for number in range(recipe.generate.items)]
    return [Ranking.empty(k, seed=recipe.seed, name=name) for name in names]


def score_tables(pipeline: Pipeline, method: str) -> Iterator[pa.Table]:
    """idx and score of every unit, in order of idx."""
    return random_tables(pipeline) if method == REFERENCE else score_parts(pipeline)


def random_tables(pipeline: Pipeline) -> Iterator[pa.Table]:
    """The reference needs no model and no pictures."""
    num_items = pipeline.recipe.generate.items
    for table in pipeline.dataset.stream("train", ["idx"]):
        idx = table["idx"].to_numpy()
        scores = random_scores(idx, seed=pipeline.recipe.seed, num_items=num_items)
        yield pa.table({"idx": idx, "score": scoring.fixed_lists(scores)}, schema=scoring.score_schema(num_items))


def score_parts(pipeline: Pipeline) -> Iterator[pa.Table]:
    """What the scorers published; each part checked against the manifest."""
    stage = pipeline.stages["attribute/mucs/score"]
    for unit in pipeline.dataset.units("train"):
        content = stage.checked(scoring.part_of(stage, unit))
        table = open_parquet(io.BytesIO(content)).read(columns=["idx", "score"])
        yield table.cast(scoring.score_schema(pipeline.recipe.generate.items))


def stored_scores(pipeline: Pipeline, method: str) -> Iterator[pa.Table]:
    """scores.parquet of a finished attribution, a row group at a time."""
    stage = pipeline.stages[f"attribute/{method}"]
    file = open_parquet(io.BytesIO(stage.checked("scores.parquet")))
    for number in range(file.num_row_groups):
        yield file.read_row_group(number)


def score_matrix(table: pa.Table) -> np.ndarray:
    """[rows, items]."""
    return np.stack(table["score"].to_numpy())


def topk_rows(pipeline: Pipeline, rankings: list[Ranking]) -> Iterator[tuple[object, ...]]:
    """The rows of topk.csv."""
    described = describe(pipeline, {int(idx) for ranking in rankings for idx in ranking.idx})
    items = pipeline.stages["generate"].facts()["items"]
    for number, ranking in enumerate(rankings):
        for rank, (idx, score) in enumerate(zip(ranking.idx.tolist(), ranking.score.tolist(), strict=True), start=1):
            yield number, items[number]["idx"], rank, idx, f"{score:.6f}", *described[idx]


def describe(pipeline: Pipeline, wanted: set[int]) -> dict[int, tuple[str, str]]:
    """(label, first text) of training images."""
    classes = pipeline.dataset.card.classes
    found = {}
    for table in pipeline.dataset.stream("train", ["idx", "label", "text"]):
        for row in table.to_pylist():
            if row["idx"] in wanted:
                label = classes[row["label"]] if classes and row["label"] is not None else ""
                found[row["idx"]] = (label, (row["text"] or [""])[0])
    return found
