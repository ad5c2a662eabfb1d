"""The last stage of an attribution: it turns the scores into a ranking of the training images for each item."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from mucs_ray import storage
from mucs_ray.attribution.base import MethodContext
from mucs_ray.attribution.config import Measure
from mucs_ray.attribution.ensemble import ensemble_scores
from mucs_ray.attribution.loss_change import select_measure
from mucs_ray.attribution.ranking import Ranking, list_length, mutual_ranks
from mucs_ray.attribution.whitening import whitened
from mucs_ray.data.show import descriptions
from mucs_ray.data.table import Dataset, Unit
from mucs_ray.diffusion.batch import Batch
from mucs_ray.pipeline.graph import Pipeline
from mucs_ray.pipeline.loo_stages import LOO_LOSSES
from mucs_ray.pipeline.method_stages import StageSpec
from mucs_ray.run.stages.files import Output
from mucs_ray.store.facts import GenerationFacts, RankingFacts, ScoreHistogram, read_facts
from mucs_ray.store.items import PlannedItem, load_item
from mucs_ray.store.parts import (
    fixed_lists,
    matrix,
    read_part,
    row_groups,
    score_schema,
    stored_scores,
    unit_part,
)
from mucs_ray.store.run import Stage
from mucs_ray.store.topk import TOPK_FILE, topk_bytes

HISTOGRAM_BINS = 60


def rank(pipeline: Pipeline, spec: StageSpec) -> Output:
    """Write scores.parquet (idx, score[items]) and topk.csv, streaming the scores.

    Only ensembles and the correction by mutual ranks hold all scores in memory.
    """
    recipe, stage = pipeline.recipe, pipeline.stages[spec.name]
    num_items, num_images = recipe.generate.items, pipeline.dataset.card.num_images("train")
    k = list_length(num_images, recipe.rank)
    rankings = empty_rankings(k, num_items, recipe.seed)
    stage.begin(["scores.parquet", TOPK_FILE])
    stage.retract()
    low, high = np.full(num_items, np.inf), np.full(num_items, -np.inf)
    with TemporaryDirectory() as folder:
        scores_file = Path(folder) / "scores.parquet"
        with pq.ParquetWriter(scores_file, score_schema(num_items), compression="zstd") as writer:
            for table in score_tables(pipeline, spec):
                writer.write_table(table)
                idx, scores = table["idx"].to_numpy(), matrix(table, "score")
                low, high = np.minimum(low, scores.min(axis=0)), np.maximum(high, scores.max(axis=0))
                rankings = [ranking.add(idx, scores[:, number]) for number, ranking in enumerate(rankings)]
        scores_digest = storage.publish_file(stage.url("scores.parquet"), scores_file)
        histograms = score_histograms(row_groups(pq.ParquetFile(scores_file)), low, high)
    items = read_facts(pipeline.stages["generate"], GenerationFacts).items
    described = descriptions(pipeline.dataset, {int(idx) for ranking in rankings for idx in ranking.idx})
    files = {
        "scores.parquet": scores_digest,
        TOPK_FILE: storage.publish(stage.url(TOPK_FILE), topk_bytes(topk_rows(rankings, items, described))),
    }
    return files, asdict(RankingFacts(k=k, num_images=num_images, histograms=histograms))


def score_histograms(tables: Iterable[pa.Table], low: np.ndarray, high: np.ndarray) -> list[ScoreHistogram]:
    """Return the histogram of each item's scores, between its lowest and its highest score."""
    edges = [np.linspace(a, b, HISTOGRAM_BINS + 1) for a, b in zip(low, high, strict=True)]
    counts = np.zeros((len(edges), HISTOGRAM_BINS), dtype=np.int64)
    for table in tables:
        scores = matrix(table, "score")
        counts += np.stack([np.histogram(scores[:, number], bins)[0] for number, bins in enumerate(edges)])
    return [ScoreHistogram(edges=e.tolist(), counts=c.tolist()) for e, c in zip(edges, counts, strict=True)]


def ranking_name(number: int) -> str:
    """Return the name of the random order among ties in an item's list."""
    return f"rank/item={number}"


def empty_rankings(k: int, num_items: int, seed: int) -> list[Ranking]:
    """Return a ranking for each item, before any image has been ranked."""
    return [Ranking.empty(k, seed=seed, name=ranking_name(number)) for number in range(num_items)]


def score_tables(pipeline: Pipeline, spec: StageSpec) -> Iterator[pa.Table]:
    """Yield idx and score in order of idx, after the correction that the recipe asks for."""
    uncorrected, recipe = partial(uncorrected_tables, pipeline, spec), spec.recipe
    match recipe.rank.correction:
        case "none":
            return uncorrected()
        case "mutual":
            return mutual_table(uncorrected(), recipe.seed)
        case "whitened":
            return whitened_tables(uncorrected, recipe.generate.items, recipe.rank.whitening)


def uncorrected_tables(pipeline: Pipeline, spec: StageSpec) -> Iterator[pa.Table]:
    """Yield idx and score in order of idx: of one unit after the other, or, for an ensemble, of all."""
    stages, recipe = pipeline.stages, spec.recipe
    if spec.method.is_ensemble:
        members = {member: stages[f"attribute/{member}"] for member in spec.method.weights}
        return iter([ensemble_table(members, spec.method.weights, recipe.generate.items, recipe.seed)])
    if spec.method.measured_by:
        measured = stages[LOO_LOSSES]
        table = read_part(measured.checked(measured.part("losses", "parquet")))
        return iter([score_table(table["idx"].to_numpy(), matrix(table, "score"))])
    if spec.method.stages:
        (scored,) = spec.inputs
        return score_parts(stages[scored], pipeline.dataset.units("train"), recipe.rank.measure)
    return scored_by_idx(stages["generate"], pipeline.dataset, spec)


def score_parts(stage: Stage, units: Sequence[Unit], measure: Measure) -> Iterator[pa.Table]:
    """Yield the scores of each unit from the parts of a scoring stage, each checked against the manifest.

    Of parts that hold several measures, `measure` is taken.
    """
    manifest = stage.manifest()
    for unit in units:
        table = read_part(stage.checked(unit_part(stage, unit), manifest))
        if "score" in table.column_names:
            scores = np.stack(table["score"].to_numpy())
        else:
            measures = {name: torch.from_numpy(matrix(table, name)) for name in ("skew", "difference")}
            scores = select_measure(measures, measure).numpy()
        yield score_table(table["idx"].to_numpy(), scores)


def scored_by_idx(generated: Stage, dataset: Dataset, spec: StageSpec) -> Iterator[pa.Table]:
    """Yield the scores of a method without stages, which reads nothing but idx: no picture is decoded."""
    items = [load_item(generated, number) for number in range(spec.recipe.generate.items)]
    num_images = dataset.card.num_images("train")
    context = MethodContext(settings=spec.recipe, device=torch.device("cpu"), num_images=num_images, items=items)
    method = spec.load()(context)
    for table in dataset.stream("train", ["idx"]):
        idx = table["idx"].to_numpy()
        batch = Batch(idx=torch.from_numpy(idx.copy()), z=torch.zeros(len(idx), 0), condition={})
        yield score_table(idx, method.score(batch).numpy())


def ensemble_table(members: Mapping[str, Stage], weights: Mapping[str, float], num_items: int, seed: int) -> pa.Table:
    """Return the weighted sums of the members' ranks (spec 10); `members` are their finished attributions by name."""
    scores_of = {member: all_scores(stored_scores(stage)) for member, stage in members.items()}
    idx = next(iter(scores_of.values()))[0]
    assert all(np.array_equal(idx, other) for other, _ in scores_of.values())
    columns = [
        ensemble_scores(
            {member: scores[:, number] for member, (_, scores) in scores_of.items()},
            weights,
            idx,
            seed=seed,
            name=ranking_name(number),
        )
        for number in range(num_items)
    ]
    return score_table(idx, np.stack(columns, axis=1))


def mutual_table(tables: Iterable[pa.Table], seed: int) -> Iterator[pa.Table]:
    """Yield one table of scores made of the ranks that images and items have for each other."""
    idx, scores = all_scores(tables)
    names = [ranking_name(number) for number in range(scores.shape[1])]
    yield score_table(idx, mutual_ranks(scores, idx, seed, names))


def whitened_tables(uncorrected: Callable[[], Iterator[pa.Table]], num_items: int, delta: float) -> Iterator[pa.Table]:
    """Yield the scores whitened over the items; the uncorrected ones are streamed twice."""

    def parts() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return ((table["idx"].to_numpy(), matrix(table, "score")) for table in uncorrected())

    return (score_table(idx, scores) for idx, scores in whitened(parts, num_items, delta))


def all_scores(tables: Iterable[pa.Table]) -> tuple[np.ndarray, np.ndarray]:
    """Return idx [N] and scores [N, items] of all images, 4 bytes for each pair, for what cannot be streamed."""
    kept = [(table["idx"].to_numpy(), matrix(table, "score")) for table in tables]
    idx, scores = zip(*kept, strict=True)
    return np.concatenate(idx), np.concatenate(scores)


def score_table(idx: np.ndarray, scores: np.ndarray) -> pa.Table:
    """Return a table with the columns idx and score[items]."""
    columns = {"idx": idx, "score": fixed_lists(scores.astype(np.float32))}
    return pa.table(columns, schema=score_schema(scores.shape[1]))


def topk_rows(
    rankings: Sequence[Ranking], items: Sequence[PlannedItem], described: Mapping[int, tuple[str, ...]]
) -> Iterator[tuple[object, ...]]:
    """Yield the rows of topk.csv; `described` has the last columns of each ranked image by idx."""
    for number, ranking in enumerate(rankings):
        for place, (idx, score) in enumerate(zip(ranking.idx.tolist(), ranking.score.tolist(), strict=True), start=1):
            yield number, items[number].idx, place, idx, f"{score:.6f}", *described[idx]
