"""From scores to the ranking of each item."""

import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from mucs_ray import storage
from mucs_ray.attribution.base import MethodContext
from mucs_ray.attribution.ensemble import ensemble_scores
from mucs_ray.attribution.loss_change import select_measure
from mucs_ray.attribution.ranking import Ranking, mutual_ranks, top_k
from mucs_ray.data.show import descriptions
from mucs_ray.data.table import open_parquet
from mucs_ray.diffusion.batch import Batch
from mucs_ray.pipeline.graph import Pipeline
from mucs_ray.pipeline.method_stages import StageSpec
from mucs_ray.run.stages.files import Output
from mucs_ray.store.items import load_item
from mucs_ray.store.parts import fixed_lists, matrix, read_part, score_schema, unit_part
from mucs_ray.store.topk import TOPK_FILE, topk_bytes

HISTOGRAM_BINS = 60


def rank(pipeline: Pipeline, spec: StageSpec) -> Output:
    """scores.parquet (idx, score[items]) and topk.csv, streaming the scores."""
    recipe, stage = pipeline.recipe, pipeline.stages[spec.name]
    num_items, num_images = recipe.generate.items, pipeline.dataset.card.num_images("train")
    k = top_k(num_images, recipe.rank.top_percent)
    rankings = empty_rankings(pipeline, k)
    stage.begin(["scores.parquet", TOPK_FILE])
    stage.retract()
    low, high = np.full(num_items, np.inf), np.full(num_items, -np.inf)
    with TemporaryDirectory() as folder:
        whole = Path(folder) / "scores.parquet"
        with pq.ParquetWriter(whole, score_schema(num_items), compression="zstd") as writer:
            for table in score_tables(pipeline, spec):
                writer.write_table(table)
                idx, scores = table["idx"].to_numpy(), score_matrix(table)
                low, high = np.minimum(low, scores.min(axis=0)), np.maximum(high, scores.max(axis=0))
                rankings = [ranking.add(idx, scores[:, number]) for number, ranking in enumerate(rankings)]
        scores_digest = storage.publish_file(stage.url("scores.parquet"), whole)
        histograms = score_histograms(row_groups(pq.ParquetFile(whole)), low, high)
    files = {
        "scores.parquet": scores_digest,
        TOPK_FILE: storage.publish(stage.url(TOPK_FILE), topk_bytes(topk_rows(pipeline, rankings))),
    }
    return files, {"k": k, "num_images": num_images, "histograms": histograms}


def score_histograms(tables: Iterable[pa.Table], low: np.ndarray, high: np.ndarray) -> list[dict[str, list[float]]]:
    """Edges and counts of the scores of each item, between its lowest and its highest score."""
    edges = [np.linspace(a, b, HISTOGRAM_BINS + 1) for a, b in zip(low, high, strict=True)]
    counts = np.zeros((len(edges), HISTOGRAM_BINS), dtype=np.int64)
    for table in tables:
        scores = score_matrix(table)
        counts += np.stack([np.histogram(scores[:, number], each)[0] for number, each in enumerate(edges)])
    return [{"edges": e.tolist(), "counts": c.tolist()} for e, c in zip(edges, counts, strict=True)]


def ranking_name(number: int) -> str:
    """The name of the random order among ties in an item's list."""
    return f"rank/item={number}"


def empty_rankings(pipeline: Pipeline, k: int) -> list[Ranking]:
    """A ranking for each item, before anything was ranked."""
    recipe = pipeline.recipe
    names = [ranking_name(number) for number in range(recipe.generate.items)]
    return [Ranking.empty(k, seed=recipe.seed, name=name) for name in names]


def score_tables(pipeline: Pipeline, spec: StageSpec) -> Iterator[pa.Table]:
    """idx and score of every unit, in order of idx; of all at once where a score depends on all."""
    if spec.method.is_ensemble:
        tables = ensemble_table(pipeline, spec)
    elif spec.method.stages:
        tables = score_parts(pipeline, spec)
    else:
        tables = scored_by_idx(pipeline, spec)
    return iter(tables) if spec.recipe.rank.correction == "none" else mutual_table(pipeline, tables)


def score_parts(pipeline: Pipeline, spec: StageSpec) -> Iterator[pa.Table]:
    """What the scorers published, each part checked against the manifest; of several measures the one asked for."""
    (scored,) = spec.inputs
    stage, measure = pipeline.stages[scored], spec.recipe.rank.measure
    manifest = stage.manifest()
    for unit in pipeline.dataset.units("train"):
        table = read_part(stage.checked(unit_part(stage, unit), manifest))
        if "score" in table.column_names:
            scores = np.stack(table["score"].to_numpy())
        else:
            measures = {name: torch.from_numpy(matrix(table, name)) for name in ("skew", "difference")}
            scores = select_measure(measures, measure).numpy()
        yield score_table(table["idx"].to_numpy(), scores)


def scored_by_idx(pipeline: Pipeline, spec: StageSpec) -> Iterator[pa.Table]:
    """A method without parts reads nothing but idx: no pass over the pictures."""
    items = [load_item(pipeline.stages["generate"], number) for number in range(pipeline.recipe.generate.items)]
    num_images = pipeline.dataset.card.num_images("train")
    context = MethodContext(settings=spec.recipe, device=torch.device("cpu"), num_images=num_images, items=items)
    method = spec.load()(context)
    for table in pipeline.dataset.stream("train", ["idx"]):
        idx = table["idx"].to_numpy()
        batch = Batch(idx=torch.from_numpy(idx.copy()), z=torch.zeros(len(idx), 0), condition={})
        yield score_table(idx, method.score(batch).numpy())


def ensemble_table(pipeline: Pipeline, spec: StageSpec) -> list[pa.Table]:
    """Ranks of the members, added up (spec 10)."""
    whole = {member: all_scores(stored_scores(pipeline, member)) for member in spec.method.weights}
    idx = next(iter(whole.values()))[0]
    assert all(np.array_equal(idx, other) for other, _ in whole.values())
    columns = [
        ensemble_scores(
            {member: scores[:, number] for member, (_, scores) in whole.items()},
            spec.method.weights,
            idx,
            seed=pipeline.recipe.seed,
            name=ranking_name(number),
        )
        for number in range(pipeline.recipe.generate.items)
    ]
    return [score_table(idx, np.stack(columns, axis=1))]


def mutual_table(pipeline: Pipeline, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Scores by the ranks of images and items for each other."""
    idx, scores = all_scores(tables)
    names = [ranking_name(number) for number in range(scores.shape[1])]
    yield score_table(idx, mutual_ranks(scores, idx, pipeline.recipe.seed, names))


def all_scores(tables: Iterable[pa.Table]) -> tuple[np.ndarray, np.ndarray]:
    """idx [N] and scores [N, items] of all images: 4 bytes a pair, for what cannot be streamed."""
    kept = [(table["idx"].to_numpy(), score_matrix(table)) for table in tables]
    idx, scores = zip(*kept, strict=True)
    return np.concatenate(idx), np.concatenate(scores)


def score_table(idx: np.ndarray, scores: np.ndarray) -> pa.Table:
    """A table of idx and score[items]."""
    columns = {"idx": idx, "score": fixed_lists(scores.astype(np.float32))}
    return pa.table(columns, schema=score_schema(scores.shape[1]))


def stored_scores(pipeline: Pipeline, method: str) -> Iterator[pa.Table]:
    """scores.parquet of a finished attribution, a row group at a time."""
    stage = pipeline.stages[f"attribute/{method}"]
    yield from row_groups(open_parquet(io.BytesIO(stage.checked("scores.parquet"))))


def row_groups(file: pq.ParquetFile) -> Iterator[pa.Table]:
    """The row groups of a file as tables, one at a time."""
    for number in range(file.num_row_groups):
        yield file.read_row_group(number)


def score_matrix(table: pa.Table) -> np.ndarray:
    """The scores of a table as a matrix [rows, items]."""
    return np.stack(table["score"].to_numpy())


def topk_rows(pipeline: Pipeline, rankings: list[Ranking]) -> Iterator[tuple[object, ...]]:
    """The rows of topk.csv."""
    described = descriptions(pipeline.dataset, {int(idx) for ranking in rankings for idx in ranking.idx})
    items = pipeline.stages["generate"].facts()["items"]
    for number, ranking in enumerate(rankings):
        for rank, (idx, score) in enumerate(zip(ranking.idx.tolist(), ranking.score.tolist(), strict=True), start=1):
            yield number, items[number]["idx"], rank, idx, f"{score:.6f}", *described[idx]
